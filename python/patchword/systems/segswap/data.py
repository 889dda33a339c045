# SPDX-License-Identifier: Apache-2.0
"""Pairs as training uses them: made on the fly or read from disk, stylised and warped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from patchword.data.io import read_image
from patchword.errors import DatasetError, ShapeError
from patchword.systems.segswap.compose import ComposedPair, compose_pair
from patchword.systems.segswap.pictures import PictureCache
from patchword.systems.segswap.recipe import STRIDE, PairRecipe
from patchword.systems.segswap.sources import SceneSource
from patchword.systems.segswap.store import PairFolder
from patchword.systems.segswap.stylise import StatisticsStylist, Stylist
from patchword.systems.segswap.timing import StageTimes
from patchword.systems.segswap.warp import draw_warp, warp_picture, warp_targets

Pixels = npt.NDArray[np.uint8]
Target = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PairSample:
    """One training pair.

    Attributes:
        image0: ``[S, S, 3]`` RGB.
        image1: ``[S, S, 3]`` RGB.
        target0: ``[3, h, w]``: x and y in picture 1, of [0, 1], and soft mask, per cell of
            picture 0. Coordinates count only where the mask does.
        target1: The same for picture 1.
    """

    image0: Pixels
    image1: Pixels
    target0: Target
    target1: Target


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs.

    Attributes:
        image0: uint8 ``[B, 3, H, W]``; divide by 255 on the device that uses them.
        image1: uint8 ``[B, 3, H, W]``.
        target0: float32 ``[B, 3, h, w]``, see :class:`PairSample`.
        target1: float32 ``[B, 3, h, w]``.
    """

    image0: Tensor
    image1: Tensor
    target0: Tensor
    target1: Tensor

    def __len__(self) -> int:
        """Pairs."""
        return len(self.image0)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PairBatch:
        """Give the batch on another device."""
        moved = (
            getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("image0", "image1", "target0", "target1")
        )
        return PairBatch(*moved)

    def pin_memory(self) -> PairBatch:
        """Give the batch in pinned memory; a DataLoader calls this."""
        return PairBatch(
            self.image0.pin_memory(),
            self.image1.pin_memory(),
            self.target0.pin_memory(),
            self.target1.pin_memory(),
        )

    def swapped(self) -> PairBatch:
        """Exchange the pictures' roles."""
        return PairBatch(self.image1, self.image0, self.target1, self.target0)


def collate(samples: Sequence[PairSample]) -> PairBatch:
    """Stack samples of one size.

    Raises:
        ShapeError: They differ in size, or there are none.
    """
    sizes = {(sample.image0.shape, sample.image1.shape) for sample in samples}
    if len(sizes) != 1:
        raise ShapeError(
            f"collate: samples must be pairs of one size, got {sorted(sizes)}.", actual=sizes
        )

    def images(name: str) -> Tensor:
        stacked = np.stack([getattr(sample, name) for sample in samples])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()

    def targets(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    return PairBatch(images("image0"), images("image1"), targets("target0"), targets("target1"))


def pair_rng(seed: int, index: int, stage: int = 0) -> np.random.Generator:
    """Generator of one pair: the same for the same numbers, whoever asks and in what order."""
    return np.random.default_rng((seed, index, stage))


def make_pair(
    source: SceneSource,
    recipe: PairRecipe,
    seed: int,
    index: int,
    *,
    pictures: PictureCache | None = None,
    times: StageTimes | None = None,
) -> ComposedPair:
    """Compose pair ``index`` of ``seed``, without style and warp; see :func:`compose_pair`."""
    rng = pair_rng(seed, index)
    return compose_pair(source, recipe, rng, pictures=pictures, times=times)


def augment_pair(
    sample: PairSample, recipe: PairRecipe, rng: np.random.Generator, times: StageTimes
) -> PairSample:
    """Warp picture 1 with the recipe's probability."""
    if float(rng.random()) >= recipe.tps_probability:
        return sample
    with times.stage("thin-plate warp"):
        warp = draw_warp(rng, recipe.tps_grids)
        published = recipe.keeps("T15")
        target0, target1 = warp_targets(sample.target0, sample.target1, warp, published=published)
        image1 = warp_picture(sample.image1, warp.forward, published=published)
    return PairSample(sample.image0, image1, target0, target1)


class GeneratedPairs(Dataset[PairSample]):
    """Pairs made when they are asked for; nothing is stored.

    Item ``index`` depends on the source, the recipe, the seed and ``index`` alone, not on the
    worker or the order. Any index from 0 on is valid, so that a sampler may run for ever.
    """

    def __init__(
        self,
        source: SceneSource,
        recipe: PairRecipe | None = None,
        *,
        seed: int = 0,
        length: int = 100_000,
        stylist: Stylist | None = None,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        """Describe the pairs.

        Args:
            source: Where photographs and objects come from.
            recipe: Sizes and ranges; by default the published ones.
            seed: Of everything that is drawn.
            length: What ``len`` says.
            stylist: Re-draws pictures; by default statistics of the source's own photographs.
            cache_bytes: Memory for decoded photographs, in each worker.
        """
        self.source = source
        self.recipe = recipe if recipe is not None else PairRecipe()
        self.seed = seed
        self.length = length
        self.pictures = PictureCache(cache_bytes)
        self.stylist = stylist or StatisticsStylist(source.photographs, self.pictures)
        self.times = StageTimes()

    def __len__(self) -> int:
        """Give the length that was asked for."""
        return self.length

    def __getitem__(self, index: int) -> PairSample:
        """Make one pair.

        Raises:
            DatasetError: See :func:`compose_pair`.
        """
        recipe = self.recipe
        pair = make_pair(
            self.source, recipe, self.seed, index, pictures=self.pictures, times=self.times
        )
        rng = pair_rng(self.seed, index, 1)
        styled = rng.random(2) < recipe.style_probability
        image0, image1 = pair.image0, pair.image1
        with self.times.stage("style"):
            if styled[0]:
                image0 = self.stylist(image0, rng)
            if styled[1]:
                image1 = self.stylist(self.to_style(pair), rng)
        sample = PairSample(image0, image1, pair.target0, pair.target1)
        return augment_pair(sample, recipe, rng, self.times)

    def to_style(self, pair: ComposedPair) -> Pixels:
        """Give what a stylised picture 1 is made from; fault T2 takes the background alone."""
        plain = pair.num_objects == 2 and self.recipe.keeps("T2")
        return pair.plain1 if plain else pair.image1


class StoredPairs(Dataset[PairSample]):
    """Pairs of folders in the published layout.

    Each item takes its folder at random, each picture plain or stylised at random, and warps
    picture 1 as the recipe says. Item ``index`` of one epoch depends on the seed alone.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        recipe: PairRecipe | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """Look into the folders.

        Args:
            folders: All of the same kind; the shortest one sets the length.
            recipe: Of its values, ``style_probability``, ``tps_probability``, ``tps_grids``,
                ``compat`` are used.
            seed: Of everything that is drawn.

        Raises:
            DatasetError: A folder holds no pairs.
        """
        self.recipe = recipe if recipe is not None else PairRecipe()
        self.seed = seed
        faulty = self.recipe.keeps("T8")
        self.folders = tuple(PairFolder(Path(folder)) for folder in folders)
        if not self.folders:
            raise DatasetError("StoredPairs: folders must hold at least one folder, got none.")
        self.length = min(
            folder.published_length() if faulty else len(folder) for folder in self.folders
        )
        self.epoch = 0

    def __len__(self) -> int:
        """Pairs of one epoch."""
        return self.length

    def __getitem__(self, index: int) -> PairSample:
        """Read one pair.

        Raises:
            DatasetError: A file of it is missing or damaged.
            IndexError: There are fewer pairs.
        """
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = pair_rng(self.seed, index, 2 + self.epoch)
        folder = self.folders[rng.integers(len(self.folders))]
        styled = rng.random(2) < self.recipe.style_probability
        number = folder.numbers[index]
        target0, target1 = folder.targets(number)
        names = ("as" if styled[0] else "a", "bs" if styled[1] else "b")
        image0, image1 = (read_image(folder.picture(number, name)) for name in names)
        for image, target in ((image0, target0), (image1, target1)):
            expected = (target.shape[1] * STRIDE, target.shape[2] * STRIDE)
            if image.shape[:2] != expected:
                raise DatasetError(
                    f"StoredPairs: pictures of pair {number} must be {expected} to fit their "
                    f"annotation, got {image.shape[:2]}.",
                    path=folder.path,
                    record=number,
                )
        sample = PairSample(image0, image1, target0, target1)
        return augment_pair(sample, self.recipe, rng, StageTimes())

    def for_epoch(self, epoch: int) -> StoredPairs:
        """Give the same pairs with other random choices."""
        other = StoredPairs.__new__(StoredPairs)
        other.__dict__.update(self.__dict__)
        other.epoch = epoch
        return other


def resized(recipe: PairRecipe, size: int) -> PairRecipe:
    """Give the recipe for another picture size; ``min_cells`` keeps its share of the grid."""
    share = (size / recipe.size) ** 2
    return replace(recipe, size=size, min_cells=recipe.min_cells * share)
