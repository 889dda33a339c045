# SPDX-License-Identifier: Apache-2.0
"""Matching in plain torch: the definitions that the kernels are tested against.

Descriptors are ``[P, N, D]`` and ``[P, M, D]``. All scores are formed at once, ``[P, N, M]``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Element type of scores: float64 for float64 inputs, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length one; zero rows stay zero. Scaled first, so that no square overflows."""
    if rows.shape[-1] == 0:
        return rows
    largest = rows.detach().abs().amax(-1, keepdim=True)
    rows = rows / torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    norm = rows.square().sum(-1, keepdim=True)
    return rows * torch.where(norm == 0, 0.0, torch.where(norm == 0, 1.0, norm).rsqrt())


def participants(
    count: int, like: Tensor, lengths: Tensor | None, valid: Tensor | None
) -> Tensor | None:
    """``[P, count]`` bool, True where a row takes part; None when all do."""
    mask = valid
    if lengths is not None:
        within = torch.arange(count, device=like.device) < lengths[:, None]
        mask = within if mask is None else mask & within
    return mask


def score_matrix(
    descriptors0: Tensor,
    descriptors1: Tensor,
    metric: str,
    scale: float = 1.0,
    bias0: Tensor | None = None,
    bias1: Tensor | None = None,
) -> Tensor:
    """``[P, N, M]``: scaled dot products or cosines plus biases, or minus squared distances."""
    dtype = compute_dtype(descriptors0)
    a, b = descriptors0.to(dtype), descriptors1.to(dtype)
    if metric == "cosine":
        a, b = unit_rows(a), unit_rows(b)
    scores = scale * (a @ b.transpose(1, 2))
    if metric == "l2":
        squares0, squares1 = a.square().sum(-1), b.square().sum(-1)
        return (2 * scores - squares0[:, :, None] - squares1[:, None]).clamp_max(0)
    if bias0 is not None:
        scores = scores + bias0[:, :, None]
    if bias1 is not None:
        scores = scores + bias1[:, None]
    return scores


def excluded(scores: Tensor, mask0: Tensor | None, mask1: Tensor | None) -> Tensor:
    """``[P, N, M]`` bool: pairs of which a side takes no part."""
    out = torch.zeros_like(scores, dtype=torch.bool)
    if mask0 is not None:
        out = out | ~mask0[:, :, None]
    if mask1 is not None:
        out = out | ~mask1[:, None]
    return out


def best_along(scores: Tensor, banned: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index (-1: none), value and second-best value along ``dim``; NaN and banned never win."""
    banned = banned | scores.isnan()
    scores = scores.masked_fill(banned, -torch.inf)
    shape = list(scores.shape)
    if shape.pop(dim) == 0:
        nothing = scores.new_full(shape, -torch.inf)
        return torch.full_like(nothing, -1, dtype=torch.int64), nothing, nothing.clone()
    best = scores.amax(dim, keepdim=True)
    # argmax of integers names the first of equal values.
    index = ((scores == best) & ~banned).int().argmax(dim, keepdim=True)
    rest = scores.scatter(dim, index, -torch.inf)
    index = index.masked_fill(banned.all(dim, keepdim=True), -1)
    return index.squeeze(dim), best.squeeze(dim), rest.amax(dim)


def match_best_reference(
    scores: Tensor, mask0: Tensor | None, mask1: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Index, value and second-best value of every row, then of every column, of ``[P, N, M]``."""
    banned = excluded(scores, mask0, mask1)
    return (*best_along(scores, banned, 2), *best_along(scores, banned, 1))


def match_topk_reference(
    scores: Tensor, mask0: Tensor | None, mask1: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """The ``k`` best columns of every row, ``[P, N, k]``, -1 and -inf where there are fewer."""
    banned = excluded(scores, mask0, mask1) | scores.isnan()
    scores = scores.masked_fill(banned, -torch.inf)
    # Stable sorting keeps equal values in ascending order; banned ones go behind a true -inf.
    order = torch.sort(banned.int(), dim=2, stable=True).indices
    values = scores.gather(2, order)
    values, inner = torch.sort(values, dim=2, descending=True, stable=True)
    indices = order.gather(2, inner)
    indices = indices.masked_fill(banned.gather(2, indices), -1)
    missing = max(k - indices.shape[2], 0)
    indices = torch.nn.functional.pad(indices[..., :k], (0, missing), value=-1)
    values = torch.nn.functional.pad(values[..., :k], (0, missing), value=-torch.inf)
    return indices, values


def match_logsumexp_reference(
    scores: Tensor, mask0: Tensor | None, mask1: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of every row ``[P, N]`` and column ``[P, M]``; -inf over nothing."""
    banned = excluded(scores, mask0, mask1)
    scores = scores.masked_fill(banned, -torch.inf)

    def along(dim: int) -> Tensor:
        shape = list(scores.shape)
        if shape.pop(dim) == 0:
            return scores.new_full(shape, -torch.inf)
        return torch.logsumexp(scores, dim)

    return along(2), along(1)
