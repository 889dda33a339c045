# SPDX-License-Identifier: Apache-2.0
"""Label-map measures equal hand-computed values."""

import numpy as np
import pytest

from patchword.errors import OptionError, ShapeError
from patchword.metrics.label_maps import (
    confusion_matrix,
    confusion_scores,
    mean_iou,
    pixel_accuracy,
    region_votes,
)

TRUTH = np.array([[0, 1, 1], [2, 2, 0]])
GIVEN = np.array([[0, 1, 2], [2, 2, 0]])


def test_one_picture():
    assert pixel_accuracy(TRUTH, GIVEN) == 0.75
    assert mean_iou(TRUTH, GIVEN) == pytest.approx((0.5 + 2 / 3) / 2)


def test_a_class_that_is_only_named_lowers_the_mean():
    given = GIVEN.copy()
    given[0, 2] = 3
    assert mean_iou(TRUTH, given) == pytest.approx((0.5 + 1 + 0) / 3)


def test_paper_does_not_count():
    given = np.where(TRUTH == 0, 2, TRUTH)
    assert pixel_accuracy(TRUTH, given) == 1.0
    assert mean_iou(TRUTH, given) == 1.0


def test_nothing_labelled_is_nan():
    empty = np.zeros((2, 2), int)
    assert np.isnan(pixel_accuracy(empty, empty))
    assert np.isnan(mean_iou(empty, empty))
    assert np.isnan(confusion_scores(confusion_matrix(empty, empty, 2))["miou"])


def test_votes_take_the_smaller_label_on_ties_and_0_without_pixels():
    region = np.zeros((2, 3), bool)
    region[0, 1:] = True
    assert region_votes(GIVEN, [region, np.zeros((2, 3), bool)]) == [1, 0]


def test_confusion_counts_and_scores():
    truth = np.array([1, 1, 1, 1, 2, 2, 0])
    given = np.array([1, 1, 2, 0, 2, 1, 2])
    counts = confusion_matrix(truth, given, 3)
    assert counts.tolist() == [[1, 2, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    scores = confusion_scores(counts)
    assert scores["pixel_accuracy"] == pytest.approx(3 / 6)
    assert scores["class_accuracy"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    # Class 1: 2 of 4 true and 3 given; class 2: 1 of 2 true and 2 given; class 3 never occurs.
    assert scores["miou"] == pytest.approx((2 / 5 + 1 / 3) / 2)
    assert scores["fwiou"] == pytest.approx((4 * 2 / 5 + 2 * 1 / 3) / 6)


def test_mean_of_pictures_is_not_the_measure_of_all_pixels():
    pairs = [(np.array([1, 1, 1, 1]), np.array([1, 1, 1, 2])), (np.array([2]), np.array([2]))]
    each = np.mean([mean_iou(truth, given) for truth, given in pairs])
    together = sum(confusion_matrix(truth, given, 2) for truth, given in pairs)
    assert each == pytest.approx((0.75 / 2 + 1) / 2)
    assert confusion_scores(together)["miou"] == pytest.approx((0.75 + 0.5) / 2)


def test_refusals():
    with pytest.raises(ShapeError, match="share a shape"):
        pixel_accuracy(TRUTH, GIVEN[:1])
    with pytest.raises(OptionError, match=r"labels must lie in \[0, 1\]"):
        confusion_matrix(TRUTH, GIVEN, 1)
