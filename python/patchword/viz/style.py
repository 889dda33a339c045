# SPDX-License-Identifier: Apache-2.0
"""Colours and lettering shared by every picture."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

Color = tuple[int, int, int]

INK: Color = (34, 34, 34)
GREY: Color = (140, 140, 140)
FOOTER = "patchword"
PAPER: Color = (255, 255, 255)
# The one region that two pictures share.
SHARED: Color = (213, 94, 0)

# Okabe and Ito's set for colour-blind readers without black, then five of Paul Tol's muted set.
_PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (51, 34, 136),
    (136, 34, 85),
    (153, 153, 51),
    (204, 102, 119),
    (68, 170, 153),
)
_FIRST_CHOICE = 7
_GOLDEN_RATIO = 0.618033988749895


def phrase_colors(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Choose a colour per phrase by its hash, so that it stays the same between runs.

    Phrases whose hashes collide move on to the next free colour, in an order that depends on the
    set of phrases only; distinct phrases never share one.

    Returns:
        ``[K, 3]`` RGB.
    """
    hashes = {text: _hash(text) for text in texts}
    chosen: dict[str, Color] = {}
    taken: set[Color] = set()
    for text in sorted(hashes, key=lambda t: (hashes[t], t)):
        chosen[text] = next(color for color in _candidates(hashes[text]) if color not in taken)
        taken.add(chosen[text])
    return np.array([chosen[text] for text in texts], dtype=np.uint8).reshape(-1, 3)


def _hash(text: str) -> int:
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little")


def _candidates(start: int) -> Iterator[Color]:
    for step in range(_FIRST_CHOICE):
        yield _PALETTE[(start + step) % _FIRST_CHOICE]
    yield from _PALETTE[_FIRST_CHOICE:]
    step = 0
    while True:
        hue = (start % 997 / 997 + step * _GOLDEN_RATIO) % 1
        red, green, blue = colorsys.hsv_to_rgb(
            hue, 0.45 + 0.5 * (step % 2), 0.55 + 0.2 * (step % 3)
        )
        yield (round(red * 255), round(green * 255), round(blue * 255))
        step += 1


@cache
def _viridis_table() -> NDArray[np.uint8]:
    import cv2

    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return np.ascontiguousarray(cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS)[:, 0, ::-1])


def viridis(values: NDArray[np.floating] | Sequence[float]) -> NDArray[np.uint8]:
    """Map values in [0, 1] (clipped; NaN is 0) to RGB of the viridis map, ``[..., 3]``."""
    scaled = np.nan_to_num(np.clip(np.asarray(values, dtype=np.float64), 0, 1), nan=0.0)
    return _viridis_table()[np.rint(scaled * 255).astype(np.uint8)]


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Give matplotlib's DejaVu Sans in ``size`` pixels, found without importing matplotlib."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("font: matplotlib must be installed, it carries the typeface.")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name, size)
