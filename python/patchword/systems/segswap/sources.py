# SPDX-License-Identifier: Apache-2.0
"""Where backgrounds and objects come from: labelled folders, cut-outs, or plain photographs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from patchword.data.folders import list_images
from patchword.data.io import printable
from patchword.errors import DatasetError, OptionError
from patchword.systems.segswap.outlines import BlobOutline, Outline, RegionOutline


@dataclass(frozen=True)
class Scene:
    """What one pair is made of.

    Attributes:
        background: Photograph that objects are pasted into.
        foreground: Photograph that holds the objects.
        outlines: One or two objects of ``foreground``.
    """

    background: Path
    foreground: Path
    outlines: tuple[Outline, ...]


class SceneSource(Protocol):
    """Draws scenes; it holds no pictures, only where they are."""

    @property
    def photographs(self) -> Sequence[Path]:
        """Every photograph, in a fixed order."""
        ...

    def offers(self, count: int) -> bool:
        """Tell whether scenes of ``count`` objects can be drawn."""
        ...

    def draw(self, rng: np.random.Generator, count: int, *, any_category: bool = False) -> Scene:
        """Draw a scene of ``count`` objects (1 or 2).

        Args:
            rng: Where randomness comes from.
            count: Objects that the pair shares.
            any_category: Allow a single object of a category that the background holds too
                (fault T6).
        """
        ...


Instance = tuple[Path, Outline]
T = TypeVar("T")


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """Draw one element, all with equal probability."""
    return choices[int(rng.integers(len(choices)))]


@dataclass(frozen=True)
class CatalogueSource:
    """Photographs whose objects are known, with the published way of drawing them.

    A single object: a background; a category that it does not hold; an object of it. Two objects:
    any background; a photograph with two categories or more; two of them; an object of each.

    Attributes:
        photographs: Every photograph that may be a background.
        categories: Categories of a photograph; a missing one has none.
        objects: Objects of a category.
        grouped: Per photograph with two categories or more, its objects by category.
    """

    photographs: Sequence[Path]
    categories: Mapping[Path, frozenset[str]]
    objects: Mapping[str, Sequence[Instance]]
    grouped: Sequence[tuple[Path, Mapping[str, Sequence[Outline]]]]
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Fix the order of the categories and refuse an empty catalogue.

        Raises:
            DatasetError: There is no photograph or no object.
        """
        object.__setattr__(self, "_names", tuple(sorted(self.objects)))
        if not self.photographs or not self._names:
            raise DatasetError(
                "CatalogueSource: there must be photographs and objects, got "
                f"{len(self.photographs)} and {sum(map(len, self.objects.values()))}."
            )

    def offers(self, count: int) -> bool:
        """Tell whether scenes of ``count`` objects can be drawn."""
        return count == 1 or bool(self.grouped)

    def draw(self, rng: np.random.Generator, count: int, *, any_category: bool = False) -> Scene:
        """Draw a scene, see :meth:`SceneSource.draw`.

        Raises:
            DatasetError: Every category is in every background.
        """
        if count == 2:
            background = pick(rng, self.photographs)
            photograph, by_category = pick(rng, self.grouped)
            names = sorted(by_category)
            chosen = rng.choice(len(names), size=2, replace=False)
            outlines = tuple(pick(rng, by_category[names[k]]) for k in chosen)
            return Scene(background, photograph, outlines)
        for _ in range(1000):
            background = pick(rng, self.photographs)
            taken = frozenset() if any_category else self.categories.get(background, frozenset())
            names = [name for name in self._names if name not in taken]
            if names:
                instances = self.objects[pick(rng, names)]
                foreground, outline = pick(rng, instances)
                return Scene(background, foreground, (outline,))
        raise DatasetError(
            "CatalogueSource: some photograph must lack some category, but none of 1000 drawn did. "
            "Add photographs without objects."
        )


@dataclass(frozen=True)
class RegionSource:
    """Photographs without labels: random blobs and pieces of similar colour serve as objects.

    Attributes:
        photographs: At least two.
        blobs: Share of objects that are blobs; the others follow the picture's colours.
        radius: Smallest and largest mean radius of a blob relative to the shorter side.
        num_seeds: Fewest and most pieces that a picture is divided into.
    """

    photographs: Sequence[Path]
    blobs: float = 0.5
    radius: tuple[float, float] = (0.10, 0.30)
    num_seeds: tuple[int, int] = (6, 24)

    def __post_init__(self) -> None:
        """Refuse a source that cannot keep object and background apart.

        Raises:
            DatasetError: There are fewer than two photographs.
        """
        if len(self.photographs) < 2:
            raise DatasetError(
                f"RegionSource: there must be at least 2 photographs, got {len(self.photographs)}."
            )

    @classmethod
    def from_folder(cls, folder: str | Path, **options: float) -> RegionSource:
        """Use every picture below a folder.

        Raises:
            DatasetError: The folder cannot be read or holds fewer than two pictures.
        """
        return cls(tuple(list_images(folder)), **options)  # type: ignore[arg-type]

    def offers(self, count: int) -> bool:
        """One or two objects, always."""
        return count in (1, 2)

    def draw(self, rng: np.random.Generator, count: int, *, any_category: bool = False) -> Scene:
        """Draw two photographs and ``count`` pieces of one of them, in its left and right half."""
        first, second = rng.choice(len(self.photographs), size=2, replace=False)
        background, foreground = self.photographs[first], self.photographs[second]
        outlines = []
        for k in range(count):
            x, y = rng.uniform(0.15, 0.85, 2)
            if count == 2:
                x = 0.15 + (x - 0.15) * 0.4 + 0.42 * k
            outlines.append(self._outline(rng, (float(x), float(y)), 1.0 if count == 1 else 0.5))
        return Scene(background, foreground, tuple(outlines))

    def _outline(
        self, rng: np.random.Generator, center: tuple[float, float], share: float
    ) -> Outline:
        seed = int(rng.integers(2**31))
        if rng.random() < self.blobs:
            return BlobOutline(seed, center, float(rng.uniform(*self.radius)) * share)
        pieces = int(rng.integers(self.num_seeds[0], self.num_seeds[1] + 1))
        return RegionOutline(seed, center, pieces if share == 1.0 else 2 * pieces)


@dataclass(frozen=True)
class MixedSource:
    """Several sources, each drawn from with its own weight.

    Attributes:
        sources: What to draw from.
        weights: Positive, one per source; they need not sum to one.
        share_backgrounds: Take the background from all photographs with equal probability, not
            only from those of the source that gave the object. Objects and background then never
            come from the same photograph, but categories are no longer kept apart.
    """

    sources: Sequence[SceneSource]
    weights: Sequence[float]
    share_backgrounds: bool = True

    def __post_init__(self) -> None:
        """Check the weights.

        Raises:
            OptionError: They do not fit the sources or are not positive.
        """
        if len(self.sources) != len(self.weights) or not self.sources or min(self.weights) <= 0:
            raise OptionError(
                "MixedSource: weights must be one positive number per source, got "
                f"{list(self.weights)} for {len(self.sources)} sources."
            )
        pooled = dict.fromkeys(path for source in self.sources for path in source.photographs)
        object.__setattr__(self, "photographs", tuple(pooled))

    photographs: Sequence[Path] = field(init=False, repr=False)

    def offers(self, count: int) -> bool:
        """Tell whether any source can draw ``count`` objects."""
        return any(source.offers(count) for source in self.sources)

    def draw(self, rng: np.random.Generator, count: int, *, any_category: bool = False) -> Scene:
        """Draw a source that offers ``count`` objects, then a scene from it."""
        able = [k for k, source in enumerate(self.sources) if source.offers(count)]
        weights = np.array([self.weights[k] for k in able], dtype=np.float64)
        source = self.sources[able[rng.choice(len(able), p=weights / weights.sum())]]
        scene = source.draw(rng, count, any_category=any_category)
        if not self.share_backgrounds:
            return scene
        background = scene.foreground
        while background == scene.foreground:
            background = pick(rng, self.photographs)
        return Scene(background, scene.foreground, scene.outlines)


def catalogue(
    photographs: Iterable[Path], instances: Iterable[tuple[Path, str, Outline]]
) -> CatalogueSource:
    """Make a catalogue of objects given as (photograph, category, outline).

    Raises:
        DatasetError: There is no photograph or no object.
    """
    objects: dict[str, list[Instance]] = {}
    by_picture: dict[Path, dict[str, list[Outline]]] = {}
    for path, category, outline in instances:
        objects.setdefault(category, []).append((path, outline))
        by_picture.setdefault(path, {}).setdefault(category, []).append(outline)
    return CatalogueSource(
        photographs=tuple(photographs),
        categories={path: frozenset(found) for path, found in by_picture.items()},
        objects=objects,
        grouped=tuple((path, found) for path, found in by_picture.items() if len(found) > 1),
    )


def require_file(path: Path, what: str) -> Path:
    """Give ``path`` if there is such a file.

    Raises:
        DatasetError: There is none.
    """
    if not path.is_file():
        raise DatasetError(f"{what} {printable(path)}: there is no such file.", path=path)
    return path
