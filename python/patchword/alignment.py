# SPDX-License-Identifier: Apache-2.0
"""Find the maps under which parts of two pictures look alike, and prove each on re-drawn pictures.

Patch features know a thing only near the pose they see it in, so picture 1 is also looked at
turned. Neighbouring matches propose affine maps (:mod:`patchword.consensus`); for each proposal
picture 1 is drawn again in the frame of picture 0, described afresh, and compared patch by patch at
equal places. A proposal is believed where that comparison is better than the same comparison with
picture 1 pushed aside: plain sky agrees with itself wherever it is put and so proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword import ops
from patchword.backbones.base import Backbone
from patchword.consensus import (
    ConsensusOptions,
    Hypothesis,
    fit_affine,
    fit_homography,
    is_sound,
    propose_affine_maps,
)
from patchword.geometry import (
    Matrix,
    local_scale,
    patch_centers,
    rotation_canvas,
    warp_image,
    warp_points,
)
from patchword.structures import PatchFeatures


@dataclass(frozen=True)
class AlignmentOptions:
    """How far the search for maps goes; the values were chosen on the project's sample pairs.

    Attributes:
        angles: Turns of picture 1, degrees, tried after the upright one.
        proposals_per_angle: Maps asked of each turn.
        checked: Proposals that are drawn and compared, the best supported first.
        kept: Proven maps that are kept.
        ring: Push in patches for the comparison of a place with its surroundings.
        min_contrast: Mean advantage of a place over its surroundings that counts as proof.
        min_proof: Sum of such advantages over patches that a map needs to be kept.
        enough: Share of patches that one upright map must explain to end the search early.
        rounds: Times that a kept map is fitted again to what its drawing shows.
        consensus: Options of the proposals.
    """

    angles: tuple[float, ...] = (45.0, -45.0, 90.0, -90.0, 135.0, -135.0, 180.0)
    proposals_per_angle: int = 2
    checked: int = 10
    kept: int = 4
    ring: int = 3
    min_contrast: float = 0.15
    min_proof: float = 0.5
    enough: float = 0.4
    rounds: int = 2
    consensus: ConsensusOptions = field(default_factory=ConsensusOptions)


@dataclass(frozen=True, eq=False)
class Alignment:
    """A map that was drawn and compared.

    Attributes:
        homography: From the input frame of picture 0 to that of picture 1.
        similarity: ``[h, w]`` smoothed similarity at equal places.
        contrast: ``[h, w]`` smoothed advantage over picture 1 pushed aside.
        proof: Sum of the contrast above the threshold.
        drawn: ``[D, h, w]`` descriptors of picture 1 drawn in the frame of picture 0.
    """

    homography: Matrix
    similarity: Tensor
    contrast: Tensor
    proof: float
    drawn: Tensor


def box_mean(maps: Tensor, size: int = 3) -> Tensor:
    """Mean over ``size`` x ``size`` neighbours of ``[..., h, w]``, borders repeated."""
    shape = maps.shape
    flat = maps.reshape(-1, 1, *shape[-2:])
    padded = F.pad(flat, (size // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, size, 1).reshape(shape)


def centered(maps: Tensor, mean: Tensor) -> Tensor:
    """Subtract a common mean descriptor ``[D, 1, 1]`` and give each cell unit length again.

    What every patch of both pictures has in common says nothing about which two belong together.
    """
    return F.normalize(maps - mean, dim=-3)


def pair_mean(maps0: Tensor, maps1: Tensor) -> Tensor:
    """Mean descriptor ``[D, 1, 1]`` over the patches of two pictures ``[D, h, w]``."""
    both = torch.cat([maps0.flatten(1), maps1.flatten(1)], dim=1)
    return both.mean(dim=1)[:, None, None]


def peak_shift(before: Tensor, peak: Tensor, after: Tensor) -> Tensor:
    """Vertex of the parabola through a peak and its neighbours, in steps within [-0.5, 0.5]."""
    bend = (before - 2 * peak + after).clamp(max=-1e-6)
    return (0.5 * (before - after) / bend).clamp(-0.5, 0.5)


def mutual_matches(
    maps0: Tensor, maps1: Tensor, valid0: Tensor, valid1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mutual nearest neighbours of two feature maps ``[D, h, w]`` among valid cells.

    Returns:
        Flat indices ``[M]`` into picture 0, positions ``[M, 2]`` ``(x, y)`` in patches of picture
        1, similarities ``[M]``.
    """
    flat0, flat1 = maps0.flatten(1).T.contiguous(), maps1.flatten(1).T.contiguous()
    found, scores = ops.mutual_nearest_neighbors(
        flat0, flat1, threshold=0.0, valid0=valid0.flatten(), valid1=valid1.flatten()
    ).pairs()
    index0, index1 = found[:, 0], found[:, 1]
    height, width = maps1.shape[1:]
    row, column = index1 // width, index1 % width

    def similarity(down: int, right: int) -> Tensor:
        y, x = (row + down).clamp(0, height - 1), (column + right).clamp(0, width - 1)
        return (flat0[index0] * flat1[y * width + x]).sum(dim=1)

    def shift(before: Tensor, after: Tensor, inner: Tensor) -> Tensor:
        return torch.where(inner, peak_shift(before, scores, after), torch.zeros_like(scores))

    dx = shift(similarity(0, -1), similarity(0, 1), (column > 0) & (column < width - 1))
    dy = shift(similarity(-1, 0), similarity(1, 0), (row > 0) & (row < height - 1))
    places = torch.stack([column + 0.5 + dx, row + 0.5 + dy], dim=1)
    return index0, places, scores


def local_matches(maps0: Tensor, maps1: Tensor, radius: int = 1) -> tuple[Tensor, Tensor]:
    """Best match of each cell among the cells within ``radius`` of the same place.

    Args:
        maps0: ``[D, h, w]`` unit descriptors.
        maps1: ``[D, h, w]`` of the other picture drawn in the same frame.
        radius: In patches.

    Returns:
        Similarities ``[h, w]`` and positions ``[h * w, 2]`` ``(x, y)`` in patches, to a fraction of
        a patch.
    """
    height, width = maps0.shape[1:]
    side = 2 * radius + 3
    padded = F.pad(maps1, (radius + 1,) * 4)
    window = torch.stack(
        [
            (maps0 * padded[:, dy : dy + height, dx : dx + width]).sum(dim=0)
            for dy in range(side)
            for dx in range(side)
        ],
        dim=-1,
    ).reshape(height * width, side, side)
    # One more ring than searched is compared, so that every peak has neighbours for its parabola.
    best, index = window[:, 1:-1, 1:-1].flatten(1).max(dim=1)
    cells = torch.arange(len(index), device=index.device)
    row, column = index // (side - 2) + 1, index % (side - 2) + 1
    dx = peak_shift(window[cells, row, column - 1], best, window[cells, row, column + 1])
    dy = peak_shift(window[cells, row - 1, column], best, window[cells, row + 1, column])
    moved = torch.stack([column + dx, row + dy], dim=1) - (radius + 1)
    centers = torch.from_numpy(patch_centers((height, width))).to(moved)
    return best.reshape(height, width), centers + moved


class Aligner:
    """Searches and proves maps between two pictures with one backbone."""

    def __init__(self, backbone: Backbone, options: AlignmentOptions | None = None) -> None:
        """Keep the backbone and the options; nothing is computed yet."""
        self.backbone = backbone
        self.options = options if options is not None else AlignmentOptions()

    @torch.inference_mode()
    def align(
        self, features0: PatchFeatures, features1: PatchFeatures, valid0: Tensor
    ) -> list[Alignment]:
        """Find proven maps from picture 0 to picture 1, the best proven first.

        Args:
            features0: Features with ``pixels``, one picture.
            features1: The same of the other picture.
            valid0: ``[h, w]`` bool, patches of picture 0 that take part.
        """
        maps0, maps1 = features0.maps()[0], features1.maps()[0]
        mean = pair_mean(maps0, maps1)
        reference = centered(maps0, mean)
        generator = np.random.default_rng(0)
        upright = self._propose(reference, centered(maps1, mean), valid0, None, generator)
        proven = [self._prove(reference, mean, features1, proposal, valid0) for proposal in upright]
        covered = max((self._coverage(one, valid0) for one in proven), default=0.0)
        if covered < self.options.enough:
            turned: list[Hypothesis] = []
            for angle in self.options.angles:
                turned += self._propose_turned(reference, mean, features1, valid0, angle, generator)
            turned.sort(key=lambda proposal: -proposal.support)
            remaining = self.options.checked - len(proven)
            proven += [
                self._prove(reference, mean, features1, proposal, valid0)
                for proposal in turned[:remaining]
            ]
        proven = [one for one in proven if one.proof >= self.options.min_proof]
        distinct = self._distinct(proven, features0.grid)
        tightened = [self._tighten(reference, mean, features1, one, valid0) for one in distinct]
        return self._distinct(tightened, features0.grid)

    def _distinct(self, alignments: list[Alignment], grid: tuple[int, int]) -> list[Alignment]:
        """Best proven first, without those that say of their own patches what a better one says."""
        centers = patch_centers(grid, self.backbone.stride)
        kept: list[Alignment] = []
        for one in sorted(alignments, key=lambda alignment: -alignment.proof):
            own = (one.contrast > self.options.min_contrast).flatten().cpu().numpy()
            if len(kept) == self.options.kept or not own.any():
                continue
            points = centers[own]
            places = warp_points(one.homography, points)
            gaps = [
                np.median(np.linalg.norm(warp_points(better.homography, points) - places, axis=1))
                for better in kept
            ]
            if all(gap > self.options.consensus.tolerance for gap in gaps):
                kept.append(one)
        return kept

    def _tighten(
        self,
        reference: Tensor,
        mean: Tensor,
        features1: PatchFeatures,
        alignment: Alignment,
        valid0: Tensor,
    ) -> Alignment:
        """Fit the map to where patches are seen best in the drawing; keep what proves more."""
        stride, grid = self.backbone.stride, (reference.shape[1], reference.shape[2])
        best = alignment
        for _ in range(self.options.rounds):
            near, places = local_matches(reference, best.drawn)
            # Where the drawing shows no picture, similarity is 0 and so is the weight.
            weights = (best.contrast > 0) * near.clamp(min=0) * best.similarity.clamp(min=0)
            used = weights.flatten() > 0
            points0 = torch.from_numpy(patch_centers(grid, stride))[used.cpu()].numpy()
            seen = places[used].double().cpu().numpy() * stride
            strength = weights.flatten()[used].double().cpu().numpy()
            if len(points0) < 4:
                break
            points1 = warp_points(best.homography, seen)
            # The tolerance is felt in frame 1, where the object may be larger or smaller.
            magnification = float(np.median(local_scale(best.homography, points0)))
            tolerance = self.options.consensus.tolerance * magnification
            fitted = fit_affine(points0, points1, strength, best.homography, tolerance=tolerance)
            full = fit_homography(points0, points1, strength, best.homography, tolerance=tolerance)
            tried = [
                self._prove(reference, mean, features1, Hypothesis(one, best.proof), valid0)
                for one in (fitted, full)
                if is_sound(one)
            ]
            challenger = max(tried, key=lambda one: one.proof, default=best)
            if challenger.proof <= best.proof:
                break
            best = challenger
        return best

    def _coverage(self, alignment: Alignment, valid0: Tensor) -> float:
        explained = (alignment.similarity > 0.5) & (alignment.proof > 0) & valid0
        return float(explained.sum() / valid0.sum().clamp(min=1))

    def _propose(
        self,
        reference: Tensor,
        other: Tensor,
        valid0: Tensor,
        canvas: tuple[Matrix, Tensor] | None,
        generator: np.random.Generator,
    ) -> list[Hypothesis]:
        """Maps supported by mutual matches with ``other``, which may be drawn on a canvas."""
        stride = self.backbone.stride
        valid1 = (
            torch.ones(other.shape[1:], dtype=torch.bool, device=other.device)
            if canvas is None
            else canvas[1]
        )
        index0, places, weights = mutual_matches(reference, other, valid0, valid1)
        centers = patch_centers((reference.shape[1], reference.shape[2]), stride)
        points0 = centers[index0.cpu().numpy()]
        points1 = places.double().cpu().numpy() * stride
        found = propose_affine_maps(
            points0,
            points1,
            weights.double().cpu().numpy(),
            count=self.options.proposals_per_angle,
            options=self.options.consensus,
            generator=generator,
        )
        found = [one for one in found if is_sound(one.homography)]
        if canvas is None:
            return found
        return [Hypothesis(canvas[0] @ one.homography, one.support) for one in found]

    def _propose_turned(
        self,
        reference: Tensor,
        mean: Tensor,
        features1: PatchFeatures,
        valid0: Tensor,
        angle: float,
        generator: np.random.Generator,
    ) -> list[Hypothesis]:
        canvas, size = rotation_canvas(features1.input_size, angle, self.backbone.multiple)
        other, valid1 = self._describe_warped(features1, canvas, size, mean)
        return self._propose(reference, other, valid0, (canvas, valid1), generator)

    def _describe_warped(
        self, features1: PatchFeatures, homography: Matrix, size: tuple[int, int], mean: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Describe picture 1 drawn in another frame; also which cells mostly show the picture."""
        assert features1.pixels is not None
        drawn, inside = warp_image(features1.pixels, homography, size, fill=self.backbone.fill)
        maps = centered(self.backbone.describe(drawn)[0], mean)
        valid = F.avg_pool2d(inside, self.backbone.stride)[0, 0] > 0.5
        return maps, valid

    def _prove(
        self,
        reference: Tensor,
        mean: Tensor,
        features1: PatchFeatures,
        proposal: Hypothesis,
        valid0: Tensor,
    ) -> Alignment:
        """Draw picture 1 under a map and compare."""
        size = (
            reference.shape[1] * self.backbone.stride,
            reference.shape[2] * self.backbone.stride,
        )
        other, valid1 = self._describe_warped(features1, proposal.homography, size, mean)
        valid = valid0 & valid1
        ring = self.options.ring
        similarity = (reference * other).sum(dim=0) * valid
        contrast = similarity - (self._pushed(reference, other, ring).amax(dim=0) * valid)
        smooth_similarity = box_mean(similarity) * valid
        smooth_contrast = box_mean(contrast) * valid
        proof = (smooth_contrast - self.options.min_contrast).clamp(min=0).sum()
        return Alignment(
            proposal.homography, smooth_similarity, smooth_contrast, float(proof), other
        )

    def _pushed(self, reference: Tensor, other: Tensor, ring: int) -> Tensor:
        """Similarity ``[8, h, w]`` with ``other`` pushed ``ring`` patches in eight directions."""
        height, width = reference.shape[1:]
        padded = F.pad(other, (ring,) * 4)
        steps = (0, ring, 2 * ring)
        return torch.stack(
            [
                (reference * padded[:, dy : dy + height, dx : dx + width]).sum(dim=0).clamp(min=0)
                for dy in steps
                for dx in steps
                if (dy, dx) != (ring, ring)
            ]
        )
