# SPDX-License-Identifier: Apache-2.0
"""Measures for label maps: of one picture at a time, and of all pictures together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchword.errors import OptionError, ShapeError

LabelArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]


def pixel_accuracy(truth: LabelArray, predicted: LabelArray) -> float:
    """Share of the labelled pixels (truth above 0) that are given their label.

    Returns:
        A number in [0, 1]; NaN when nothing is labelled.

    Raises:
        ShapeError: The shapes differ.
    """
    _same_shape("pixel_accuracy", truth, predicted)
    labelled = truth > 0
    return float((truth == predicted)[labelled].mean()) if labelled.any() else float("nan")


def mean_iou(truth: LabelArray, predicted: LabelArray) -> float:
    """Intersection over union, averaged over the classes of one picture.

    Only labelled pixels (truth above 0) are compared. A class counts when truth or prediction has
    it there, so naming a class that is absent lowers the mean.

    Returns:
        A number in [0, 1]; NaN when nothing is labelled.

    Raises:
        ShapeError: The shapes differ.
    """
    _same_shape("mean_iou", truth, predicted)
    labelled = truth > 0
    true, given = truth[labelled], predicted[labelled]
    classes = np.union1d(true, given)
    ratios = [
        np.count_nonzero((true == one) & (given == one))
        / np.count_nonzero((true == one) | (given == one))
        for one in classes[classes > 0]
    ]
    return float(np.mean(ratios)) if ratios else float("nan")


def region_votes(predicted: LabelArray, regions: Sequence[BoolArray]) -> list[int]:
    """The most frequent label of every region; the smallest on ties, 0 of an empty region."""
    return [
        int(np.bincount(predicted[region]).argmax()) if region.any() else 0 for region in regions
    ]


def confusion_matrix(
    truth: LabelArray, predicted: LabelArray, classes: int
) -> npt.NDArray[np.int64]:
    """Count the labelled pixels by true (rows) and given (columns) label.

    Args:
        truth: Labels 0 to ``classes``; 0 is not counted.
        predicted: The same shape and labels; 0, no label, is a column of its own.
        classes: How many labels there are besides 0.

    Returns:
        ``[classes, classes + 1]``: the row of label ``k`` is ``k - 1``, its column ``k``.

    Raises:
        ShapeError: The shapes differ.
        OptionError: A label is out of range.
    """
    _same_shape("confusion_matrix", truth, predicted)
    labelled = truth > 0
    true, given = truth[labelled].astype(np.int64), predicted[labelled].astype(np.int64)
    if true.size and (max(true.max(), given.max()) > classes or given.min() < 0):
        raise OptionError(
            f"confusion_matrix: labels must lie in [0, {classes}], got "
            f"{min(0, given.min())} to {max(true.max(), given.max())}."
        )
    flat = np.bincount((true - 1) * (classes + 1) + given, minlength=classes * (classes + 1))
    counts: npt.NDArray[np.int64] = flat.reshape(classes, classes + 1)
    return counts


def confusion_scores(confusion: npt.NDArray[np.int64]) -> dict[str, float]:
    """Measures over the pixels of a whole data set.

    Args:
        confusion: Sum of :func:`confusion_matrix` over the pictures.

    Returns:
        ``pixel_accuracy``: share of pixels that are right. ``class_accuracy``: share of each
        class's pixels that are right, averaged over the classes that occur. ``miou``: intersection
        over union averaged over the classes that occur. ``fwiou``: the same weighted by how many
        pixels a class has. NaN when there is no pixel.
    """
    right = confusion[:, 1:].diagonal().astype(np.float64)
    true, given = confusion.sum(axis=1), confusion[:, 1:].sum(axis=0)
    total = true.sum()
    occurs = true > 0
    if total == 0:
        return dict.fromkeys(("pixel_accuracy", "class_accuracy", "miou", "fwiou"), float("nan"))
    iou = right[occurs] / (true + given - right)[occurs]
    return {
        "pixel_accuracy": float(right.sum() / total),
        "class_accuracy": float((right[occurs] / true[occurs]).mean()),
        "miou": float(iou.mean()),
        "fwiou": float((true[occurs] * iou).sum() / total),
    }


def _same_shape(name: str, truth: LabelArray, predicted: LabelArray) -> None:
    if truth.shape != predicted.shape:
        raise ShapeError(
            f"{name}: truth and prediction must share a shape, got {list(truth.shape)} and "
            f"{list(predicted.shape)}."
        )
