# SPDX-License-Identifier: Apache-2.0
"""How a query box in an artwork becomes the network's input; integers only, no pixels.

Boxes are ``(x0, y0, x1, y1)`` in pixels. Python's ``round`` takes halves to even, as the published
code does.
"""

from __future__ import annotations

from dataclasses import dataclass

from patchword.errors import OptionError

Box = tuple[int, int, int, int]
STRIDE = 16


@dataclass(frozen=True)
class QueryCrop:
    """What to do with the picture of a query.

    Attributes:
        resized: ``(H, W)`` to which the whole picture is resized.
        window: Part of the resized picture that the network sees.
        box: The query's box inside the window.
        cells: Cells of the window that belong to the query: ``(column0, row0, column1, row1)``,
            ends not included.
        grid: ``(h, w)`` of the window.
    """

    resized: tuple[int, int]
    window: Box
    box: Box
    cells: Box
    grid: tuple[int, int]


def query_crop(
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    *,
    query_size: int = 64,
    window_size: int = 640,
    compat: bool = False,
) -> QueryCrop:
    """Scale a picture so that a box gets the wanted size, and cut a window around it.

    The published rule brings the longest side of the box to ``query_size``, both sides to whole
    cells, and then enlarges each axis of the picture by itself to at least ``window_size``
    (trap T21): the picture is squashed, and a large box stays large. By default one factor serves
    both axes, nothing is enlarged for the window's sake, and the window of a small picture is
    smaller.

    Args:
        size: ``(H, W)`` of the picture.
        box: The query's box in it.
        query_size: Pixels that the longest side of the box gets.
        window_size: Side of the window.
        compat: Follow the published rule.

    Raises:
        OptionError: The box is empty or outside of the picture.
    """
    height, width = size
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise OptionError(
            f"query_crop: box must be x0 < x1 and y0 < y1 within {width} x {height} pixels, "
            f"got {list(box)}."
        )
    factor = query_size / max(x1 - x0, y1 - y0)
    if compat:
        new_w, new_h = (
            max(round(side * _whole_cells(extent * factor) / extent), window_size)
            for side, extent in ((width, x1 - x0), (height, y1 - y0))
        )
    else:
        new_w, new_h = (_floor_cells(side * factor, window_size) for side in (width, height))
    scaled = (
        round(x0 * new_w / width),
        round(y0 * new_h / height),
        max(round(x1 * new_w / width), round(x0 * new_w / width) + 1),
        max(round(y1 * new_h / height), round(y0 * new_h / height) + 1),
    )
    left, right = _window(scaled[0], scaled[2], new_w, window_size, whole=not compat)
    top, bottom = _window(scaled[1], scaled[3], new_h, window_size, whole=not compat)
    inside = (scaled[0] - left, scaled[1] - top, scaled[2] - left, scaled[3] - top)
    # A side that is no multiple of the stride gives one more cell: every layer rounds up.
    grid = (-(-(bottom - top) // STRIDE), -(-(right - left) // STRIDE))
    cells = (
        max(round(inside[0] / STRIDE - 1), 0),
        max(round(inside[1] / STRIDE - 1), 0),
        min(round(inside[2] / STRIDE + 1), grid[1]),
        min(round(inside[3] / STRIDE + 1), grid[0]),
    )
    return QueryCrop((new_h, new_w), (left, top, right, bottom), inside, cells, grid)


def _whole_cells(extent: float) -> int:
    return max(round(extent / STRIDE), 1) * STRIDE


def _floor_cells(extent: float, window_size: int) -> int:
    """Round to a pixel, or to whole cells where the window takes the whole side."""
    if extent >= window_size:
        return round(extent)
    return max(round(extent / STRIDE), 1) * STRIDE


def _window(start: int, end: int, side: int, window_size: int, *, whole: bool) -> tuple[int, int]:
    """A window of at most ``window_size`` around ``start..end``, shifted to stay inside."""
    if whole:
        length = min(window_size, side)
        first = (start + end - length) // 2
        first = min(max(first, 0), side - length)
        return first, first + length
    margin = (window_size - (end - start)) // 2
    first, last = start - margin, end + margin
    if first < 0:
        first, last = 0, last - first
    if last > side:
        first, last = first - (last - side), side
    return max(first, 0), last
