# SPDX-License-Identifier: Apache-2.0
"""From the best candidates of both sides to one-to-one matches, in torch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from patchword.ops.correspondence._inputs import Pairs, Side
from patchword.ops.correspondence.sweeps import pair_scores


class Rule(NamedTuple):
    """Which candidates may become matches."""

    threshold: float | None = None
    """Scores must be above it."""

    ratio: float | None = None
    """How far the best must stand out from the second-best; needs second-best scores."""

    allow_single: bool = False
    """Whether a lone candidate passes the ratio test."""


def keep_mutual(
    pairs: Pairs, side0: Side, side1: Side, rule: Rule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matches and scores of both sides, ``[P, N]`` and ``[P, M]``; -1 and -inf for none.

    kernels/correspondence/mutual_tail.cpp gives the same bits on the CPU where nobody traces or
    differentiates.
    """
    keep0, keep1 = (_distinct(side, pairs.metric, rule) for side in (side0, side1))
    matches0, matches1 = confirm(side0.indices, side1.indices, keep0, keep1)
    scores0 = pair_scores(pairs, matches0[..., None], side0.scores[..., None])[..., 0]
    scores0 = scores0.masked_fill(matches0 < 0, -math.inf)
    return matches0, matches1, scores0, follow(scores0, matches1, -math.inf)


def _distinct(side: Side, metric: str, rule: Rule) -> Tensor | None:
    """Which best candidates pass threshold and ratio test; None when all do."""
    keep = None if rule.threshold is None else side.scores > rule.threshold
    if rule.ratio is None:
        return keep
    ratio, best, second = rule.ratio, side.scores, side.second
    if metric == "l2":
        # Distances are the roots of the negated scores; zero against zero counts as ratio 1.
        stands_out = torch.where(second == 0, ratio >= 1, -best <= ratio * ratio * -second)
    else:
        stands_out = (best > 0) & (second <= ratio * best)
    single = second == -math.inf
    stands_out = (stands_out & ~single) | (single & rule.allow_single)
    return stands_out if keep is None else keep & stands_out


def follow(values: Tensor, indices: Tensor, missing: float) -> Tensor:
    """``values[p, indices[p, i]]``, ``missing`` where the index is -1."""
    if values.shape[1] == 0:
        return values.new_full(indices.shape, missing)
    return values.gather(1, indices.clamp_min(0)).masked_fill(indices < 0, missing)


def confirm(
    indices0: Tensor, indices1: Tensor, keep0: Tensor | None = None, keep1: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Keeps i -> j where j -> i too, and both sides agree to keep it."""
    if keep0 is not None:
        indices0 = indices0.masked_fill(~keep0, -1)
    if keep1 is not None:
        indices1 = indices1.masked_fill(~keep1, -1)

    def confirmed(there: Tensor, back: Tensor) -> Tensor:
        if back.shape[1] == 0:
            return torch.full_like(there, -1)
        start = torch.arange(there.shape[1], device=there.device)
        return there.masked_fill(back.gather(1, there.clamp_min(0)) != start, -1)

    return confirmed(indices0, indices1), confirmed(indices1, indices0)
