# SPDX-License-Identifier: Apache-2.0
"""``patchword.match``: what two pictures share, patch by patch, with no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword import ops
from patchword.alignment import (
    Aligner,
    Alignment,
    AlignmentOptions,
    box_mean,
    centered,
    mutual_matches,
    pair_mean,
)
from patchword.backbones import Backbone, create_backbone, extract_features
from patchword.backbones.base import input_size
from patchword.data.io import read_image
from patchword.errors import OptionError
from patchword.geometry import (
    Matrix,
    check_box,
    normalize_points,
    patch_centers,
    warp_points,
)
from patchword.masks import guided_refine, upsample_map
from patchword.structures import (
    CorrespondenceField,
    FloatArray,
    ImageArray,
    MatchResult,
    PatchFeatures,
)


@dataclass(frozen=True)
class MatchOptions:
    """Settings of :class:`Matcher`.

    Attributes:
        max_size: Longest side in pixels that the backbone sees.
        box_context: Share of a box's size that is kept around it when picture 0 is cut to it.
        map_bonus: A proven map wins a patch when its smoothed similarity comes within this of the
            patch's own best match.
        unproven_weight: Weight in the mask of patches that match both ways but lie under no map.
        max_matches: Longest list of matches returned.
        alignment: Options of the search for maps.
    """

    max_size: int = 512
    box_context: float = 0.25
    map_bonus: float = 0.25
    unproven_weight: float = 0.25
    max_matches: int = 1000
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)


@dataclass(frozen=True, eq=False)
class _PairState:
    """Everything about one pair, in input frames: unit maps, proven maps, valid patches."""

    features0: PatchFeatures
    features1: PatchFeatures
    maps0: Tensor
    maps1: Tensor
    valid0: Tensor
    alignments: list[Alignment]


class Matcher:
    """Matches pictures with one backbone; features of a picture can be used again and again.

    Example:
        >>> matcher = Matcher()  # doctest: +SKIP
        >>> query = matcher.extract("query.jpg")  # doctest: +SKIP
        >>> result = matcher.match(query, "other.jpg")  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str | Backbone = "efficientnet-lite0",
        *,
        device: torch.device | str | None = None,
        options: MatchOptions | None = None,
    ) -> None:
        """Load the backbone.

        Args:
            backbone: Name (see :data:`patchword.backbones.BACKBONES`) or a loaded backbone.
            device: Where a backbone given by name runs; ``None`` for the CPU.
            options: See :class:`MatchOptions`.

        Raises:
            OptionError: The name is not known.
            CheckpointError: The weights are missing.
        """
        self.backbone = create_backbone(backbone, device) if isinstance(backbone, str) else backbone
        self.options = options if options is not None else MatchOptions()
        self._aligner = Aligner(self.backbone, self.options.alignment)

    def extract(self, image: Any) -> PatchFeatures:
        """Describe a picture once (path, PIL picture, array or tensor)."""
        picture = read_image(image)
        return extract_features(self.backbone, picture, size=self._input_size(picture))

    def _input_size(self, picture: ImageArray, enlarge: float = 1.0) -> tuple[int, int]:
        """``(H, W)`` at which the backbone sees a picture."""
        wanted = (round(picture.shape[0] * enlarge), round(picture.shape[1] * enlarge))
        return input_size(wanted, self.options.max_size, self.backbone.multiple)

    @torch.inference_mode()
    def match(self, image0: Any, image1: Any, box0: npt.ArrayLike | None = None) -> MatchResult:
        """Find what two pictures share.

        Args:
            image0: Picture or features from :meth:`extract`.
            image1: The other one.
            box0: ``x0, y0, x1, y1`` in pixels of picture 0: look only for what lies there.

        Returns:
            Masks, matches and a score, in pixels of the pictures as they were given.

        Raises:
            OptionError: The box lies outside the picture.
            DatasetError: A file cannot be read.
        """
        return self.match_dense(image0, image1, box0)[0]

    def pair_score(self, image0: Any, image1: Any) -> float:
        """How sure it is that two pictures share something, in [0, 1]; :meth:`match`'s score.

        Args:
            image0: Picture or features from :meth:`extract`.
            image1: The other one.
        """
        return self.match(image0, image1).score

    @torch.inference_mode()
    def match_dense(
        self, image0: Any, image1: Any, box0: npt.ArrayLike | None = None
    ) -> tuple[MatchResult, CorrespondenceField]:
        """As :meth:`match`, with the dense field that the result was drawn from.

        With a box the field covers the part of picture 0 around it, in pixels of that part.
        """
        state, whole0 = self._prepare(image0, image1, box0)
        region0, region1 = self._regions(state)
        mask0 = self._mask(region0, state.features0)
        mask1 = self._mask(region1, state.features1)
        found = self._field(state)
        matches, scores = self._list_matches(state, found, region0)
        x, y = (round(value) for value in state.features0.origin)
        matches[:, :2] += np.array([x, y], dtype=np.float32)
        height, width = whole0.shape[:2]
        full0 = np.zeros((height, width), dtype=np.float32)
        full0[y : y + mask0.shape[0], x : x + mask0.shape[1]] = mask0
        result = MatchResult(
            mask0=full0,
            mask1=mask1,
            matches=matches,
            match_scores=scores,
            score=self._pair_score(state),
            image0=whole0,
            image1=state.features1.image,
        )
        return result, found

    @torch.inference_mode()
    def correspond(self, image0: Any, image1: Any) -> CorrespondenceField:
        """Give every patch of picture 0 its place in picture 1 (whether it has one or not)."""
        state, _ = self._prepare(image0, image1, None)
        return self._field(state)

    @overload
    def score(
        self,
        features0: PatchFeatures,
        features1: PatchFeatures,
        box0: npt.ArrayLike | None = None,
    ) -> float: ...

    @overload
    def score(
        self,
        features0: PatchFeatures,
        features1: Sequence[PatchFeatures],
        box0: npt.ArrayLike | None = None,
    ) -> FloatArray: ...

    @torch.inference_mode()
    def score(
        self,
        features0: PatchFeatures,
        features1: PatchFeatures | Sequence[PatchFeatures],
        box0: npt.ArrayLike | None = None,
    ) -> float | FloatArray:
        """Cheap score in [0, 1] for ranking a gallery: how well patches of 0 are found in 1.

        Mean over the better half of the patches (inside the box) of their best similarity, after
        taking away the mean descriptor of both pictures; no search for maps.

        Args:
            features0: Features of the query.
            features1: Features of one picture, or of many.
            box0: ``x0, y0, x1, y1`` in pixels of picture 0.

        Returns:
            A number, or float32 ``[len(features1)]`` for many.
        """
        many = [features1] if isinstance(features1, PatchFeatures) else list(features1)
        valid0 = self._valid_patches(features0, box0).flatten()
        scores = [self._coarse_score(features0, other, valid0) for other in many]
        if isinstance(features1, PatchFeatures):
            return scores[0]
        return np.asarray(scores, dtype=np.float32)

    def _coarse_score(
        self, features0: PatchFeatures, features1: PatchFeatures, valid0: Tensor
    ) -> float:
        tokens0, tokens1 = features0.tokens[0], features1.tokens[0]
        mean = torch.cat([tokens0, tokens1]).mean(dim=0)
        wanted = F.normalize(tokens0[valid0] - mean, dim=1)
        offered = F.normalize(tokens1 - mean, dim=1)
        best = ops.nearest_neighbors(wanted, offered).scores.clamp(min=0)
        half = max(1, len(best) // 2)
        return float(best.topk(half).values.mean())

    def _prepare(
        self, image0: Any, image1: Any, box0: npt.ArrayLike | None
    ) -> tuple[_PairState, ImageArray]:
        """Features of both pictures (picture 0 cut to its box), and the maps between them."""
        features1 = self._with_pixels(image1)
        if box0 is None:
            features0 = self._with_pixels(image0)
            assert features0.image is not None
            whole0 = features0.image
            valid0 = self._valid_patches(features0, None)
        else:
            whole0 = self._picture(image0)
            features0, valid0 = self._extract_box(whole0, box0)
        maps0, maps1 = features0.maps()[0], features1.maps()[0]
        mean = pair_mean(maps0, maps1)
        state = _PairState(
            features0,
            features1,
            centered(maps0, mean),
            centered(maps1, mean),
            valid0,
            self._aligner.align(features0, features1, valid0),
        )
        return state, whole0

    def _with_pixels(self, image: Any) -> PatchFeatures:
        if isinstance(image, PatchFeatures):
            if image.pixels is not None and image.image is not None:
                return image
            raise OptionError(
                "match: features must carry their picture, got tokens only. "
                "Make them with Matcher.extract."
            )
        return self.extract(image)

    def _picture(self, image: Any) -> ImageArray:
        if isinstance(image, PatchFeatures):
            kept = self._with_pixels(image).image
            assert kept is not None
            return kept
        return read_image(image)

    def _extract_box(self, image: ImageArray, box0: npt.ArrayLike) -> tuple[PatchFeatures, Tensor]:
        """Describe the box with some surroundings, so that small things are seen large."""
        x0, y0, x1, y1 = check_box(box0, (image.shape[0], image.shape[1]))
        pad_x, pad_y = ((x1 - x0) * self.options.box_context, (y1 - y0) * self.options.box_context)
        left, top = max(int(x0 - pad_x), 0), max(int(y0 - pad_y), 0)
        right = min(int(np.ceil(x1 + pad_x)), image.shape[1])
        bottom = min(int(np.ceil(y1 + pad_y)), image.shape[0])
        cut = np.ascontiguousarray(image[top:bottom, left:right])
        enlarge = max(1.0, 0.5 * self.options.max_size / max(cut.shape[:2]))
        features = extract_features(self.backbone, cut, size=self._input_size(cut, enlarge))
        inner = (x0 - left, y0 - top, x1 - left, y1 - top)
        return replace(features, origin=(float(left), float(top))), self._valid_patches(
            features, inner
        )

    def _valid_patches(self, features: PatchFeatures, box: npt.ArrayLike | None) -> Tensor:
        """``[h, w]`` bool: patches whose centre lies in the box; the nearest one when none does."""
        valid = torch.ones(features.grid, dtype=torch.bool, device=features.tokens.device)
        if box is None:
            return valid
        x0, y0, x1, y1 = check_box(box, features.image_size)
        centers = patch_centers(features.grid, features.stride) * np.array(features.scale)
        inside = (
            (centers[:, 0] >= x0)
            & (centers[:, 0] < x1)
            & (centers[:, 1] >= y0)
            & (centers[:, 1] < y1)
        )
        if not inside.any():
            middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
            inside[np.linalg.norm(centers - middle, axis=1).argmin()] = True
        return torch.from_numpy(inside).to(valid.device).reshape(features.grid)

    def _field(self, state: _PairState) -> CorrespondenceField:
        """Each patch takes its own best match, or the place a proven map gives it."""
        stride, grid0, grid1 = self.backbone.stride, state.features0.grid, state.features1.grid
        nearest = ops.nearest_neighbors(_rows(state.maps0), _rows(state.maps1))
        centers0 = patch_centers(grid0, stride)
        points1 = patch_centers(grid1, stride)[nearest.indices.cpu().numpy()]
        similarity = nearest.scores.reshape(grid0)
        best = box_mean(similarity) - self.options.map_bonus
        evidence = torch.zeros_like(best)
        for alignment in state.alignments:
            mapped = warp_points(alignment.homography, centers0)
            size1 = state.features1.input_size
            inside = (mapped >= 0).all(axis=1) & (mapped < np.array(size1[::-1])).all(axis=1)
            within = torch.from_numpy(inside).to(best.device).reshape(grid0)
            wins = (alignment.similarity > best) & within
            chosen = wins.flatten().cpu().numpy()
            points1[chosen] = mapped[chosen]
            best = torch.where(wins, alignment.similarity, best)
            similarity = torch.where(wins, alignment.similarity, similarity)
            evidence = torch.where(wins, _belief(alignment), evidence)
        shape = (*grid0, 2)
        return CorrespondenceField(
            points0=(centers0 * np.array(state.features0.scale)).reshape(shape).astype(np.float32),
            points1=(points1 * np.array(state.features1.scale)).reshape(shape).astype(np.float32),
            similarity=similarity.cpu().numpy(),
            evidence=evidence.cpu().numpy(),
        )

    def _regions(self, state: _PairState) -> tuple[Tensor, Tensor]:
        """Shared-region maps ``[h, w]`` in [0, 1] on both patch grids."""
        region0, region1 = self._cycle_regions(state)
        stride = self.backbone.stride
        size0 = state.features0.input_size
        for alignment in state.alignments:
            belief = _belief(alignment) * state.valid0
            region0 = torch.maximum(region0, belief)
            centers1 = patch_centers(state.features1.grid, stride)
            inverse: Matrix = np.linalg.inv(alignment.homography).astype(np.float64)
            back = warp_points(inverse, centers1)
            places = torch.from_numpy(np.nan_to_num(back, nan=-1e6)).to(belief)
            seen = F.grid_sample(
                belief[None, None],
                normalize_points(places, size0).reshape(1, *state.features1.grid, 2),
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )[0, 0]
            region1 = torch.maximum(region1, seen)
        return region0, region1

    def _cycle_regions(self, state: _PairState) -> tuple[Tensor, Tensor]:
        """Weak regions from patches that choose each other, back within a patch and a half."""
        rows0, rows1 = _rows(state.maps0), _rows(state.maps1)
        valid0 = state.valid0.flatten()
        regions = []
        for rows, others, grid, valid, valid_others in (
            (rows0, rows1, state.features0.grid, valid0, None),
            (rows1, rows0, state.features1.grid, None, valid0),
        ):
            centers = torch.from_numpy(patch_centers(grid)).to(rows)
            trip = ops.cycle_consistency(rows, others, centers, valid0=valid, valid1=valid_others)
            # Patches that take no part have distance inf and so weight 0.
            close = torch.exp(-((trip.distance / 1.5) ** 2))
            weak = self.options.unproven_weight * trip.scores.clamp(min=0) * close
            regions.append(box_mean(weak.reshape(grid)))
        return regions[0], regions[1]

    def _mask(self, region: Tensor, features: PatchFeatures) -> FloatArray:
        """Bring a region on the patch grid to the picture's size, edges drawn to the picture's."""
        assert features.image is not None
        coarse = upsample_map(region, features.image_size)
        return guided_refine(coarse, features.image)

    def _list_matches(
        self, state: _PairState, found: CorrespondenceField, region0: Tensor
    ) -> tuple[FloatArray, FloatArray]:
        """Matches under proven maps first, then patches that choose each other; best first."""
        proven = (found.evidence > 0.5) & state.valid0.cpu().numpy()
        points0, points1 = found.points0[proven], found.points1[proven]
        scores = (found.evidence * found.similarity.clip(0, 1))[proven]
        if len(scores) == 0:
            ones = torch.ones(state.features1.grid, dtype=torch.bool, device=region0.device)
            index0, places, weights = mutual_matches(state.maps0, state.maps1, state.valid0, ones)
            cells = index0.cpu().numpy()
            points0 = found.points0.reshape(-1, 2)[cells]
            scale1 = np.array(state.features1.scale) * self.backbone.stride
            points1 = (places.cpu().numpy() * scale1).astype(np.float32)
            scores = self.options.unproven_weight * weights.cpu().numpy()
        order = np.argsort(-scores, kind="stable")[: self.options.max_matches]
        matches = np.concatenate([points0[order], points1[order]], axis=1)
        return matches.astype(np.float32), scores[order].astype(np.float32)

    def _pair_score(self, state: _PairState) -> float:
        """Score in [0, 1]: proof of the best map, on top of how well patches are found at all."""
        coarse = self._coarse_score(state.features0, state.features1, state.valid0.flatten())
        proof = max((alignment.proof for alignment in state.alignments), default=0.0)
        sure = 1.0 - float(np.exp(-proof / 4.0))
        return float(np.clip(sure + (1.0 - sure) * 0.5 * coarse, 0.0, 1.0))


def _rows(maps: Tensor) -> Tensor:
    """Feature maps ``[D, h, w]`` as descriptors ``[N, D]``."""
    return maps.flatten(1).T.contiguous()


def _belief(alignment: Alignment) -> Tensor:
    """How sure each patch ``[h, w]`` is that the map holds for it, in [0, 1]."""
    likeness = ((alignment.similarity - 0.2) / 0.6).clamp(0.0, 1.0)
    sure = torch.sigmoid((alignment.contrast - 0.1) / 0.05)
    return likeness * (0.3 + 0.7 * sure)


def match(
    image0: Any,
    image1: Any,
    *,
    box0: npt.ArrayLike | None = None,
    backbone: str | Backbone = "efficientnet-lite0",
    device: torch.device | str | None = None,
    options: MatchOptions | None = None,
) -> MatchResult:
    """Find what two pictures share, with no training.

    Args:
        image0: Path, PIL picture, array ``[H, W, 3]`` / ``[H, W]`` or tensor ``[3, H, W]``.
        image1: The other picture.
        box0: ``x0, y0, x1, y1`` in pixels of picture 0: look only for what lies there.
        backbone: Name of the backbone or a loaded one.
        device: Where a backbone given by name runs; ``None`` for the CPU.
        options: See :class:`MatchOptions`.

    Returns:
        Shared-region masks of both pictures, matches with scores, and one score. Deterministic.

    Raises:
        DatasetError: A file cannot be read.
        OptionError: The box lies outside the picture, or an option is not known.
        CheckpointError: The backbone's weights are missing.

    Example:
        >>> result = match("bridge_morning.jpg", "bridge_night.jpg")  # doctest: +SKIP
        >>> result.mask0.shape, round(result.score, 2)  # doctest: +SKIP
    """
    return Matcher(backbone, device=device, options=options).match(image0, image1, box0=box0)
