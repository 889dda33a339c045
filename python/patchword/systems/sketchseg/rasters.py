# SPDX-License-Identifier: Apache-2.0
"""Strokes as pixels the way the published evaluation draws them, and their label maps.

Source: the evaluation of Bourouis, Fan and Gryaditskaya, "Open Vocabulary Semantic Scene Sketch
Understanding", CVPR 2024; its lines are those of Bresenham, IBM Systems Journal 4(1), 1965.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from patchword.data.strokes import Stroke
from patchword.errors import ShapeError
from patchword.systems.sketchseg.compose import CANVAS

SIDE = 512
"""Side of the published rasters in pixels."""


def line_pixels(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.int64]:
    """Pixels (x, y) of the line between two pixels, both ends included, ``[n, 2]``."""
    dx, dy = abs(x1 - x0), abs(y1 - y0)
    steps, minor = max(dx, dy), min(dx, dy)
    along = np.arange(steps + 1)
    # Bresenham's error term solved for the step: the minor coordinate rounded, halves up.
    across = (2 * minor * along + steps) // (2 * steps) if steps else along
    xs, ys = (along, across) if dx > dy else (across, along)
    line: NDArray[np.int64] = np.stack(
        [x0 + (1 if x1 >= x0 else -1) * xs, y0 + (1 if y1 >= y0 else -1) * ys], axis=1
    )
    return line


def raster_stroke(
    points: Stroke, *, side: int = SIDE, canvas: float = CANVAS, compat: bool = False
) -> NDArray[np.bool_]:
    """Draw one stroke 3 pixels wide: one-pixel lines, then every neighbour up, down and beside.

    Args:
        points: ``[n, 2]`` (x, y) on a square canvas.
        side: Side of the raster in pixels.
        canvas: Side of the canvas in the units of ``points``.
        compat: Leave row 0, column 0 and the far border of the canvas empty before the lines are
            widened, as the published code does; otherwise points on the border are drawn in the
            outermost pixels.

    Returns:
        ``[side, side]``.
    """
    pixels = np.rint(np.asarray(points, dtype=np.float64) / canvas * side).astype(np.int64)
    parts = [pixels] + [line_pixels(*start, *end) for start, end in pairwise(pixels)]
    drawn = np.concatenate(parts)
    inside = ((drawn > 0) & (drawn < side)).all(axis=1)
    drawn = drawn[inside] if compat else drawn.clip(0, side - 1)
    thin = np.zeros((side, side), dtype=bool)
    thin[drawn[:, 1], drawn[:, 0]] = True
    wide = thin.copy()
    wide[1:] |= thin[:-1]
    wide[:-1] |= thin[1:]
    wide[:, 1:] |= thin[:, :-1]
    wide[:, :-1] |= thin[:, 1:]
    return wide


def label_raster(rasters: Sequence[NDArray[np.bool_]], labels: Sequence[int]) -> NDArray[np.int64]:
    """Give every pixel the label of the strokes that cover it.

    Args:
        rasters: One a stroke, all of one shape.
        labels: One a stroke, from 1.

    Returns:
        0 where there is no stroke; where several labels meet, the one with more strokes there, the
        smallest label on ties.

    Raises:
        ShapeError: The counts differ, or there is no stroke.
    """
    if len(rasters) != len(labels) or not rasters:
        raise ShapeError(
            "label_raster: there must be one label a stroke and at least one stroke, got "
            f"{len(rasters)} strokes and {len(labels)} labels."
        )
    used = sorted(set(labels))
    counts = np.zeros((len(used), *rasters[0].shape), dtype=np.int32)
    for raster, label in zip(rasters, labels, strict=True):
        counts[used.index(label)] += raster
    return np.where(counts.any(axis=0), np.array(used)[counts.argmax(axis=0)], 0)
