# SPDX-License-Identifier: Apache-2.0
"""Strokes are drawn and labels decided pixel for pixel as the published evaluation does."""

import numpy as np
import pytest

from patchword.errors import ShapeError
from patchword.systems.sketchseg.rasters import label_raster, line_pixels, raster_stroke


def stroke(*points):
    return np.array(points, dtype=np.float32)


def bresenham(x0, y0, x1, y1):
    """The textbook loop."""
    dx, dy = abs(x1 - x0), abs(y1 - y0)
    sx, sy = (1 if x1 >= x0 else -1), (1 if y1 >= y0 else -1)
    steep = dx <= dy
    if steep:
        dx, dy = dy, dx
    error, across, found = 2 * dy - dx, 0, []
    for along in range(dx + 1):
        x, y = (across, along) if steep else (along, across)
        found.append((x0 + sx * x, y0 + sy * y))
        if error >= 0:
            across += 1
            error -= 2 * dx
        error += 2 * dy
    return found


def test_lines_are_bresenhams():
    ends = np.random.default_rng(0).integers(-15, 15, (300, 4))
    for x0, y0, x1, y1 in ends.tolist():
        assert [tuple(p) for p in line_pixels(x0, y0, x1, y1)] == bresenham(x0, y0, x1, y1)


def test_published_strokes():
    drawn = raster_stroke(stroke((10, 10), (20, 10)))
    rows, columns = np.nonzero(drawn)
    assert drawn.sum() == 65
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (19, 41, 19, 21)
    assert raster_stroke(stroke((128, 128), (128, 130), (130, 130))).sum() == 28
    assert raster_stroke(stroke((1, 1))).sum() == 5


def test_border_is_drawn_unless_compatible():
    for point in ((0, 0), (256, 256)):
        assert raster_stroke(stroke(point), compat=True).sum() == 0
        assert raster_stroke(stroke(point)).sum() == 3


def test_label_raster_takes_the_more_frequent_then_the_smaller_label():
    rasters = np.zeros((3, 4, 4), bool)
    rasters[0, 0] = True
    rasters[1, :, 0] = True
    rasters[2, 3, 1:3] = True
    cat, dog = 1, 2
    expected = [[1, 2, 2, 2], [1, 0, 0, 0], [1, 0, 0, 0], [1, 2, 2, 0]]
    assert label_raster(list(rasters), [dog, cat, dog]).tolist() == expected
    twice = label_raster([rasters[0], rasters[1], rasters[0]], [dog, cat, dog])
    assert twice[0, 0] == dog


def test_label_raster_refuses_unequal_counts():
    with pytest.raises(ShapeError, match="one label a stroke"):
        label_raster([np.ones((2, 2), bool)], [1, 2])
