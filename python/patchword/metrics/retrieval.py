# SPDX-License-Identifier: Apache-2.0
"""Measures for rankings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchword.errors import ShapeError


def true_ranks(scores: npt.ArrayLike, truth: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Rank (1 = first) of the true candidate of each query; ties count against it.

    Args:
        scores: ``[Q, N]``, larger is better.
        truth: ``[Q]`` index of the true candidate.

    Raises:
        ShapeError: The shapes do not fit.
    """
    values, index = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.int64)
    if values.ndim != 2 or index.shape != values.shape[:1]:
        raise ShapeError(
            f"true_ranks: scores must have shape [Q, N] and truth [Q], got {list(values.shape)} "
            f"and {list(index.shape)}."
        )
    own = values[np.arange(len(values)), index]
    ranks: npt.NDArray[np.int64] = (values >= own[:, None]).sum(axis=1, dtype=np.int64)
    return ranks


def recall_at(ranks: npt.ArrayLike, k: int) -> float:
    """Share of queries whose true candidate is among the first ``k``; NaN for no queries."""
    values = np.asarray(ranks)
    return float((values <= k).mean()) if values.size else float("nan")


def area_under_curve(positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Args:
        positive: Scores of any shape, larger is surer.
        negative: The same.

    Returns:
        A number in [0, 1]; NaN when there are none of one kind.
    """
    wanted = np.asarray(positive, dtype=np.float64).ravel()
    others = np.asarray(negative, dtype=np.float64).ravel()
    if wanted.size == 0 or others.size == 0:
        return float("nan")
    above = (wanted[:, None] > others[None]).mean()
    return float(above + 0.5 * (wanted[:, None] == others[None]).mean())
