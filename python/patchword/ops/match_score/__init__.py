# SPDX-License-Identifier: Apache-2.0
"""How well the cells of one picture are found in another, summed over the cells they fall on."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.match_score import native
from patchword.ops.match_score.reference import match_score_reference

__all__ = ["match_score", "refusals"]


def _always(*tensors: Tensor | None, grid: tuple[int, int] = (1, 1)) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


def match_score(
    features0: Tensor,
    features1: Tensor,
    points01: Tensor,
    weights0: Tensor,
    mask1: Tensor | None = None,
    *,
    grid: tuple[int, int],
    rounding: Literal["cell", "published"] = "cell",
    backend: Backend | None = None,
) -> Tensor:
    """Score of a query picture against candidates, from predicted places and masks.

    ``value[q] = weights0[q] mask1(points01[q]) <features0[q], features1[cell(points01[q])]>``;
    ``score = sum over the cells of picture 1 of the largest value that falls on it, if above 0``.

    Args:
        features0: ``[B, Q, D]`` cells of the query, or ``[Q, D]`` shared by all candidates;
            float16/bfloat16/float32/float64.
        features1: ``[B, h * w, D]`` cells of the candidates, row-major, dtype of ``features0``.
            Contiguous channels are read fastest.
        points01: ``[B, Q, 2]`` where each query cell lies in picture 1: x before y, 0 at the left
            or top edge, 1 at the other. Places outside fall on the border cells; a query with
            NaN takes no part.
        weights0: ``[B, Q]`` or ``[Q]``; 0 leaves a query out.
        mask1: ``[B, h, w]`` multiplies the weights, sampled bilinearly at the points with zeros
            outside (as ``sample_features(..., coordinates="unit")``); None for 1 everywhere.
        grid: ``(h, w)``.
        rounding: ``"cell"``: the cell that holds the point. ``"published"``:
            ``round(x (w - 1)), round(y (h - 1))``, halves to even, which differs from it by up to
            a cell away from the middle.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        float32 ``[B]`` (float64 for float64 features), at least 0; 0 where nothing falls.

    Raises:
        ShapeError: Shapes do not fit each other or the grid.
        DTypeError: Features are not floating point, or types or devices differ.
        OptionError: ``rounding`` is none of its documented values.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Products are added in float32, cells in float64. NaN never wins. The reference is
        differentiable, the compiled form is not and leaves gradients to it. Deterministic on
        every backend.

    Source:
        Shen et al., arXiv:2110.15904, the score of retrieval.

    Example:
        >>> import torch
        >>> cells = torch.eye(4)
        >>> places = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]])
        >>> match_score(cells, cells[None], places, torch.ones(4), grid=(2, 2))
        tensor([4.])
    """
    if features0.ndim == 2 and features1.ndim == 3:
        features0 = features0.expand(features1.shape[0], -1, -1)
    if weights0.ndim == 1 and features1.ndim == 3:
        weights0 = weights0.expand(features1.shape[0], -1)
    tensors = (features0, features1, points01, weights0, mask1)
    _check_shapes(*tensors, grid)
    _check_types(*tensors)
    if rounding not in native.ROUNDINGS:
        raise OptionError(f'match_score: rounding must be "cell" or "published", got {rounding!r}.')
    chosen = _backends.choose("match_score", refusals, backend, *tensors, grid=grid)
    run = native.match_score_native if chosen == "native" else match_score_reference
    return run(*tensors, grid, rounding)


def _check_shapes(
    features0: Tensor,
    features1: Tensor,
    points01: Tensor,
    weights0: Tensor,
    mask1: Tensor | None,
    grid: tuple[int, int],
) -> None:
    cells = grid[0] * grid[1]
    if features1.ndim != 3 or features1.shape[1] != cells:
        raise ShapeError(
            f"match_score: features1 must have shape [B, {cells}, D] for grid {tuple(grid)}, "
            f"got {list(features1.shape)}."
        )
    batch, _, channels = features1.shape
    if features0.ndim != 3 or features0.shape[0] != batch or features0.shape[2] != channels:
        raise ShapeError(
            f"match_score: features0 must have shape [{batch}, Q, {channels}] or "
            f"[Q, {channels}], got {list(features0.shape)}."
        )
    queries = features0.shape[1]
    if tuple(points01.shape) != (batch, queries, 2):
        raise ShapeError(
            f"match_score: points01 must have shape [{batch}, {queries}, 2], "
            f"got {list(points01.shape)}."
        )
    if tuple(weights0.shape) != (batch, queries):
        raise ShapeError(
            f"match_score: weights0 must have shape [{batch}, {queries}] or [{queries}], "
            f"got {list(weights0.shape)}."
        )
    if mask1 is not None and tuple(mask1.shape) != (batch, *grid):
        raise ShapeError(
            f"match_score: mask1 must have shape {[batch, *grid]}, got {list(mask1.shape)}."
        )
    if cells == 0 and queries > 0:
        raise ShapeError("match_score: features1 must have at least one cell, got none.")


def _check_types(
    features0: Tensor, features1: Tensor, points01: Tensor, weights0: Tensor, mask1: Tensor | None
) -> None:
    if not features0.is_floating_point() or features1.dtype != features0.dtype:
        raise DTypeError(
            "match_score: features0 and features1 must have one floating-point type, got "
            f"{features0.dtype} and {features1.dtype}."
        )
    others = (("points01", points01), ("weights0", weights0), ("mask1", mask1))
    for name, tensor in others:
        if tensor is not None and not tensor.is_floating_point():
            raise DTypeError(f"match_score: {name} must be floating point, got {tensor.dtype}.")
    for name, tensor in (("features1", features1), *others):
        if tensor is not None and tensor.device != features0.device:
            raise DTypeError(
                f"match_score: {name} must be on {features0.device} like features0, "
                f"got {tensor.device}."
            )
