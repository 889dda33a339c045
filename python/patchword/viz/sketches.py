# SPDX-License-Identifier: Apache-2.0
"""Ink coloured by what it shows: at the sketch's own size, on a sheet with legend, one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patchword.viz import canvas
from patchword.viz.canvas import LINE_PX, MARGIN, SMALL_PX, TEXT_PX, Pen, one_line
from patchword.viz.masks import resize_image
from patchword.viz.style import FOOTER, GREY, INK, PAPER, font, phrase_colors

_PANEL_BOX = (640, 800)
_TILE_BOX = (300, 300)
_MAX_LEGEND = 24
_UNASSIGNED = (0, 0, 0)
_FADED = (214, 214, 214)


def color_ink(
    labels: NDArray[np.integer], ink: NDArray[np.bool_], texts: Sequence[str]
) -> NDArray[np.uint8]:
    """Colour each ink pixel by its category: ``[H, W, 3]``; paper white, unassigned ink black.

    Args:
        labels: ``[H, W]``, -1 where no category is assigned.
        ink: ``[H, W]``.
        texts: The categories; equal ones have equal colours in every picture.
    """
    # Label -1 reads the last row.
    table = np.vstack([phrase_colors(texts), np.array([_UNASSIGNED], np.uint8)])
    out = canvas.sheet(*ink.shape)
    out[ink] = table[labels[ink]]
    return out


def sketch_overlay(
    labels: NDArray[np.integer],
    ink: NDArray[np.bool_],
    texts: Sequence[str],
    *,
    footer: str = FOOTER,
) -> NDArray[np.uint8]:
    """Draw coloured ink beside a legend with each category's share of the ink.

    The legend lists categories by share, those beyond 24 as a count; grey ones have no ink.

    Args:
        labels: ``[H, W]``, -1 where no category is assigned.
        ink: ``[H, W]``.
        texts: The categories.
        footer: Small grey line: which picture, which network.

    Returns:
        uint8 RGB.
    """
    size = canvas.fit((ink.shape[0], ink.shape[1]), _PANEL_BOX)
    panel = resize_image(color_ink(labels, ink, texts), size)
    counts = np.bincount(labels[ink].astype(np.int64) + 1, minlength=len(texts) + 1)
    shares = counts / max(1, int(ink.sum()))
    order = [int(k) for k in np.argsort(-shares[1:], kind="stable")]
    shown = order[:_MAX_LEGEND]
    words = [one_line(texts[k], 40) for k in shown]
    legend_width = round(max(font(TEXT_PX).getlength(w) for w in ["not assigned", *words])) + 104
    top = max(size[0], LINE_PX * (len(shown) + 3))
    width = max(MARGIN + size[1] + MARGIN + legend_width, 520)
    picture = canvas.sheet(MARGIN + top + 38, width)
    canvas.place(picture, panel, MARGIN, MARGIN)
    pen = Pen(picture)
    left, right, line = MARGIN + size[1] + MARGIN, width - MARGIN, MARGIN + 10
    pen.text(left, line, "category", size=SMALL_PX, color=GREY)
    pen.text(right, line, "of the ink", size=SMALL_PX, color=GREY, anchor="rm")
    rows = [(phrase_colors(texts)[k], texts[k], shares[k + 1]) for k in shown]
    if counts[0]:
        rows.append((np.array(_UNASSIGNED), "not assigned", shares[0]))
    for color, text, share in rows:
        line += LINE_PX
        ink_color = INK if share > 0 else GREY
        pen.swatch(left, line, (int(color[0]), int(color[1]), int(color[2])))
        pen.text(left + 24, line, one_line(text, 40), color=ink_color)
        pen.text(right, line, f"{100 * share:.0f} %", anchor="rm", color=ink_color)
    if len(order) > len(shown):
        more = f"and {len(order) - len(shown)} more"
        pen.text(left, line + LINE_PX, more, size=SMALL_PX, color=GREY)
    pen.footer(MARGIN, picture.shape[0] - 13, footer)
    pen.done()
    return picture


def isolated_sheet(
    scores: NDArray[np.floating],
    ink: NDArray[np.bool_],
    text: str,
    color: NDArray[np.uint8],
    thresholds: Sequence[float],
) -> NDArray[np.uint8]:
    """Draw one category alone: a panel a threshold, in colour where its score reaches it.

    Args:
        scores: ``[H, W]`` of the category.
        ink: ``[H, W]``.
        text: The category.
        color: ``[3]`` RGB, as in the legend.
        thresholds: At least one.

    Returns:
        uint8 RGB.
    """
    size = canvas.fit((ink.shape[0], ink.shape[1]), _TILE_BOX)
    step = size[1] + MARGIN
    sheet = canvas.sheet(size[0] + 2 * MARGIN + LINE_PX, MARGIN + step * len(thresholds))
    for index, threshold in enumerate(thresholds):
        panel = np.full((*ink.shape, 3), PAPER, np.uint8)
        panel[ink] = _FADED
        panel[ink & (scores >= threshold)] = color
        canvas.place(sheet, resize_image(panel, size), MARGIN, MARGIN + index * step)
    pen = Pen(sheet)
    for index, threshold in enumerate(thresholds):
        words = f"{one_line(text, 24)}, from {threshold:g}"
        pen.text(MARGIN + index * step, MARGIN + size[0] + LINE_PX / 2 + 4, words, size=SMALL_PX)
    pen.done()
    return sheet
