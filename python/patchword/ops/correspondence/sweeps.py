# SPDX-License-Identifier: Apache-2.0
"""The passes over all scores that the matchers are made of, on either backend, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchword import _library
from patchword.ops.correspondence import native, reference
from patchword.ops.correspondence._inputs import Pairs, Side
from patchword.ops.correspondence.native import METRICS


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _native_inputs(pairs: Pairs) -> tuple[Tensor | None, ...]:
    a, b = pairs.descriptors
    return (_plain(a), _plain(b), *pairs.lengths, *pairs.valid)


def _reference_inputs(pairs: Pairs) -> tuple[Tensor, Tensor | None, Tensor | None]:
    a, b = (d.detach() for d in pairs.descriptors)
    masks = [
        reference.participants(d.shape[1], d, pairs.lengths[i], pairs.valid[i])
        for i, d in enumerate(pairs.descriptors)
    ]
    scores = reference.score_matrix(a, b, pairs.metric, pairs.scale, *pairs.terms)
    return scores, masks[0], masks[1]


def best_both_ways(pairs: Pairs, backend: str, *, second: bool) -> tuple[Side, Side]:
    """Best and, when asked, second-best candidate of every row and every column; no gradients."""
    if backend == "native":
        out = native.match_best(
            *_native_inputs(pairs), *pairs.terms, METRICS[pairs.metric], pairs.scale, second
        )
    else:
        out = reference.match_best_reference(*_reference_inputs(pairs))
    return Side(*out[:3]), Side(*out[3:])


def top_k(pairs: Pairs, k: int, backend: str) -> tuple[Tensor, Tensor]:
    """The ``k`` best candidates of every row of set 0, ``[P, N, k]``; no gradients."""
    if backend == "native":
        return native.match_topk(*_native_inputs(pairs), METRICS[pairs.metric], k)
    return reference.match_topk_reference(*_reference_inputs(pairs), k)


def _gathered_scores(pairs: Pairs, indices: Tensor) -> Tensor:
    """Scores of the pairs ``(i, indices[p, i, ...])``, formed in torch; index -1 is read as 0."""
    dtype = reference.compute_dtype(pairs.descriptors[0])
    a, b = (d.to(dtype) for d in pairs.descriptors)
    if pairs.metric == "cosine":
        a, b = reference.unit_rows(a), reference.unit_rows(b)
    flat = indices.clamp_min(0).flatten(1)
    chosen = b.gather(1, flat[..., None].expand(-1, -1, b.shape[2]))
    chosen = chosen.reshape(*indices.shape, b.shape[2])
    terms = -(a[:, :, None] - chosen).square() if pairs.metric == "l2" else a[:, :, None] * chosen
    return terms.sum(-1)


def pair_scores(pairs: Pairs, indices: Tensor, scores: Tensor) -> Tensor:
    """``scores`` of the chosen pairs ``indices [P, N, k]``, with a gradient where one is wanted."""
    if not _library.wants_gradient(*pairs.descriptors) or indices.numel() == 0:
        return scores
    if pairs.descriptors[1].shape[1] == 0:
        return scores
    return _gathered_scores(pairs, indices).masked_fill(indices < 0, -torch.inf)


# Rows whose probabilities are formed at a time in the backward pass of the log-sum-exp: 2^22 of
# them, 16 MB in float32.
_BLOCK = 2**22


class _LogSumExp(torch.autograd.Function):
    """Both log-sum-exps of ``t <a_i, b_j>``; the backward pass forms the probabilities again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, pairs: Pairs, backend: str) -> Any:
        rows, columns = _logsumexp(pairs, backend)
        ctx.save_for_backward(a, b, rows, columns)
        ctx.pairs = pairs
        return rows, columns

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        a, b, rows, columns = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        grad_rows, grad_columns = (
            torch.where(lse == -torch.inf, 0.0, g)
            for g, lse in zip(gradients, (rows, columns), strict=True)
        )
        masks = [
            reference.participants(d.shape[1], d, pairs.lengths[i], pairs.valid[i])
            for i, d in enumerate((a, b))
        ]
        dtype = reference.compute_dtype(a)
        left, right = a.to(dtype), b.to(dtype)
        out0, out1 = torch.zeros_like(left), torch.zeros_like(right)
        step = max(1, _BLOCK // max(b.shape[0] * b.shape[1], 1))
        for start in range(0, a.shape[1], step):
            part = slice(start, start + step)
            scores = pairs.scale * (left[:, part] @ right.transpose(1, 2))
            by_row = (scores - rows[:, part, None]).exp() * grad_rows[:, part, None]
            by_column = (scores - columns[:, None]).exp() * grad_columns[:, None]
            weight = (by_row + by_column) * pairs.scale
            rows_in = None if masks[0] is None else masks[0][:, part]
            weight = weight.masked_fill(reference.excluded(weight, rows_in, masks[1]), 0.0)
            out0[:, part] = weight @ right
            out1 += weight.transpose(1, 2) @ left[:, part]
        return out0.to(a.dtype), out1.to(b.dtype), None, None


def _logsumexp(pairs: Pairs, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "native":
        return native.match_logsumexp(*_native_inputs(pairs), METRICS[pairs.metric], pairs.scale)
    return reference.match_logsumexp_reference(*_reference_inputs(pairs))


def logsumexp_both_ways(
    pairs: Pairs, inverse_temperature: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the scaled scores of every row and every column."""
    pairs = pairs.with_terms(inverse_temperature, None, None)
    if not _library.wants_gradient(*pairs.descriptors):
        return _logsumexp(pairs, backend)
    a, b = pairs.descriptors
    if pairs.metric == "cosine":
        # Normalised outside, so that autograd carries the gradient through the norms.
        dtype = reference.compute_dtype(a)
        a, b = reference.unit_rows(a.to(dtype)), reference.unit_rows(b.to(dtype))
    inner = Pairs(
        (a.detach(), b.detach()), "dot", pairs.lengths, pairs.valid, True, inverse_temperature
    )
    rows, columns = _LogSumExp.apply(a, b, inner, backend)  # type: ignore[no-untyped-call]
    return rows, columns


def dual_softmax_scores(
    pairs: Pairs,
    inverse_temperature: float,
    rows: Tensor,
    columns: Tensor,
    matches0: Tensor,
    scores: Tensor,
) -> Tensor:
    """Log-probabilities of the matches of set 0, with a gradient where one is wanted."""
    if not _library.wants_gradient(*pairs.descriptors) or columns.shape[1] == 0:
        return scores
    chosen = _gathered_scores(pairs, matches0[..., None])[..., 0]
    column = columns.gather(1, matches0.clamp_min(0))
    log_scores = 2 * inverse_temperature * chosen - rows - column
    # A row without a match has nothing to differentiate; its -inf sums must not make NaN.
    return torch.where(matches0 < 0, -torch.inf, log_scores)
