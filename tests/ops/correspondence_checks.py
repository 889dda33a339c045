# SPDX-License-Identifier: Apache-2.0
"""Compare the matchers with float64 scores under the contract."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from patchword import ops
from patchword.ops.correspondence import reference
from patchword.ops.correspondence.results import Matches
from patchword.testing import (
    assert_dot,
    assert_indices,
    assert_log_sum_exp,
    assert_within,
    dot_tolerance,
)

METRICS = ("cosine", "dot", "l2")

# P, N, M, D: empty, one, primes, tile edges of both CPU tiles (6 x 16, 12 x 32) and of depth 512.
SHAPES = [
    (0, 3, 4, 5),
    (1, 0, 4, 5),
    (1, 3, 0, 5),
    (2, 4, 5, 0),
    (1, 1, 1, 1),
    (1, 7, 13, 3),
    (2, 31, 33, 17),
    (1, 11, 31, 8),
    (1, 13, 33, 9),
    (1, 24, 64, 513),
    (3, 37, 101, 64),
    (1, 211, 307, 96),
]
LARGE = (1, 700, 1031, 130)


def make(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    pairs, n, m, dim = shape
    a, b = torch.randn(pairs, n, dim), torch.randn(pairs, m, dim)
    return a.to(device, dtype), b.to(device, dtype)


def mode(dtype: torch.dtype) -> str:
    return "float32" if dtype == torch.float32 else "half"


def oracle(a: Tensor, b: Tensor, metric: str) -> Tensor:
    return reference.score_matrix(a.double().cpu(), b.double().cpu(), metric)


def score_scale(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """``[P, N, M]`` factor of the dot tolerance: the product of norms, or their squared sum."""
    norm0 = a.double().cpu().norm(dim=-1)[:, :, None]
    norm1 = b.double().cpu().norm(dim=-1)[:, None]
    if metric == "cosine":
        return torch.ones_like(norm0 * norm1)
    return norm0 * norm1 if metric == "dot" else (norm0 + norm1) ** 2


def check_neighbors(a: Tensor, b: Tensor, metric: str, what: str, k: int = 1) -> None:
    """``nearest_neighbors`` on the given tensors against the float64 scores of the same tensors."""
    scores = oracle(a, b, metric)
    scale = score_scale(a, b, metric)
    found = ops.nearest_neighbors(a, b, k=k, metric=metric)
    indices = found.indices if k > 1 else found.indices[..., None]
    values = found.scores if k > 1 else found.scores[..., None]
    assert indices.dtype == torch.int64
    assert values.dtype == torch.float32
    tau = dot_tolerance(mode(a.dtype)) * (scale.amax(-1) if scale.shape[-1] else scale.sum(-1))
    assert_indices(indices[..., 0], scores, tau, what)
    missing = (indices < 0).cpu()
    assert torch.equal(missing, torch.arange(k).expand_as(missing) >= scores.shape[-1])
    if scores.shape[-1] == 0 or scores.numel() == 0:
        assert bool((values == -math.inf).all())
        return
    want = scores.gather(-1, indices.cpu().clamp_min(0)).masked_fill(missing, -math.inf)
    factor = scale.gather(-1, indices.cpu().clamp_min(0))
    assert_dot(values, want, factor, what, mode=mode(a.dtype))
    # Each value is as good as the one of the same place in the float64 order.
    count = min(k, scores.shape[-1])
    best = scores.topk(count, -1).values
    assert_within(values[..., :count], best, 2 * tau[..., None] + 1e-30, what)


def check_mutual(a: Tensor, b: Tensor, metric: str, what: str) -> Matches:
    """Both maps are right as nearest neighbours, and inverse to each other."""
    scores = oracle(a, b, metric)
    found = ops.mutual_nearest_neighbors(a, b, metric=metric)
    tau = dot_tolerance(mode(a.dtype)) * score_scale(a, b, metric)
    assert found.matches0.shape == a.shape[:-1]
    assert found.matches1.shape == b.shape[:-1]
    if scores.numel() == 0:
        assert bool((found.matches0 == -1).all())
        assert bool((found.matches1 == -1).all())
        assert bool((found.scores0 == -math.inf).all())
        return found
    rows, columns = scores.argmax(2), scores.argmax(1)
    for p in range(scores.shape[0]):
        pairs, values = found.pairs(p)
        i, j = pairs.cpu().T
        assert bool((found.matches1[p].cpu()[j] == i).all())
        assert int((found.matches1[p] >= 0).sum()) == len(i)
        # A pair that is returned is best up to rounding, from either side.
        slack = 2 * tau[p].max()
        chosen = scores[p, i, j]
        assert bool((chosen >= scores[p].amax(1)[i] - slack).all()), what
        assert bool((chosen >= scores[p].amax(0)[j] - slack).all()), what
        assert_within(values, chosen, tau[p, i, j] + 1e-30, what)
        # A clear mutual best is returned.
        top0 = scores[p].topk(min(2, scores.shape[2]), 1).values
        top1 = scores[p].topk(min(2, scores.shape[1]), 0).values
        clear0 = (top0[:, 0] - top0[:, -1] > slack) | (scores.shape[2] == 1)
        clear1 = (top1[0] - top1[-1] > slack) | (scores.shape[1] == 1)
        start = torch.arange(scores.shape[1])
        clear = (columns[p][rows[p]] == start) & clear0 & clear1[rows[p]]
        assert torch.equal(found.matches0[p].cpu()[clear], rows[p][clear]), what
    return found


def check_logsumexp(a: Tensor, b: Tensor, metric: str, what: str, t: float = 7.0) -> None:
    scores = t * oracle(a, b, metric)
    scale = t * score_scale(a, b, metric)
    found = ops.match_logsumexp(a, b, metric=metric, inverse_temperature=t)
    for got, dim in zip(found, (2, 1), strict=True):
        if scores.shape[dim] == 0:
            assert bool((got == -math.inf).all())
        elif scores.numel():
            norm = scale.amax(dim)
            assert_log_sum_exp(
                got, scores.logsumexp(dim), what, norm_product=norm, mode=mode(a.dtype)
            )


def integers(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Small integers, for which every sum is exact and equal scores are frequent."""
    pairs, n, m, dim = shape
    a, b = torch.randint(-2, 3, (pairs, n, dim)), torch.randint(-2, 3, (pairs, m, dim))
    return a.to(device, dtype), b.to(device, dtype)


def check_exact(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    metric: str,
    ks: tuple[int, ...],
    device: str = "cpu",
) -> None:
    a, b = integers(shape, dtype, device)
    for k in ks:
        got = ops.nearest_neighbors(a, b, k=k, metric=metric)
        want = ops.nearest_neighbors(a.double(), b.double(), k=k, metric=metric)
        assert torch.equal(got.indices, want.indices)
        assert torch.equal(got.scores.double(), want.scores)
    for options in ({}, {"ratio": 0.9}, {"ratio": 1.0, "allow_single": True}, {"threshold": -3.0}):
        got = ops.mutual_nearest_neighbors(a, b, metric=metric, **options)
        want = ops.mutual_nearest_neighbors(a.double(), b.double(), metric=metric, **options)
        for field in ("matches0", "matches1", "scores0", "scores1"):
            assert torch.equal(getattr(got, field).double(), getattr(want, field).double()), field


def check_ragged(dtype: torch.dtype, backend: str | None) -> None:
    a, b = make((4, 21, 35, 10), dtype)
    lengths0, lengths1 = torch.tensor([21, 7, 0, 1]), torch.tensor([35, 16, 9, 0])
    valid0, valid1 = torch.rand(4, 21) > 0.3, torch.rand(4, 35) > 0.3
    masks = {"lengths0": lengths0, "lengths1": lengths1, "valid0": valid0, "valid1": valid1}
    got = ops.mutual_nearest_neighbors(a, b, **masks, backend=backend)
    near = ops.nearest_neighbors(a, b, k=2, **masks, backend=backend)
    sums = ops.match_logsumexp(a, b, **masks, backend=backend)
    for p in range(4):
        keep0 = (valid0[p] & (torch.arange(21) < lengths0[p])).nonzero()[:, 0]
        keep1 = (valid1[p] & (torch.arange(35) < lengths1[p])).nonzero()[:, 0]
        dense = (a[p, keep0], b[p, keep1])
        want = ops.mutual_nearest_neighbors(*dense, backend="reference")
        pairs, scores = got.pairs(p)
        wanted, wanted_scores = want.pairs()
        expected = torch.stack((keep0[wanted[:, 0]], keep1[wanted[:, 1]]), 1)
        assert torch.equal(pairs, expected)
        assert_dot(scores, wanted_scores, 1.0, "ragged", mode=mode(dtype))
        best = ops.nearest_neighbors(*dense, k=2, backend="reference").indices
        full = torch.full((21, 2), -1)
        mapped = keep1[best.clamp_min(0)] if len(keep1) else best
        full[keep0] = torch.where(best < 0, -1, mapped)
        assert torch.equal(near.indices[p], full)
        for side, keep, count in ((0, keep0, 21), (1, keep1, 35)):
            lse = ops.match_logsumexp(*dense, backend="reference")[side]
            full_lse = torch.full((count,), -math.inf).index_put((keep,), lse)
            assert_log_sum_exp(sums[side][p], full_lse, "ragged", mode=mode(dtype))


def check_edges(tolerance: float) -> None:
    a, b = torch.randn(20, 9), torch.randn(40, 9)
    a[3, 2], b[5, 0], b[0] = math.nan, math.nan, math.nan
    for metric in METRICS:
        found = ops.mutual_nearest_neighbors(a, b, metric=metric)
        assert int(found.matches0[3]) == -1
        assert int(found.matches1[5]) == -1
        clean = ops.mutual_nearest_neighbors(
            a, b, metric=metric, valid0=~a.isnan().any(1), valid1=~b.isnan().any(1)
        )
        assert torch.equal(found.matches0, clean.matches0)
        near = ops.nearest_neighbors(a, b, metric=metric)
        assert int(near.indices[3]) == -1
        assert float(near.scores[3]) == -math.inf
    rows, columns = ops.match_logsumexp(a, b)
    assert bool(rows.isnan().all())
    assert bool(columns.isnan().all())
    rows, columns = ops.match_logsumexp(a[:3], b[6:], inverse_temperature=2.0)
    assert not bool(rows.isnan().any())
    # Magnitudes whose squares leave float32.
    for factor in (1e-30, 1e30):
        big = torch.randn(12, 9) * factor
        found = ops.nearest_neighbors(big, b[6:])
        want = ops.nearest_neighbors(big.double(), b[6:].double())
        assert torch.equal(found.indices, want.indices)
        assert_within(found.scores, want.scores, tolerance, f"cosine at {factor}")
    zero = torch.zeros(4, 9)
    found = ops.nearest_neighbors(zero, b[6:])
    assert found.indices.tolist() == [0] * 4
    assert found.scores.tolist() == [0.0] * 4
    signed = ops.nearest_neighbors(
        torch.tensor([[1.0]]), torch.tensor([[-0.0], [0.0]]), metric="dot"
    )
    assert signed.indices.tolist() == [0]
