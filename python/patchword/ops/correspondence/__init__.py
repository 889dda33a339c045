# SPDX-License-Identifier: Apache-2.0
"""Which descriptor of one set corresponds to which of another set."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.correspondence import native
from patchword.ops.correspondence._inputs import check, with_batch
from patchword.ops.correspondence.mutual import Rule, confirm, follow, keep_mutual
from patchword.ops.correspondence.results import CycleConsistency, Matches, NearestNeighbors
from patchword.ops.correspondence.sweeps import (
    best_both_ways,
    dual_softmax_scores,
    logsumexp_both_ways,
    pair_scores,
    top_k,
)

__all__ = [
    "CycleConsistency",
    "Matches",
    "NearestNeighbors",
    "cycle_consistency",
    "dual_softmax_matches",
    "match_logsumexp",
    "mutual_nearest_neighbors",
    "nearest_neighbors",
    "refusals",
]

Metric = Literal["cosine", "dot", "l2"]


def _always(*_: Tensor, **__: object) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


def nearest_neighbors(
    descriptors0: Tensor,
    descriptors1: Tensor,
    *,
    k: int = 1,
    metric: Metric = "cosine",
    lengths0: Tensor | None = None,
    lengths1: Tensor | None = None,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    backend: Backend | None = None,
) -> NearestNeighbors:
    """Best candidates in set 1 for every descriptor of set 0. No ``N x M`` matrix is stored.

    The score is ``<a, b> / (|a| |b|)`` for ``"cosine"`` (0 for zero vectors), ``<a, b>`` for
    ``"dot"`` and ``-|a - b|^2``, at most 0, for ``"l2"``: larger is closer. Equal scores go to the
    lowest index; NaN never wins.

    Args:
        descriptors0: ``[N, D]`` or ``[P, N, D]``, float16/bfloat16/float32/float64, any strides.
        descriptors1: ``[M, D]`` or ``[P, M, D]``, same dtype and rank.
        k: Number of candidates, 1 to 32.
        metric: What "near" means, see above.
        lengths0: ``[P]`` int64: only the first ``lengths0[p]`` rows of pair ``p`` take part.
        lengths1: ``[P]`` int64, likewise for set 1.
        valid0: Bool ``[N]`` or ``[P, N]``, True where a row takes part.
        valid1: Bool ``[M]`` or ``[P, M]``, likewise.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        Indices and scores; -1 and -inf for rows that take no part or have no candidate (left).

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Element types or devices do not fit together, or are not floating point.
        OptionError: ``k`` or ``metric`` is outside its range.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Scores are differentiable in both sets through the chosen pairs. Deterministic on every
        backend.

    Example:
        >>> import torch
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> b = torch.tensor([[0.0, 3.0], [1.0, 1.0], [4.0, 0.0]])
        >>> nearest_neighbors(a, b).indices
        tensor([2, 0])
    """
    name = "nearest_neighbors"
    sets, lengths, valid = (descriptors0, descriptors1), (lengths0, lengths1), (valid0, valid1)
    check(name, sets, metric, lengths, valid)
    if not 1 <= k <= native.MAX_TOP_K:
        raise OptionError(f"{name}: k must be in [1, {native.MAX_TOP_K}], got {k}.")
    use = _backends.choose(name, refusals, backend, descriptors0, descriptors1, k=k)
    options = (*lengths, *valid)
    if use == "native" and native.direct(sets, *options):
        return NearestNeighbors(*native.nearest(sets, options, native.METRICS[metric], k))
    pairs = with_batch(sets, metric, lengths, valid)
    indices, scores = top_k(pairs, k, use)
    scores = pair_scores(pairs, indices, scores)
    if k == 1:
        indices, scores = indices[..., 0], scores[..., 0]
    return NearestNeighbors(pairs.strip(indices), pairs.strip(scores))


def mutual_nearest_neighbors(
    descriptors0: Tensor,
    descriptors1: Tensor,
    *,
    metric: Metric = "cosine",
    threshold: float | None = None,
    ratio: float | None = None,
    allow_single: bool = False,
    lengths0: Tensor | None = None,
    lengths1: Tensor | None = None,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    backend: Backend | None = None,
) -> Matches:
    """Pairs of descriptors that are each other's nearest neighbour, both directions in one pass.

    Args:
        descriptors0: ``[N, D]`` or ``[P, N, D]``, as for :func:`nearest_neighbors`.
        descriptors1: ``[M, D]`` or ``[P, M, D]``.
        metric: As for :func:`nearest_neighbors`.
        threshold: Keep matches whose score is above it; for ``"l2"`` that is a negative number.
        ratio: Keep matches that stand out, seen from either side. ``"cosine"`` and ``"dot"``:
            best score positive and ``second <= ratio * best``; ``"l2"``: distance to the best
            ``<= ratio`` times that to the second (two zero distances have ratio 1).
        allow_single: With ``ratio``: whether a side with one candidate passes the test.
        lengths0: ``[P]`` int64, prefix lengths of a ragged batch.
        lengths1: ``[P]`` int64.
        valid0: Bool ``[N]`` or ``[P, N]``, True where a row takes part.
        valid1: Bool ``[M]`` or ``[P, M]``.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        Matches with their scores; -1 and -inf where there is none.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Element types or devices do not fit together, or are not floating point.
        OptionError: ``metric`` or ``ratio`` is outside its range.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Scores are differentiable in both sets through the chosen pairs. Deterministic on every
        backend. Swapping the sets swaps the result.

    Source:
        Ratio test: Lowe, Distinctive Image Features from Scale-Invariant Keypoints, IJCV 2004,
        section 7.1.

    Example:
        >>> import torch
        >>> a, b = torch.eye(3), torch.eye(3)[[2, 0, 1]]
        >>> mutual_nearest_neighbors(a, b).matches0
        tensor([1, 2, 0])
    """
    name = "mutual_nearest_neighbors"
    sets, lengths, valid = (descriptors0, descriptors1), (lengths0, lengths1), (valid0, valid1)
    check(name, sets, metric, lengths, valid)
    if ratio is not None and not ratio > 0:
        raise OptionError(f"{name}: ratio must be positive, got {ratio}.")
    use = _backends.choose(name, refusals, backend, descriptors0, descriptors1)
    rule = Rule(threshold, ratio, allow_single)
    options = (*lengths, *valid)
    if use == "native" and native.direct(sets, *options):
        return Matches(*native.mutual_matches(sets, options, native.METRICS[metric], 1.0, rule))
    pairs = with_batch(sets, metric, lengths, valid)
    side0, side1 = best_both_ways(pairs, use, second=ratio is not None)
    return Matches(*(pairs.strip(t) for t in keep_mutual(pairs, side0, side1, rule)))


def cycle_consistency(
    descriptors0: Tensor,
    descriptors1: Tensor,
    points0: Tensor,
    *,
    metric: Metric = "cosine",
    lengths0: Tensor | None = None,
    lengths1: Tensor | None = None,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    backend: Backend | None = None,
) -> CycleConsistency:
    """Match set 0 to set 1 and back, and measure how far from the start the return trip ends.

    Args:
        descriptors0: ``[N, D]`` or ``[P, N, D]``, as for :func:`nearest_neighbors`.
        descriptors1: ``[M, D]`` or ``[P, M, D]``.
        points0: ``[N, 2]`` or ``[P, N, 2]``, where set 0 was taken, in pixels.
        metric: As for :func:`nearest_neighbors`.
        lengths0: ``[P]`` int64, prefix lengths of a ragged batch.
        lengths1: ``[P]`` int64.
        valid0: Bool ``[N]`` or ``[P, N]``, True where a row takes part.
        valid1: Bool ``[M]`` or ``[P, M]``.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        Both steps of the trip, the pixel distance between its ends, and the score of the first
        step. A distance of 0 is a mutual nearest neighbour.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Element types or devices do not fit together, or are not floating point.
        OptionError: ``metric`` is none of its documented values.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Scores are differentiable in both sets, distances in ``points0``. Deterministic.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[1.0, 0.0], [1.0, 0.2]]), torch.tensor([[1.0, 0.1], [0.0, 1.0]])
        >>> points = torch.tensor([[8.0, 8.0], [24.0, 8.0]])
        >>> cycle_consistency(a, b, points).distance
        tensor([16.,  0.])
    """
    name = "cycle_consistency"
    sets, lengths, valid = (descriptors0, descriptors1), (lengths0, lengths1), (valid0, valid1)
    check(name, sets, metric, lengths, valid)
    if points0.shape != (*descriptors0.shape[:-1], 2):
        wanted = [*descriptors0.shape[:-1], 2]
        raise ShapeError(
            f"{name}: points0 must have shape {wanted}, got {list(points0.shape)}.",
            tuple(wanted),
            tuple(points0.shape),
        )
    if points0.device != descriptors0.device or not points0.is_floating_point():
        raise DTypeError(
            f"{name}: points0 must be floating point on {descriptors0.device}, "
            f"got {points0.dtype} on {points0.device}."
        )
    use = _backends.choose(name, refusals, backend, descriptors0, descriptors1)
    options = (*lengths, *valid)
    if use == "native" and native.direct(sets, *options):
        number = native.METRICS[metric]
        there, back, distance, scores = native.cycle(sets, options, number, points0)
        if distance is None:
            distance = _return_distance(points0, back)
        return CycleConsistency(there, back, distance, scores)
    pairs = with_batch(sets, metric, lengths, valid)
    side0, side1 = best_both_ways(pairs, use, second=False)
    there = side0.indices
    if side1.indices.shape[1] == 0:
        back = torch.full_like(there, -1)
    else:
        back = side1.indices.gather(1, there.clamp_min(0)).masked_fill(there < 0, -1)
    distance = _return_distance(points0 if pairs.batched else points0[None], back)
    scores = pair_scores(pairs, there[..., None], side0.scores[..., None])[..., 0]
    return CycleConsistency(*(pairs.strip(t) for t in (there, back, distance, scores)))


def _return_distance(points: Tensor, back: Tensor) -> Tensor:
    """How far every point ``[..., N, 2]`` is from the one that its trip ends at; inf for none."""
    if points.shape[-2] == 0:
        return points.new_empty(points.shape[:-1])
    ends = points.gather(-2, back.clamp_min(0)[..., None].expand(*points.shape))
    distance = torch.linalg.vector_norm(ends - points, dim=-1)
    return distance.masked_fill(back < 0, math.inf)


def match_logsumexp(
    descriptors0: Tensor,
    descriptors1: Tensor,
    *,
    inverse_temperature: float = 1.0,
    metric: Literal["cosine", "dot"] = "cosine",
    lengths0: Tensor | None = None,
    lengths1: Tensor | None = None,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of ``inverse_temperature * score`` over every row and every column, in one pass.

    Args:
        descriptors0: ``[N, D]`` or ``[P, N, D]``, as for :func:`nearest_neighbors`.
        descriptors1: ``[M, D]`` or ``[P, M, D]``.
        inverse_temperature: Multiplies the scores.
        metric: ``"cosine"`` or ``"dot"``.
        lengths0: ``[P]`` int64, prefix lengths of a ragged batch.
        lengths1: ``[P]`` int64.
        valid0: Bool ``[N]`` or ``[P, N]``, True where a row takes part.
        valid1: Bool ``[M]`` or ``[P, M]``.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        ``[..., N]`` and ``[..., M]``, float32 (float64 for float64 inputs); -inf for rows that
        take no part or have no candidate; NaN where a score is NaN.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Element types or devices do not fit together, or are not floating point.
        OptionError: ``metric`` or ``inverse_temperature`` is outside its range.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Differentiable in both sets; the backward pass forms the probabilities again, a block of
        rows at a time. Deterministic.

    Example:
        >>> import torch
        >>> rows, columns = match_logsumexp(torch.eye(2), torch.eye(2)[:1])
        >>> rows.round(decimals=4)
        tensor([1., 0.])
    """
    name = "match_logsumexp"
    sets, lengths, valid = (descriptors0, descriptors1), (lengths0, lengths1), (valid0, valid1)
    check(name, sets, metric, lengths, valid)
    _check_sums(name, metric, inverse_temperature)
    use = _backends.choose(name, refusals, backend, descriptors0, descriptors1)
    options = (*lengths, *valid)
    if use == "native" and native.direct(sets, *options):
        return native.sums(sets, options, native.METRICS[metric], inverse_temperature)
    pairs = with_batch(sets, metric, lengths, valid)
    rows, columns = logsumexp_both_ways(pairs, inverse_temperature, use)
    return pairs.strip(rows), pairs.strip(columns)


def _check_sums(name: str, metric: str, inverse_temperature: float) -> None:
    if metric == "l2":
        raise OptionError(f'{name}: metric must be "cosine" or "dot", got "l2".')
    if not (math.isfinite(inverse_temperature) and inverse_temperature > 0):
        raise OptionError(
            f"{name}: inverse_temperature must be positive and finite, got {inverse_temperature}."
        )


def dual_softmax_matches(
    descriptors0: Tensor,
    descriptors1: Tensor,
    *,
    inverse_temperature: float = 10.0,
    threshold: float | None = None,
    metric: Literal["cosine", "dot"] = "cosine",
    lengths0: Tensor | None = None,
    lengths1: Tensor | None = None,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    backend: Backend | None = None,
) -> Matches:
    """Mutual maxima of ``softmax over rows x softmax over columns`` of the scaled scores.

    ``P[i, j] = exp(2 t s[i, j] - lse_row[i] - lse_column[j])``, in two sweeps: one
    for the sums, one for the maxima. No ``N x M`` matrix is stored.

    Args:
        descriptors0: ``[N, D]`` or ``[P, N, D]``, as for :func:`nearest_neighbors`.
        descriptors1: ``[M, D]`` or ``[P, M, D]``.
        inverse_temperature: ``t``, multiplies the scores.
        threshold: Keep matches whose probability is above it.
        metric: ``"cosine"`` or ``"dot"``.
        lengths0: ``[P]`` int64, prefix lengths of a ragged batch.
        lengths1: ``[P]`` int64.
        valid0: Bool ``[N]`` or ``[P, N]``, True where a row takes part.
        valid1: Bool ``[M]`` or ``[P, M]``.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        Matches whose scores are the probabilities ``P``; -1 and 0 where there is none.

    Raises:
        ShapeError: Ranks or sizes do not fit together.
        DTypeError: Element types or devices do not fit together, or are not floating point.
        OptionError: ``metric`` or ``inverse_temperature`` is outside its range.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Probabilities of the matches are differentiable in both sets. Deterministic.

    Source:
        LoFTR, CVPR 2021, section 3.3, equation 2.

    Example:
        >>> import torch
        >>> dual_softmax_matches(torch.eye(2), torch.eye(2)).matches0
        tensor([0, 1])
    """
    name = "dual_softmax_matches"
    sets, lengths, valid = (descriptors0, descriptors1), (lengths0, lengths1), (valid0, valid1)
    check(name, sets, metric, lengths, valid)
    _check_sums(name, metric, inverse_temperature)
    use = _backends.choose(name, refusals, backend, descriptors0, descriptors1)
    options = (*lengths, *valid)
    if use == "native" and native.direct(sets, *options):
        number = native.METRICS[metric]
        found = native.dual_softmax(sets, options, number, inverse_temperature, threshold)
        return Matches(*found)
    pairs = with_batch(sets, metric, lengths, valid)
    rows, columns = logsumexp_both_ways(pairs, inverse_temperature, use)
    biased = pairs.with_terms(2 * inverse_temperature, -rows.detach(), -columns.detach())
    side0, side1 = best_both_ways(biased, use, second=False)
    matches0, matches1 = confirm(side0.indices, side1.indices)
    log_scores = dual_softmax_scores(
        pairs, inverse_temperature, rows, columns, matches0, side0.scores
    )
    # Rounding must not make a probability exceed 1.
    scores0 = log_scores.clamp_max(0).exp().masked_fill(matches0 < 0, 0.0)
    if threshold is not None:
        matches0 = matches0.masked_fill(~(scores0 > threshold), -1)
        scores0 = scores0.masked_fill(matches0 < 0, 0.0)
        matches1 = matches1.masked_fill(~(follow(scores0, matches1, 0.0) > threshold), -1)
    return Matches(
        pairs.strip(matches0),
        pairs.strip(matches1),
        pairs.strip(scores0),
        pairs.strip(follow(scores0, matches1, 0.0)),
    )
