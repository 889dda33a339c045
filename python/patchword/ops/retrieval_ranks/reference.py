# SPDX-License-Identifier: Apache-2.0
"""Ranks of true items in plain torch, with the whole score matrix: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

TIES = {"optimistic": 0, "pessimistic": 1, "legacy": 2}


def score_ranks_reference(scores: Tensor, truth: Tensor, *, ties: str) -> Tensor:
    """How many candidates come before the best true one.

    ``scores [N, M]``, ``truth [N, P]`` with indices outside ``0..M-1`` for nobody. Of several true
    items the one that a descending sort puts first counts (of equal scores the larger index). A
    candidate comes before it with a larger score, or with an equal one if ``ties`` says so. NaN
    comes after every number. Rows without a true item get -1. Returns ``[N]`` int64.
    """
    rows, columns = scores.shape
    named = (truth >= 0) & (truth < columns)
    if columns == 0 or truth.shape[1] == 0:
        return torch.full((rows,), -1, dtype=torch.int64, device=scores.device)
    items = truth.clamp(0, columns - 1)
    own = scores.gather(1, items)
    number = named & ~own.isnan()
    best = torch.where(number, own, -torch.inf).amax(1, keepdim=True)
    first = torch.where(number & (own == best), items, -1).amax(1, keepdim=True)
    before = (scores > best).sum(1)
    tied = scores == best
    index = torch.arange(columns, device=scores.device)
    if ties == "pessimistic":
        tied = tied & (index != first)
    elif ties == "legacy":
        tied = tied & (index > first)
    else:
        tied = torch.zeros_like(tied)
    ranks = before + tied.sum(1)
    ranks = torch.where(first[:, 0] >= 0, ranks, (~scores.isnan()).sum(1))
    return torch.where(named.any(1), ranks, -1)


def inverse_truth(truth: Tensor, columns: int) -> Tensor:
    """The same pairs seen from the other side: ``[M, Q]`` indices of rows, -1 for nobody."""
    rows, count = truth.shape
    row = torch.arange(rows, device=truth.device)[:, None].expand(rows, count)
    named = (truth >= 0) & (truth < columns)
    item, row = truth[named], row[named]
    order = torch.argsort(item, stable=True)
    item, row = item[order], row[order]
    many = torch.bincount(item, minlength=columns)
    width = int(many.max()) if columns else 0
    place = torch.arange(len(item), device=truth.device) - (many.cumsum(0) - many)[item]
    inverse = truth.new_full((columns, width), -1)
    inverse[item, place] = row
    return inverse


def retrieval_ranks_reference(
    queries: Tensor, gallery: Tensor, truth: Tensor, *, ties: str, both: bool
) -> tuple[Tensor, Tensor | None]:
    """Ranks of ``gallery [M, D]`` items for ``queries [N, D]`` by dot product, and the reverse."""
    compute = torch.float64 if queries.dtype == torch.float64 else torch.float32
    scores = queries.to(compute) @ gallery.to(compute).T
    ranks0 = score_ranks_reference(scores, truth, ties=ties)
    if not both:
        return ranks0, None
    other = inverse_truth(truth, len(gallery))
    return ranks0, score_ranks_reference(scores.T, other, ties=ties)
