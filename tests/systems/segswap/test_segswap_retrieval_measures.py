# SPDX-License-Identifier: Apache-2.0
"""Crops and numbers of the retrieval protocols against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchword.errors import OptionError, ShapeError
from patchword.systems.segswap.protocols.crops import query_crop
from patchword.systems.segswap.protocols.measures import (
    average_precision,
    box_iou,
    keep_first_of_groups,
    localised_hits,
    mean_over_categories,
    recalls,
)


def test_published_crop_of_a_large_box_squashes_the_whole_picture() -> None:
    crop = query_crop((700, 960), (389, 17, 524, 251), compat=True)
    assert crop.resized == (640, 640)
    assert crop.window == (0, 0, 640, 639)
    assert crop.box == (259, 16, 349, 229)
    assert crop.cells == (15, 0, 23, 15)
    assert crop.grid == (40, 40)


def test_published_crop_of_a_small_box() -> None:
    crop = query_crop((700, 960), (531, 496, 598, 558), compat=True)
    assert crop.resized == (723, 917)
    assert crop.window == (219, 83, 859, 723)
    assert crop.box == (288, 429, 352, 493)
    assert crop.cells == (17, 26, 23, 32)


def test_corrected_crop_keeps_the_shape() -> None:
    crop = query_crop((700, 960), (389, 17, 524, 251))
    # One factor, 64 / 234: 191 x 263 pixels, brought to whole cells.
    assert crop.resized == (192, 256)
    assert crop.window == (0, 0, 256, 192)
    assert crop.grid == (12, 16)


@given(
    st.integers(40, 3000),
    st.integers(40, 3000),
    st.tuples(*[st.floats(0, 0.9)] * 2),
    st.tuples(*[st.floats(0.05, 1)] * 2),
    st.booleans(),
)
def test_crops_stay_inside(
    height: int, width: int, start: tuple[float, float], extent: tuple[float, float], compat: bool
) -> None:
    x0, y0 = int(start[0] * width), int(start[1] * height)
    box = (
        x0,
        y0,
        min(width, x0 + 1 + int(extent[0] * width)),
        min(height, y0 + 1 + int(extent[1] * height)),
    )
    crop = query_crop((height, width), box, compat=compat)
    left, top, right, bottom = crop.window
    assert 0 <= left < right <= crop.resized[1]
    assert 0 <= top < bottom <= crop.resized[0]
    column0, row0, column1, row1 = crop.cells
    assert 0 <= column0 < column1 <= crop.grid[1]
    assert 0 <= row0 < row1 <= crop.grid[0]


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (-1, 0, 4, 4), (0, 0, 99, 4), (8, 0, 4, 4)])
def test_impossible_boxes(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(OptionError, match="query_crop: box must be x0 < x1"):
        query_crop((20, 30), box)


def test_average_precision() -> None:
    assert average_precision([1, 0, 1, 0], 3) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision([0, 0], 2) == 0
    assert np.isnan(average_precision([], 0))


def test_mean_goes_over_categories_first() -> None:
    assert mean_over_categories({"a": [1.0, 0.5], "b": [0.25]}) == 0.5
    assert mean_over_categories({"a": [1.0, float("nan")], "b": [float("nan")]}) == 1.0


def test_recall_counts_exactly_25_metres() -> None:
    places = np.array([[30.0, 0], [24.9, 0], [100, 0], [25.0, 0]])
    here = np.zeros((1, 2))
    assert recalls([np.array([0, 1, 2])], here, places, at=(1, 5)) == {1: 0.0, 5: 1.0}
    assert recalls([np.array([3])], here, places, at=(1,)) == {1: 1.0}
    with pytest.raises(ShapeError, match="query_places"):
        recalls([np.array([3])], np.zeros((2, 2)), places)


def test_groups_keep_their_best() -> None:
    assert keep_first_of_groups([13, 12, 0, 25, 1]).tolist() == [13, 0, 25]


def test_box_iou() -> None:
    assert box_iou(
        [0, 0, 2, 2], [[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]]
    ).tolist() == pytest.approx([1 / 7, 1, 0])


def test_a_true_box_is_found_once() -> None:
    truth = [("a", (0, 0, 10, 10)), ("a", (20, 0, 30, 10)), ("b", (0, 0, 10, 10))]
    predictions = [
        ("a", (0, 0, 10, 9)),
        ("a", (0, 0, 10, 10)),  # the same instance again
        ("a", (20, 0, 30, 10)),
        ("b", (6, 0, 16, 10)),  # IoU 4 / 16
        ("c", (0, 0, 10, 10)),
    ]
    assert localised_hits(predictions, truth) == [True, False, True, False, False]
