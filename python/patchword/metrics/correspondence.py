# SPDX-License-Identifier: Apache-2.0
"""Measures for correspondences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchword.errors import ShapeError


def matching_accuracy(found: npt.ArrayLike, truth: npt.ArrayLike, *, within: float) -> float:
    """Share of points found within a distance of the truth.

    Args:
        found: ``[M, 2]`` in pixels; NaN counts as wrong.
        truth: ``[M, 2]`` in pixels.
        within: Largest distance in pixels that counts as right.

    Returns:
        A share in [0, 1]; NaN for no points.

    Raises:
        ShapeError: The shapes differ.
    """
    first, second = np.asarray(found, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise ShapeError(
            f"matching_accuracy: found and truth must both have shape [M, 2], got "
            f"{list(first.shape)} and {list(second.shape)}."
        )
    if len(first) == 0:
        return float("nan")
    return float((np.linalg.norm(first - second, axis=1) <= within).mean())
