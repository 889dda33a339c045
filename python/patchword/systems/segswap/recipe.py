# SPDX-License-Identifier: Apache-2.0
"""How training pairs are made: the published values, and which published faults to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from patchword.errors import OptionError

STRIDE = 16
"""Pixels per cell of the stored masks and correspondences."""

DATA_FAULTS: dict[str, str] = {
    "T2": "the stylised composite of two objects shows the plain background",
    "T5": "negative angles turn the object by at most a quarter of a degree",
    "T6": "objects of the background's own categories may be pasted",
    "T8": "the last quarter of a folder of stored pairs is never read",
    "T14": "correspondences of two objects are zero outside them, the first mask is thinned twice",
    "T15": "the thin-plate warp uses an inconsistent lattice and a refitted inverse",
    "T16": "the object is pasted one or two pixels away from the recorded place",
}
"""Faults of the published data pipeline, by their number in the card."""

PUBLISHED_DATA = frozenset(DATA_FAULTS)
"""All of them: the published behaviour."""

# Published: ten scales, the k-th with a probability proportional to exp(-k / 10).
_NUM_SCALES = 10


@dataclass(frozen=True)
class PairRecipe:
    """Numbers that a generated pair depends on, beside the pictures and the seed.

    Attributes:
        size: Height and width of both pictures in pixels, a multiple of 16.
        two_objects: Probability of pairs that share two objects, where the pictures allow it.
        aspect_min: Each axis of an object is scaled by a factor from [aspect_min, 1].
        angle_min: Smallest rotation in degrees; positive is counter-clockwise on the screen.
        angle_max: Largest rotation.
        scale_one: Smallest and largest size of a single object relative to the picture.
        scale_two: The same for one of two objects, relative to its box.
        dilation: Steps of the cross-shaped dilation of an object's outline, in pixels of the
            photograph; the published code makes at least one.
        border_crop: Probability of cutting the photograph so that the object touches its border.
        min_cells: Smallest sum of a mask over cells.
        min_contrast: Smallest standard deviation of an object's brightness (0 to 255). The
            published recipe has none; random pieces of photographs are often plain sky.
        blend: ``"poisson"`` solves the equation of OpenCV's seamless cloning with a faster solver,
            ``"opencv"`` calls OpenCV, ``"feather"`` fades the object in over three pixels.
        style_probability: Each picture is stylised with this probability when pairs are used.
        tps_probability: The second picture is warped with this probability when pairs are used.
        tps_grids: Control points per side, one of these at random.
        compat: Keys of :data:`DATA_FAULTS` to reproduce; by default none.

    Raises:
        OptionError: A value is out of range.
    """

    size: int = 480
    two_objects: float = 0.5
    aspect_min: float = 0.7
    angle_min: float = -15.0
    angle_max: float = 15.0
    scale_one: tuple[float, float] = (0.2, 1.0)
    scale_two: tuple[float, float] = (0.5, 1.0)
    dilation: int = 20
    border_crop: float = 0.2
    min_cells: float = 9.0
    min_contrast: float = 0.0
    blend: Literal["poisson", "opencv", "feather"] = "poisson"
    style_probability: float = 0.5
    tps_probability: float = 0.5
    tps_grids: tuple[int, ...] = (4, 6)
    compat: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Check every value."""
        if self.size < 2 * STRIDE or self.size % STRIDE:
            raise OptionError(
                f"PairRecipe: size must be a multiple of {STRIDE} from {2 * STRIDE} on, "
                f"got {self.size}."
            )
        for name in ("two_objects", "border_crop", "style_probability", "tps_probability"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise OptionError(f"PairRecipe: {name} must be in [0, 1], got {value}.")
        if not 0 < self.aspect_min <= 1:
            raise OptionError(f"PairRecipe: aspect_min must be in (0, 1], got {self.aspect_min}.")
        if not -180 <= self.angle_min <= self.angle_max <= 180:
            raise OptionError(
                "PairRecipe: angles must satisfy -180 <= angle_min <= angle_max <= 180, got "
                f"{self.angle_min} and {self.angle_max}."
            )
        if self.compat & {"T5", "T16"} and max(-self.angle_min, self.angle_max) > 90:
            raise OptionError(
                "PairRecipe: with T5 or T16 in compat, angles must be in [-90, 90], got "
                f"{self.angle_min} and {self.angle_max}."
            )
        for name in ("scale_one", "scale_two"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise OptionError(
                    f"PairRecipe: {name} must satisfy 0 < low <= high <= 1, got {low} and {high}."
                )
        if self.min_contrast < 0:
            raise OptionError(
                f"PairRecipe: min_contrast must be at least 0, got {self.min_contrast}."
            )
        if self.dilation < 0:
            raise OptionError(f"PairRecipe: dilation must be at least 0, got {self.dilation}.")
        if not self.tps_grids or min(self.tps_grids) < 2:
            raise OptionError(
                f"PairRecipe: tps_grids must be numbers from 2 on, got {self.tps_grids}."
            )
        unknown = sorted(self.compat - DATA_FAULTS.keys())
        if unknown:
            raise OptionError(
                f"PairRecipe: compat must name some of {sorted(DATA_FAULTS)}, got {unknown}."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Cells ``(h, w)`` of masks and correspondences."""
        return (self.size // STRIDE, self.size // STRIDE)

    def keeps(self, fault: str) -> bool:
        """Tell whether a published fault is reproduced."""
        return fault in self.compat


def scale_probabilities() -> npt.NDArray[np.float64]:
    """Probabilities of the ten object scales, smallest scale first, ``[10]``."""
    weights = np.exp(-np.arange(_NUM_SCALES) / _NUM_SCALES)
    probabilities: npt.NDArray[np.float64] = weights / weights.sum()
    return probabilities


def draw_scale(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """Draw an object scale: small ones are more frequent."""
    scales = np.linspace(limits[0], limits[1], _NUM_SCALES)
    return float(scales[rng.choice(_NUM_SCALES, p=scale_probabilities())])
