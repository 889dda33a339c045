# SPDX-License-Identifier: Apache-2.0
"""The system in use: pictures are described once, then matched in pairs or ranked by a query."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.backbones.base import Backbone
from patchword.data.folders import list_images
from patchword.data.io import printable, read_image
from patchword.errors import OptionError
from patchword.geometry import check_box, patch_centers
from patchword.inference.progress import Progress, silent
from patchword.masks import guided_refine
from patchword.nn.cross_transformer import ImageTokens
from patchword.structures import CorrespondenceField, FloatArray, ImageArray, MatchResult
from patchword.systems.segswap import cycles, retrieval
from patchword.systems.segswap.config import PreprocessConfig
from patchword.systems.segswap.frames import PATCH, Frame, plan_frame, to_input
from patchword.systems.segswap.model import SegSwapNetwork
from patchword.systems.segswap.options import CONSISTENCY, SegswapOptions, default_options

if TYPE_CHECKING:
    from patchword.systems.segswap.discovery import Discovery, DiscoveryOptions


@dataclass(frozen=True, eq=False)
class Described:
    """A picture as the system keeps it; everything in it depends on this picture alone.

    Attributes:
        features: ``[h * w, C]`` unit descriptors, row-major.
        tokens: Batch of one, through the layers before the first cross layer.
        frame: Where the picture lies in the network's input.
        image: The picture, uint8 ``[H, W, 3]``, or None.
        half: ``[1, 3, 8h, 8w]`` the input at half its size, kept where masks are made fine.
    """

    features: Tensor
    tokens: ImageTokens
    frame: Frame
    image: ImageArray | None = None
    half: Tensor | None = None


@dataclass(frozen=True)
class Ranked:
    """One picture of a ranked gallery.

    Attributes:
        index: Its place in the gallery as given.
        score: Larger is better; comparable within one query only.
        name: Path, where the gallery was one of files.
    """

    index: int
    score: float
    name: str | None = None


class Segswap:
    """A network in use, see :func:`patchword.load`.

    Example:
        >>> system = patchword.load("segswap")  # doctest: +SKIP
        >>> system.match("left.jpg", "right.jpg").save("out")  # doctest: +SKIP
    """

    def __init__(
        self,
        network: SegSwapNetwork,
        *,
        options: SegswapOptions | None = None,
        preprocess: PreprocessConfig | None = None,
    ) -> None:
        """Take a network with its backbone.

        Args:
            network: In evaluation mode.
            options: See :class:`SegswapOptions`; None for :func:`default_options`.
            preprocess: How pictures are resized; None for what the weights were made for.

        Raises:
            OptionError: The network has no backbone.
        """
        if network.backbone is None:
            raise OptionError("Segswap: network must have a backbone, got features only.")
        self.network = network.eval()
        self.backbone: Backbone = network.backbone
        self.options = options if options is not None else default_options(network)
        self.preprocess = preprocess if preprocess is not None else network.config.preprocess

    @torch.inference_mode()
    def describe(self, image: Any, box: npt.ArrayLike | None = None) -> Described:
        """Describe a picture once, for any number of pairs.

        Args:
            image: Path, PIL picture, array or tensor, see :func:`patchword.data.io.read_image`.
            box: ``x0, y0, x1, y1`` in pixels: only the part around it is seen, enlarged.

        Raises:
            DatasetError: A file cannot be read.
            ShapeError: The picture is smaller than a patch.
            OptionError: The box lies outside the picture.
        """
        picture = read_image(image)
        seen, origin = self._around(picture, box)
        frame = plan_frame(
            (seen.shape[0], seen.shape[1]), self.preprocess, self.backbone.multiple, "describe"
        )
        frame = replace(frame, origin=origin)
        return self.describe_input(to_input(seen, frame, self.backbone), frame, picture)

    @torch.inference_mode()
    def describe_input(
        self, pixels: Tensor, frame: Frame, image: ImageArray | None = None
    ) -> Described:
        """Describe one input ``[1, 3, H, W]`` that was prepared elsewhere."""
        maps = self.network.features(pixels)
        valid = frame.valid()
        tokens = self.network.transformer.embed(
            maps, None if valid is None else valid[None].to(maps.device)
        )
        # Rows of channels, as scores read them; the backbone leaves planes.
        features = maps[0].flatten(1).T.contiguous()
        half = F.avg_pool2d(pixels, 2) if self.network.refiner is not None else None
        return Described(features, tokens, frame, image, half)

    @torch.inference_mode()
    def relate(self, first: Described, second: Described) -> tuple[Tensor, Tensor]:
        """Outputs ``[1, 3, h, w]`` of the network for both pictures, see its ``forward``."""
        return self.network.transformer.relate(first.tokens, second.tokens)

    def match(self, image0: Any, image1: Any, box0: npt.ArrayLike | None = None) -> MatchResult:
        """Find what two pictures share.

        Args:
            image0: Picture, or what :meth:`describe` gave.
            image1: The other one.
            box0: ``x0, y0, x1, y1`` in pixels of picture 0: look only for what lies there.

        Returns:
            Masks, matches and a score, in pixels of the pictures as they were given.

        Raises:
            DatasetError: A file cannot be read.
            ShapeError: A picture is smaller than a patch.
            OptionError: The box lies outside the picture, or goes with a described one.
        """
        return self.match_dense(image0, image1, box0)[0]

    @torch.inference_mode()
    def match_dense(
        self, image0: Any, image1: Any, box0: npt.ArrayLike | None = None
    ) -> tuple[MatchResult, CorrespondenceField]:
        """As :meth:`match`, with the place in picture 1 of every patch of picture 0."""
        first, second = self._described(image0, box0), self._described(image1)
        out0, out1 = self.relate(first, second)
        agreed0, agreed1 = cycles.pair_masks(out0, out1)
        inside0 = self._cells(first, box0)
        found = self._field(first, second, out0, agreed0 * inside0)
        matches, scores = self._list_matches(found)
        mask0, mask1 = self._regions(first, second, out0 * _third(inside0), out1)
        result = MatchResult(
            mask0=self._mask(mask0[0], first),
            mask1=self._mask(mask1[0], second),
            matches=matches,
            match_scores=scores,
            score=self._pair_score(out0[:, 2] * inside0, out1[:, 2])
            if self.options.score_consistency == "none"
            else self._pair_score(agreed0 * inside0, agreed1),
            image0=first.image,
            image1=second.image,
        )
        return result, found

    @torch.inference_mode()
    def score(self, query: Described, gallery: Sequence[Described], cells: Tensor) -> FloatArray:
        """Retrieval scores of one query against described pictures.

        Args:
            query: The query.
            gallery: The candidates, of any sizes.
            cells: bool ``[h, w]``: the query's cells that are asked about.

        Returns:
            float32 ``[len(gallery)]``; larger is better.
        """
        transformer = self.network.transformer
        region = cells.to(query.features.device)
        weights = retrieval.query_weights(transformer, query.tokens, region)
        wanted = region.flatten().nonzero()[:, 0]
        by_grid: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, candidate in enumerate(gallery):
            by_grid[candidate.tokens.grid].append(index)
        scores = np.zeros(len(gallery), dtype=np.float32)
        for indices in by_grid.values():
            for start in range(0, len(indices), self.options.batch):
                chosen = indices[start : start + self.options.batch]
                members = [gallery[index] for index in chosen]
                found = retrieval.score_candidates(
                    transformer,
                    query.tokens,
                    _stack([member.tokens for member in members]),
                    query.features,
                    torch.stack([member.features for member in members]),
                    weights,
                    wanted,
                    rounding=self.options.rounding,
                )
                scores[chosen] = found.cpu().numpy()
        return scores

    def rank(
        self,
        query: Any,
        gallery: str | Path | Iterable[Any],
        box: npt.ArrayLike | None = None,
    ) -> list[Ranked]:
        """Order pictures by how well the query, or what its box holds, is found in them.

        Args:
            query: Picture, or what :meth:`describe` gave.
            gallery: Folder, or pictures and described pictures in any mix.
            box: ``x0, y0, x1, y1`` in pixels of the query.

        Returns:
            One entry a picture, best first; equal scores in the order given.

        Raises:
            DatasetError: A file or folder cannot be read.
            ShapeError: A picture is smaller than a patch.
            OptionError: The box lies outside the query, or goes with a described one.
        """
        if isinstance(gallery, (str, Path)):
            gallery = list_images(gallery)
        members = list(gallery)
        asked = self._described(query, box)
        described = [self._described(member) for member in members]
        scores = self.score(asked, described, self._cells(asked, box))
        names = [
            printable(member) if isinstance(member, (str, Path)) else None for member in members
        ]
        order = np.argsort(-scores, kind="stable")
        return [Ranked(int(index), float(scores[index]), names[index]) for index in order]

    def discover(
        self,
        images: str | Path | Sequence[Any],
        *,
        options: DiscoveryOptions | None = None,
        cache: str | Path | None = None,
        progress: Progress = silent,
    ) -> Discovery:
        """Find the object that a set of pictures has in common, and cut it out of each.

        Args:
            images: Folder, or at least two pictures.
            options: See :class:`patchword.systems.segswap.discovery.DiscoveryOptions`.
            cache: Folder for finished pairs; a run that was stopped goes on from there.
            progress: Wraps the loop over parts of the pairs.

        Returns:
            One mask a picture, of its own size, and the votes behind it.

        Raises:
            DatasetError: There are fewer than two pictures, or one cannot be read.
            ShapeError: The system resizes pictures to different shapes.
            OutputError: The cache cannot be written.
        """
        from patchword.systems.segswap.discovery import discover

        return discover(self, images, options=options, cache=cache, progress=progress)

    def _described(self, image: Any, box: npt.ArrayLike | None = None) -> Described:
        if not isinstance(image, Described):
            return self.describe(image, box)
        if box is not None:
            raise OptionError(
                "match: box must come with a picture, got a described one. "
                "Pass the box to describe."
            )
        return image

    def _around(
        self, picture: ImageArray, box: npt.ArrayLike | None
    ) -> tuple[ImageArray, tuple[int, int]]:
        """The part of a picture around a box, of the picture's shape, and its corner."""
        if box is None:
            return picture, (0, 0)
        height, width = picture.shape[:2]
        x0, y0, x1, y1 = check_box(box, (height, width))
        share = max((x1 - x0) / width, (y1 - y0) / height) / self.options.box_share
        tall = min(height, max(PATCH, round(height * share)))
        wide = min(width, max(PATCH, round(width * share)))
        left = min(max(round((x0 + x1 - wide) / 2), 0), width - wide)
        top = min(max(round((y0 + y1 - tall) / 2), 0), height - tall)
        return picture[top : top + tall, left : left + wide], (left, top)

    def _cells(self, described: Described, box: npt.ArrayLike | None) -> Tensor:
        """Bool ``[h, w]``: cells that show the picture, and of these the ones in the box."""
        frame = described.frame
        shown = frame.valid()
        inside = np.ones(frame.grid, dtype=bool) if shown is None else shown.numpy().copy()
        if box is not None:
            x0, y0, x1, y1 = check_box(box, (10**9, 10**9))
            centers = patch_centers(frame.grid) / frame.grid[::-1]
            places = frame.to_picture(centers).reshape(*frame.grid, 2)
            x, y = places[..., 0], places[..., 1]
            boxed = inside & (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
            if not boxed.any():
                middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
                distance = np.linalg.norm(places - middle, axis=-1)
                boxed.flat[int(np.where(inside, distance, np.inf).argmin())] = True
            inside = boxed
        return torch.from_numpy(inside).to(described.features.device)

    def _field(
        self, first: Described, second: Described, out0: Tensor, evidence: Tensor
    ) -> CorrespondenceField:
        grid = first.frame.grid
        centers = patch_centers(grid) / grid[::-1]
        places = out0[0, :2].flatten(1).T.double().cpu().numpy()
        cell = np.clip(np.floor(places * second.frame.grid[::-1]).astype(int), 0, None)
        cell = np.minimum(cell, np.array(second.frame.grid[::-1]) - 1)
        index = torch.from_numpy(cell[:, 1] * second.frame.grid[1] + cell[:, 0])
        others = second.features[index.to(second.features.device)]
        similarity = (first.features * others).sum(dim=1)
        return CorrespondenceField(
            points0=first.frame.to_picture(centers).reshape(*grid, 2).astype(np.float32),
            points1=second.frame.to_picture(places).reshape(*grid, 2).astype(np.float32),
            similarity=similarity.reshape(grid).float().cpu().numpy(),
            evidence=evidence[0].float().cpu().numpy(),
        )

    def _list_matches(self, found: CorrespondenceField) -> tuple[FloatArray, FloatArray]:
        listed = found.evidence >= self.options.min_match
        rows = np.concatenate([found.points0[listed], found.points1[listed]], axis=1)
        scores = found.evidence[listed]
        order = np.argsort(-scores, kind="stable")[: self.options.max_matches]
        return rows[order].astype(np.float32), scores[order].astype(np.float32)

    def _regions(
        self, first: Described, second: Described, out0: Tensor, out1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Shared-region maps ``[1, h, w]``, or ``[1, 4h, 4w]`` from a network that refines."""
        refiner, option = self.network.refiner, self.options.consistency
        if refiner is None or option != "none" or first.half is None or second.half is None:
            return CONSISTENCY[option](out0, out1)
        return (
            refiner(first.half, second.half, out0, out1).sigmoid(),
            refiner(second.half, first.half, out1, out0).sigmoid(),
        )

    def _mask(self, region: Tensor, described: Described) -> FloatArray:
        """Bring ``[h, w]`` to the whole picture's size; 0 outside the part that was seen."""
        frame = described.frame
        soft = frame.crop_maps(region[None].float())[0]
        left, top = frame.origin
        height, width = frame.image_size
        image = described.image
        if image is None:
            return soft.cpu().numpy()
        seen = image[top : top + height, left : left + width]
        # Fine masks have looked at the pixels already.
        guided = self.options.refine and self.network.refiner is None
        drawn = guided_refine(soft, seen) if guided else soft.cpu().numpy()
        whole = np.zeros(image.shape[:2], dtype=np.float32)
        whole[top : top + height, left : left + width] = drawn
        return whole

    def _pair_score(self, agreed0: Tensor, agreed1: Tensor) -> float:
        """Mean of the surest cells of both sides: a small shared part still counts."""
        best = []
        for agreed in (agreed0, agreed1):
            count = max(1, round(self.options.score_cells * agreed.numel()))
            best.append(float(agreed.flatten().topk(count).values.mean()))
        return sum(best) / 2


def _third(region: Tensor) -> Tensor:
    """Factors ``[1, 3, h, w]`` that leave places alone and keep the mask inside a region."""
    ones = torch.ones_like(region, dtype=torch.float32)
    return torch.stack([ones, ones, region.float()])[None]


def _stack(tokens: Sequence[ImageTokens]) -> ImageTokens:
    """Join pictures of one grid into a batch."""
    grid = tokens[0].grid
    valid = None
    if any(one.valid is not None for one in tokens):
        count = grid[0] * grid[1]
        whole = torch.ones(1, count, dtype=torch.bool, device=tokens[0].tokens.device)
        valid = torch.cat([whole if one.valid is None else one.valid for one in tokens])
    maps = [one.maps for one in tokens if one.maps is not None]
    return ImageTokens(
        torch.cat([one.tokens for one in tokens]), grid, valid, torch.cat(maps) if maps else None
    )
