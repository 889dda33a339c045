# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchword.errors import ShapeError
from patchword.metrics import (
    average_precision,
    matching_accuracy,
    pointing_hit,
    recall_at,
    true_ranks,
)


def test_average_precision_of_a_hand_worked_ranking() -> None:
    # Hits at ranks 1, 3 and 4 of 5: (1/1 + 2/3 + 3/4) / 3.
    value = average_precision([0.9, 0.8, 0.7, 0.6, 0.1], [1, 0, 1, 1, 0])
    assert value == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_average_precision_takes_ties_together() -> None:
    assert average_precision([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0]) == 0.25
    assert average_precision([0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1]) == 0.25


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_average_precision_ignores_order(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = zip(*pairs, strict=True)
    forward = average_precision(scores, truth)
    backward = average_precision(scores[::-1], truth[::-1])
    assert forward == pytest.approx(backward, nan_ok=True)
    assert math.isnan(forward) == (not any(truth))


def test_pointing_hit_reads_the_first_peak() -> None:
    heat = np.array([[0.1, 0.9], [0.9, 0.2]])
    assert pointing_hit(heat, [[False, True], [False, False]])
    assert not pointing_hit(heat, [[True, False], [True, True]])


def test_matching_accuracy_counts_the_border_and_refuses_nan() -> None:
    found = [[3.0, 4.0], [6.0, 8.1], [math.nan, 0.0]]
    assert matching_accuracy(found, np.zeros((3, 2)), within=5.0) == pytest.approx(1 / 3)
    assert math.isnan(matching_accuracy(np.zeros((0, 2)), np.zeros((0, 2)), within=1.0))


def test_ranks_count_ties_against_the_truth() -> None:
    ranks = true_ranks([[0.5, 0.9, 0.1], [0.7, 0.7, 0.7]], [0, 2])
    assert ranks.tolist() == [2, 3]
    assert recall_at(ranks, 2) == 0.5
    assert math.isnan(recall_at([], 1))


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match="scores and truth must share a shape"):
        average_precision([1.0], [1, 0])
    with pytest.raises(ShapeError, match=r"found and truth must both have shape \[M, 2\]"):
        matching_accuracy(np.zeros((2, 2)), np.zeros((3, 2)), within=1.0)
    with pytest.raises(ShapeError, match=r"truth \[Q\]"):
        true_ranks(np.zeros((2, 3)), [0])
