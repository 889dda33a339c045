# SPDX-License-Identifier: Apache-2.0
"""Measures for heat maps and soft masks against true regions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchword.errors import ShapeError


def average_precision(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Area under the precision-recall steps, every element a sample.

    Elements of equal score are taken together, so their order does not matter.

    Args:
        scores: Any shape, larger is surer.
        truth: The same shape, true where the thing is.

    Returns:
        A number in [0, 1]; NaN when nothing is true. A constant score gives the share of true
        elements.

    Raises:
        ShapeError: The shapes differ.
    """
    values, labels = _same_shape("average_precision", scores, truth)
    positives = int(labels.sum())
    if positives == 0:
        return float("nan")
    order = np.argsort(-values, kind="stable")
    values, labels = values[order], labels[order]
    ends = np.append(np.nonzero(np.diff(values))[0], len(values) - 1)
    hits = np.cumsum(labels)[ends]
    gained = np.diff(hits, prepend=0)
    return float((gained * (hits / (ends + 1.0))).sum() / positives)


def pointing_hit(heat: npt.ArrayLike, truth: npt.ArrayLike) -> bool:
    """Whether the largest value (the first one on ties) lies where ``truth`` is true.

    Raises:
        ShapeError: The shapes differ.
    """
    values, labels = _same_shape("pointing_hit", heat, truth)
    return bool(labels[int(values.argmax())])


def _same_shape(
    name: str, scores: npt.ArrayLike, truth: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    if values.shape != labels.shape or values.size == 0:
        raise ShapeError(
            f"{name}: scores and truth must share a shape with at least one element, got "
            f"{list(values.shape)} and {list(labels.shape)}."
        )
    return values.ravel(), labels.ravel()
