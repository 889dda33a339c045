# SPDX-License-Identifier: Apache-2.0
"""Laying out panels and lettering on a white sheet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from patchword.viz.style import GREY, INK, PAPER, Color, font, viridis

MARGIN = 20
TEXT_PX = 17
SMALL_PX = 12
LINE_PX = 26


def sheet(height: int, width: int) -> NDArray[np.uint8]:
    """Give a white array ``[height, width, 3]``."""
    return np.full((height, width, 3), PAPER, dtype=np.uint8)


def fit(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Scale ``size`` to the largest (H, W) inside ``box``, keeping its proportions; at least 1."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def place(canvas: NDArray[np.uint8], panel: NDArray[np.uint8], top: int, left: int) -> None:
    """Copy ``panel`` onto ``canvas``."""
    canvas[top : top + panel.shape[0], left : left + panel.shape[1]] = panel


def one_line(text: str, max_chars: int = 48) -> str:
    """Put a phrase on one line, control characters out, the end cut off with an ellipsis."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"


class Pen:
    """Writes on a canvas in place."""

    def __init__(self, canvas: NDArray[np.uint8]) -> None:
        """Start writing on ``canvas``, which changes when :meth:`done` is called."""
        self._canvas = canvas
        self._image = Image.fromarray(canvas)
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = TEXT_PX,
        color: Color = INK,
        bold: bool = False,
        anchor: str = "lm",
    ) -> float:
        """Write ``words`` with their anchor at (x, y) and return their width in pixels."""
        face = font(size, bold=bold)
        self._draw.text((x, y), words, fill=color, font=face, anchor=anchor)
        return face.getlength(words)

    def swatch(self, x: float, y: float, color: Color, size: int = 16) -> None:
        """Draw a small square of colour whose left centre is (x, y)."""
        box = (x, y - size / 2, x + size, y + size / 2)
        self._draw.rounded_rectangle(box, radius=3, fill=color)

    def color_bar(self, x: float, y: float, width: int, low: str, high: str) -> None:
        """Draw a viridis bar whose right end is at x, with its end values beside it."""
        right = x - self.text(x, y, high, size=SMALL_PX, anchor="rm") - 8
        ramp = np.tile(viridis(np.linspace(0, 1, width)), (10, 1, 1))
        self._image.paste(Image.fromarray(ramp), (round(right - width), round(y - 5)))
        self.text(right - width - 8, y, low, size=SMALL_PX, anchor="rm")

    def footer(self, x: float, y: float, words: str) -> None:
        """Write where a picture comes from, small and grey, its left centre at (x, y)."""
        self.text(x, y, one_line(words, 110), size=SMALL_PX - 1, color=GREY)

    def done(self) -> None:
        """Put what was written onto the canvas."""
        self._canvas[:] = np.asarray(self._image)
