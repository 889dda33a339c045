# SPDX-License-Identifier: Apache-2.0
"""A picture with what each phrase points at: labelled regions, a legend, heat maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patchword.viz import canvas
from patchword.viz.canvas import LINE_PX, MARGIN, SMALL_PX, TEXT_PX, Pen, one_line
from patchword.viz.masks import (
    overlay_labels,
    present_labels,
    resize_image,
    resize_labels,
    resize_mask,
)
from patchword.viz.style import FOOTER, GREY, INK, font, phrase_colors, viridis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from patchword.structures import LocateResult

_PANEL_BOX = (600, 800)
_TILE_BOX = (190, 250)
_MAX_TILES = 8
_MAX_LEGEND = 24
_BLANK = 225


def heatmap_pixels(heatmap: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Quantise a heat map in [0, 1] to bytes; 255 is 1 and NaN is 0."""
    clipped = np.nan_to_num(np.clip(heatmap, 0, 1), nan=0.0)
    pixels: NDArray[np.uint8] = np.rint(clipped * 255).astype(np.uint8)
    return pixels


def locate_overlay(result: LocateResult, *, footer: str = FOOTER) -> NDArray[np.uint8]:
    """Draw the picture with labelled regions, a legend with scores, and a strip of heat maps.

    The strip holds the best eight phrases over one shared range; the legend lists phrases by
    score, those beyond 24 as a count.

    Args:
        result: What to draw.
        footer: Small grey line: which picture, which network.

    Returns:
        uint8 RGB.
    """
    image = _image(result)
    size = canvas.fit(result.labels.shape, _PANEL_BOX)
    colors = phrase_colors(result.texts)
    panel = overlay_labels(resize_image(image, size), resize_labels(result.labels, size), colors)
    order = _by_score(result)
    legend = [f"{one_line(result.texts[k], 40)}" for k in order[:_MAX_LEGEND]]
    words = [*legend, "matching region"]
    legend_width = round(max(font(TEXT_PX).getlength(w) for w in words)) + 104
    tiles = _tiles(result, image, order[:_MAX_TILES])
    per_row = max(1, (size[1] + MARGIN + legend_width + 10) // (_tile_width(tiles) + 10))
    rows = [tiles[i : i + per_row] for i in range(0, len(tiles), per_row)]
    top_height = max(size[0], LINE_PX * (len(order[: _MAX_LEGEND + 1]) + 2))
    tile_height = max((tile.shape[0] for tile, _ in tiles), default=0) + LINE_PX
    row_width = max((sum(t.shape[1] + 10 for t, _ in row) for row in rows), default=0)
    width = max(MARGIN + size[1] + MARGIN + legend_width, MARGIN + row_width + MARGIN, 520)
    height = MARGIN + top_height + 14 + tile_height * len(rows) + 24
    picture = canvas.sheet(height, width)
    canvas.place(picture, panel, MARGIN, MARGIN)
    for index, row in enumerate(rows):
        left = MARGIN
        for tile, _ in row:
            canvas.place(picture, tile, MARGIN + top_height + 14 + index * tile_height, left)
            left += tile.shape[1] + 10

    pen = Pen(picture)
    _legend(pen, result, order, colors, (MARGIN + size[1] + MARGIN, width - MARGIN))
    for index, row in enumerate(rows):
        left, line = MARGIN, MARGIN + top_height + 14 + (index + 1) * tile_height - 15
        for tile, k in row:
            pen.text(left, line, _fitted(result.texts[k], tile.shape[1]), size=SMALL_PX)
            left += tile.shape[1] + 10
    pen.footer(MARGIN, height - 13, footer)
    pen.color_bar(width - MARGIN, height - 13, 120, "response 0", "1")
    pen.done()
    return picture


def locate_figure(result: LocateResult, *, footer: str = FOOTER) -> Figure:
    """Draw labels with a legend and one heat map per phrase (at most eight) in matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    order = _by_score(result)
    shown = order[:_MAX_TILES]
    colors = phrase_colors(result.texts)
    image = _image(result)
    figure = Figure(figsize=(3.2 * (1 + len(shown)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    axes[0].imshow(overlay_labels(image, result.labels, colors))
    axes[0].legend(
        handles=[
            Patch(
                color=colors[k] / 255,
                label=f"{one_line(result.texts[k], 24)}  {result.scores[k]:.2f}",
            )
            for k in order[:_MAX_LEGEND]
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.02),
        frameon=False,
        fontsize=8,
    )
    for ax, k in zip(axes[1:], shown, strict=True):
        ax.imshow(_blend_heat(image, result.heatmaps[k]))
        ax.set_title(one_line(result.texts[k], 28), size=9)
    for ax in axes:
        ax.set_axis_off()
    if shown:
        mappable = ScalarMappable(Normalize(0, 1), "viridis")
        figure.colorbar(mappable, ax=list(axes[1:]), shrink=0.7).set_label("response")
    figure.text(0.995, 0.005, footer, ha="right", va="bottom", size=6, color="0.55")
    return figure


def _image(result: LocateResult) -> NDArray[np.uint8]:
    if result.image is not None:
        image: NDArray[np.uint8] = result.image
        return image
    return np.full((*result.labels.shape, 3), _BLANK, np.uint8)


def _by_score(result: LocateResult) -> list[int]:
    return [int(k) for k in np.argsort(-np.asarray(result.scores), kind="stable")]


def _blend_heat(image: NDArray[np.uint8], heatmap: NDArray[np.floating]) -> NDArray[np.uint8]:
    # The picture shows through in grey, so that its own colours are not read as heat.
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    blend: NDArray[np.uint8] = np.rint(0.35 * grey + 0.65 * viridis(heatmap)).astype(np.uint8)
    return blend


def _tiles(
    result: LocateResult, image: NDArray[np.uint8], order: list[int]
) -> list[tuple[NDArray[np.uint8], int]]:
    size = canvas.fit(result.labels.shape, _TILE_BOX)
    small = resize_image(image, size)
    return [(_blend_heat(small, resize_mask(result.heatmaps[k], size)), k) for k in order]


def _tile_width(tiles: list[tuple[NDArray[np.uint8], int]]) -> int:
    return tiles[0][0].shape[1] if tiles else 1


def _fitted(text: str, width: int) -> str:
    chars = 60
    while chars > 1 and font(SMALL_PX).getlength(one_line(text, chars)) > width:
        chars -= 1
    return one_line(text, chars)


def _legend(
    pen: Pen,
    result: LocateResult,
    order: list[int],
    colors: NDArray[np.uint8],
    edges: tuple[int, int],
) -> None:
    left, right = edges
    present = set(present_labels(result.labels))
    line = MARGIN + 10
    pen.text(left, line, "phrase", size=SMALL_PX, color=GREY)
    pen.text(right, line, "score", size=SMALL_PX, color=GREY, anchor="rm")
    for k in order[:_MAX_LEGEND]:
        line += LINE_PX
        red, green, blue = (int(c) for c in colors[k])
        pen.swatch(left, line, (red, green, blue))
        ink = INK if k in present else GREY
        pen.text(left + 24, line, one_line(result.texts[k], 40), color=ink)
        pen.text(right, line, f"{result.scores[k]:.2f}", anchor="rm", color=ink)
    notes = []
    if len(order) > _MAX_LEGEND:
        notes.append(f"and {len(order) - _MAX_LEGEND} more")
    if not present.issuperset(order):
        notes.append("grey: not found")
    pen.text(left, line + LINE_PX, ", ".join(notes), size=SMALL_PX, color=GREY)
