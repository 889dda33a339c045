# SPDX-License-Identifier: Apache-2.0
"""Which pixels of a sketch are ink, and whether a picture is a sketch at all."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from patchword.errors import DatasetError, OptionError
from patchword.structures import ImageArray

InkRule = Literal["luma", "red_zero", "not_white"]
InkMask = NDArray[np.bool_]

_LUMA = np.array([299, 587, 114], dtype=np.int32)
# A light pixel is at least so bright and at most so far from grey; a sketch is mostly such pixels
# even when it is dense, a photograph hardly ever.
_LIGHT, _CHROMA = 170, 40
_LEAST_PAPER = 0.4


def ink_mask(image: ImageArray, rule: InkRule = "luma", level: int = 128) -> InkMask:
    """Which pixels are ink.

    Args:
        image: uint8 ``[H, W, 3]``.
        rule: ``"luma"``: grey value below ``level``. ``"red_zero"``: red is exactly 0, as in the
            published demonstration, which turns grey edges into paper. ``"not_white"``: red is not
            exactly 255, as in the published application, which takes faint greys for ink.
        level: For ``"luma"``, 1 to 255.

    Raises:
        OptionError: ``rule`` or ``level`` is none of these.
    """
    if rule == "red_zero":
        return np.asarray(image[..., 0] == 0)
    if rule == "not_white":
        return np.asarray(image[..., 0] != 255)
    if rule != "luma" or not 1 <= level <= 255:
        raise OptionError(
            "ink_mask: rule must be luma, red_zero or not_white and level 1 to 255, got "
            f"{rule!r} and {level}."
        )
    red, green, blue = (image[..., channel].astype(np.int32) for channel in range(3))
    luma = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]
    return np.asarray(luma < level * 1000)


def check_sketch(image: ImageArray, ink: InkMask) -> None:
    """Refuse what is no sketch: a blank sheet, and a picture without much light paper.

    Raises:
        DatasetError: With the reason.
    """
    if not ink.any():
        raise DatasetError("locate: a sketch must have dark strokes, got a blank picture.")
    # Every eighth row and column are enough to see what a picture is.
    step = max(1, min(image.shape[:2]) // 64)
    sample = image[::step, ::step].astype(np.int16)
    light = (sample.min(axis=2) >= _LIGHT) & (np.ptp(sample, axis=2) <= _CHROMA)
    share = float(light.mean())
    if share < _LEAST_PAPER:
        raise DatasetError(
            "locate: a sketch must be dark strokes on light paper, got a picture with "
            f"{100 * share:.0f} % of light pixels. Invert white lines on black; for a photograph "
            "use the default model; --any-picture takes it as it is."
        )
