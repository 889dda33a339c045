# SPDX-License-Identifier: Apache-2.0
"""Gives a picture the colours and the texture contrast of another one, without any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from patchword.errors import DatasetError
from patchword.systems.segswap.pictures import PictureCache, squash

Pixels = npt.NDArray[np.uint8]
Planes = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

_LEVELS = 4
_GAIN = (0.3, 3.0)
# Lab scales beyond these turn noise of a flat picture into coloured speckle.
_COLOR_GAIN = (0.25, 2.5)


class Stylist(Protocol):
    """Re-draws a picture in a random style."""

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Give a new picture of the same size."""
        ...


@dataclass(frozen=True)
class StyleStatistics:
    """What is taken from a style picture, per Lab channel.

    Attributes:
        mean: Means, ``[3]``.
        spread: Standard deviations of the coarsest level, ``[3]``.
        contrast: Standard deviations of the finer levels, finest first, ``[L, 3]``.
    """

    mean: Vector
    spread: Vector
    contrast: Vector


def style_statistics(image: Pixels, size: int) -> StyleStatistics:
    """Measure a picture squashed to ``size`` x ``size``, that of what it is applied to."""
    bands, coarse = _bands(_to_lab(squash(image, size)))
    mean, spread = _moments(coarse)
    return StyleStatistics(mean, spread, np.stack([_moments(band)[1] for band in bands]))


def transfer_statistics(image: Pixels, style: StyleStatistics, strength: float) -> Pixels:
    """Move a picture's colour and contrast statistics towards those of a style.

    In Lab, each band of a Laplacian pyramid is scaled to the style's standard deviation and the
    coarsest level also shifted to its mean; gains are limited.

    Args:
        image: ``[H, W, 3]``.
        style: Of :func:`style_statistics`.
        strength: 0 leaves the picture as it is, 1 takes the statistics over.
    """
    bands, coarse = _bands(_to_lab(image))
    mean, spread = _moments(coarse)
    gain = 1.0 + strength * (np.clip(style.spread / (spread + 1.0), *_COLOR_GAIN) - 1.0)
    mixed = _scaled(coarse, gain, mean - gain * mean + strength * (style.mean - mean))
    for band, wanted in zip(reversed(bands), style.contrast[::-1], strict=True):
        scale = np.clip(wanted / (_moments(band)[1] + 0.25), *_GAIN)
        mixed = cv2.pyrUp(mixed, dstsize=(band.shape[1], band.shape[0]))
        mixed += _scaled(band, 1.0 + strength * (scale - 1.0), np.zeros(3))
    # Rounds, and keeps what leaves [0, 255] at its ends.
    lab = cv2.add(mixed, 0.0, dtype=cv2.CV_8U)
    rgb: Pixels = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return rgb


def _bands(lab: Planes) -> tuple[list[Planes], Planes]:
    bands = []
    for _ in range(_LEVELS):
        smaller = cv2.pyrDown(lab)
        bands.append(lab - cv2.pyrUp(smaller, dstsize=(lab.shape[1], lab.shape[0])))
        lab = smaller
    return bands, lab


def _moments(planes: Planes) -> tuple[Vector, Vector]:
    """Mean and standard deviation of each channel."""
    mean, deviation = cv2.meanStdDev(planes)
    return mean[:, 0], deviation[:, 0]


def _scaled(planes: Planes, factors: Vector, offsets: Vector) -> Planes:
    matrix = np.concatenate([np.diag(factors), offsets[:, None]], axis=1)
    scaled: Planes = cv2.transform(planes, matrix)
    return scaled


def _to_lab(image: Pixels) -> Planes:
    # Eight-bit Lab is ten times faster than float and exact enough for statistics and contrast.
    lab: Planes = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    return lab


class StatisticsStylist:
    """Styles drawn from a list of pictures, with a strength drawn from [0, 1]."""

    def __init__(self, styles: Sequence[Path], pictures: PictureCache | None = None) -> None:
        """Draw from ``styles``, each measured when first used.

        Raises:
            DatasetError: There are none.
        """
        if not styles:
            raise DatasetError(
                "StatisticsStylist: styles must hold at least one picture, got none."
            )
        self._styles = tuple(styles)
        self._pictures = pictures if pictures is not None else PictureCache()
        self._measured: dict[tuple[Path, int], StyleStatistics] = {}

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Stylise ``image`` after a random picture.

        Raises:
            DatasetError: The style picture cannot be read.
        """
        path = self._styles[rng.integers(len(self._styles))]
        strength = float(rng.random())
        key = (path, image.shape[0])
        if key not in self._measured:
            self._measured[key] = style_statistics(self._pictures.read(path), image.shape[0])
        return transfer_statistics(image, self._measured[key], strength)
