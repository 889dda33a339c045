# SPDX-License-Identifier: Apache-2.0
"""Which pictures of different pairs count as sharing nothing, and the measures that use them."""

from __future__ import annotations

import numpy as np
import pytest

from patchword.evaluation.match import _overlap, apart_pairings
from patchword.metrics import area_under_curve


def test_pairings_leave_out_common_objects_and_backgrounds() -> None:
    records = [
        {"object": "cup", "background_a": "park", "background_b": "sea"},
        {"object": "cup", "background_a": "hill", "background_b": "town"},
        {"object": "hat", "background_a": "sea", "background_b": "wood"},
        {"object": "fox", "background_a": "lake", "background_b": "road"},
    ]
    assert apart_pairings(records, 1) == [(0, 3), (1, 2), (2, 3), (3, 0)]
    assert apart_pairings(records, 9) == [
        *((0, 3), (1, 2), (1, 3), (2, 3), (2, 1)),
        *((3, 0), (3, 1), (3, 2)),
    ]


def test_area_under_curve_counts_ties_half() -> None:
    assert area_under_curve([0.9, 0.5], [0.5, 0.1]) == pytest.approx(3.5 / 4)
    assert np.isnan(area_under_curve([], [1.0]))


def test_overlap_at_one_half() -> None:
    mask = np.array([[0.9, 0.6], [0.4, 0.1]], np.float32)
    assert _overlap(mask, np.array([[True, False], [True, False]])) == pytest.approx(1 / 3)
    assert _overlap(mask * 0, np.zeros((2, 2), bool)) == 0.0
