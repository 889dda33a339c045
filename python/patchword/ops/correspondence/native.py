# SPDX-License-Identifier: Apache-2.0
"""The compiled forms: schemas, allocation, registration, and when they refuse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C

METRICS = {"dot": 0, "cosine": 1, "l2": 2}
MAX_TOP_K = 32
# On CUDA each further candidate costs a sweep of its own.
MAX_CUDA_TOP_K = 8
_MAX_ROWS = 2**31 - 64


def refuse(descriptors0: Tensor, descriptors1: Tensor, *_: Tensor, k: int = 1) -> str | None:
    """Why the compiled kernels cannot run these inputs, or None when they can.

    Tensors beyond the descriptors (``points0`` of a cycle) never reach the kernels.
    """
    if descriptors0.shape[-2] > _MAX_ROWS or descriptors1.shape[-2] > _MAX_ROWS:
        return f"more than {_MAX_ROWS} descriptors a side"
    if k > MAX_CUDA_TOP_K and descriptors0.is_cuda:
        return f"k = {k} exceeds {MAX_CUDA_TOP_K} on CUDA"
    return _library.refuse_device(descriptors0) or _library.refuse_dtype(descriptors0)


def _side(
    descriptors: Tensor,
    lengths: Tensor | None = None,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Any, ...]:
    """One set as the entries read it, ``[P, N, D]`` or ``[N, D]``."""
    own = descriptors.data_ptr(), descriptors.shape, descriptors.stride()
    if lengths is None and valid is None and bias is None:
        return (*own, 0, 0, 0, ())
    lengths = None if lengths is None else lengths.contiguous()
    bias = None if bias is None else bias.contiguous()
    strides = () if valid is None else valid.stride()
    addresses = _library.address(lengths), _library.address(valid), _library.address(bias)
    # The last part only keeps alive what the addresses point at.
    return (*own, *addresses, strides, (lengths, bias))


def _call(
    entry: Any,
    descriptors: tuple[Tensor, Tensor],
    options: tuple[Tensor | None, ...],
    metric: int,
    scale: float,
    *rest: Any,
) -> None:
    """Run an entry on both sets; ``options`` are lengths, masks and maybe biases of either."""
    a, b = descriptors
    sides = _side(a, *options[0::2]), _side(b, *options[1::2])
    _library.launch(entry, a, DTYPE_TAGS[a.dtype], metric, scale, *sides, *rest)


def _any_empty(a: Tensor, b: Tensor) -> bool:
    shape = a.shape
    return shape[0] == 0 or shape[-2] == 0 or b.shape[-2] == 0


def _outputs(like: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    indices = like.new_empty(*shape, dtype=torch.int64)
    return indices, like.new_empty(*shape, dtype=torch.float32)


def _fill_none(*outputs: Tensor) -> None:
    for out in outputs:
        out.fill_(-1 if out.dtype == torch.int64 else -torch.inf)


def _best(
    descriptors0: Tensor, descriptors1: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    out = _best_fake(descriptors0, descriptors1, *rest)
    if _any_empty(descriptors0, descriptors1):
        _fill_none(*out)
        return out
    *options, metric, scale, second = rest
    pointers = [t.data_ptr() for t in out]
    if not second:
        pointers[2] = pointers[5] = 0
    sets = (descriptors0, descriptors1)
    sides = tuple(pointers[:3]), tuple(pointers[3:])
    _call(C.match_best, sets, tuple(options), metric, scale, *sides, 1)
    return out


def _best_fake(
    descriptors0: Tensor, descriptors1: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    second = rest[-1]
    shape0, shape1 = descriptors0.shape[:2], descriptors1.shape[:2]
    indices0, scores0 = _outputs(descriptors0, *shape0)
    indices1, scores1 = _outputs(descriptors0, *shape1)
    second0 = scores0.new_empty(shape0 if second else (0,))
    second1 = scores0.new_empty(shape1 if second else (0,))
    return indices0, scores0, second0, indices1, scores1, second1


def _topk(descriptors0: Tensor, descriptors1: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    indices, scores = _topk_fake(descriptors0, descriptors1, *rest)
    if _any_empty(descriptors0, descriptors1):
        _fill_none(indices, scores)
        return indices, scores
    *options, metric, k = rest
    sets, out = (descriptors0, descriptors1), (indices.data_ptr(), scores.data_ptr(), 0)
    _call(C.match_best, sets, tuple(options), metric, 1.0, out, (0, 0, 0), k)
    return indices, scores


def _topk_fake(descriptors0: Tensor, descriptors1: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _outputs(descriptors0, *descriptors0.shape[:2], rest[-1])


def _logsumexp(descriptors0: Tensor, descriptors1: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows, columns = _logsumexp_fake(descriptors0, descriptors1)
    if _any_empty(descriptors0, descriptors1):
        _fill_none(rows, columns)
        return rows, columns
    *options, metric, scale = rest
    sets, out = (descriptors0, descriptors1), (rows.data_ptr(), columns.data_ptr())
    _call(C.match_logsumexp, sets, tuple(options), metric, scale, *out)
    return rows, columns


def _logsumexp_fake(
    descriptors0: Tensor, descriptors1: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *rows, _ = descriptors0.shape
    *columns, _ = descriptors1.shape
    return (
        descriptors0.new_empty(*rows, dtype=torch.float32),
        descriptors1.new_empty(*columns, dtype=torch.float32),
    )


_SIDES = (
    "Tensor descriptors0, Tensor descriptors1, Tensor? lengths0, Tensor? lengths1, "
    "Tensor? valid0, Tensor? valid1, "
)
_best_op = _library.register(
    f"match_best({_SIDES}Tensor? bias0, Tensor? bias1, int metric, float scale, bool second) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _best,
    _best_fake,
)
_topk_op = _library.register(
    f"match_topk({_SIDES}int metric, int k) -> (Tensor, Tensor)", _topk, _topk_fake
)
_logsumexp_op = _library.register(
    f"match_logsumexp({_SIDES}int metric, float scale) -> (Tensor, Tensor)",
    _logsumexp,
    _logsumexp_fake,
)


def match_best(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of ``patchword::match_best``, tensors without gradient."""
    run = _best if _library.plain_eager(*arguments[:8]) else _best_op
    out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = run(*arguments)
    return out


def match_topk(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Arguments of ``patchword::match_topk``, tensors without gradient."""
    run = _topk if _library.plain_eager(*arguments[:6]) else _topk_op
    out: tuple[Tensor, Tensor] = run(*arguments)
    return out


def match_logsumexp(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Arguments of ``patchword::match_logsumexp``, tensors without gradient."""
    run = _logsumexp if _library.plain_eager(*arguments[:6]) else _logsumexp_op
    out: tuple[Tensor, Tensor] = run(*arguments)
    return out


def direct(descriptors: tuple[Tensor, Tensor], *options: Tensor | None) -> bool:
    """Whether the functions below can run: on the CPU, without gradients or traces, not empty."""
    a, b = descriptors
    # First of all: what follows cannot be traced.
    return _library.plain_eager(a, b, *options) and _library.on_cpu(a) and not _any_empty(a, b)


def nearest(
    descriptors: tuple[Tensor, Tensor], options: tuple[Tensor | None, ...], metric: int, k: int
) -> tuple[Tensor, Tensor]:
    """Indices and scores ``[..., N]`` (``[..., N, k]``) of the ``k`` best, by one compiled call."""
    *rows, _ = descriptors[0].shape
    indices, scores = _outputs(descriptors[0], *rows, *(() if k == 1 else (k,)))
    out = indices.data_ptr(), scores.data_ptr(), 0
    _call(C.match_best, descriptors, options, metric, 1.0, out, (0, 0, 0), k)
    return indices, scores


def mutual_matches(
    descriptors: tuple[Tensor, Tensor],
    options: tuple[Tensor | None, ...],
    metric: int,
    scale: float,
    rule: tuple[float | None, float | None, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mutual matches and their scores, by one compiled call.

    ``options`` are lengths and masks of either side, and maybe biases; ``rule`` holds threshold,
    ratio and allow_single.
    """
    a, b = descriptors
    *rows, _ = a.shape
    *columns, _ = b.shape
    matches0, scores0 = _outputs(a, *rows)
    matches1, scores1 = _outputs(b, *columns)
    second0 = second1 = None
    if rule[1] is not None:
        second0, second1 = torch.empty_like(scores0), torch.empty_like(scores1)
    out0 = matches0.data_ptr(), scores0.data_ptr(), _library.address(second0)
    out1 = matches1.data_ptr(), scores1.data_ptr(), _library.address(second1)
    _call(C.match_mutual, descriptors, options, metric, scale, out0, out1, *rule)
    return matches0, matches1, scores0, scores1


def sums(
    descriptors: tuple[Tensor, Tensor],
    options: tuple[Tensor | None, ...],
    metric: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of every row and every column, by one compiled call."""
    rows, columns = _logsumexp_fake(*descriptors)
    out = rows.data_ptr(), columns.data_ptr()
    _call(C.match_logsumexp, descriptors, options, metric, scale, *out)
    return rows, columns


def dual_softmax(
    descriptors: tuple[Tensor, Tensor],
    options: tuple[Tensor | None, ...],
    metric: int,
    inverse_temperature: float,
    threshold: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mutual maxima of the product of both softmaxes with their probabilities, by two calls."""
    rows, columns = sums(descriptors, options, metric, inverse_temperature)
    biased = (*options, rows.neg_(), columns.neg_())
    found = mutual_matches(
        descriptors, biased, metric, 2 * inverse_temperature, (None, None, False)
    )
    for matches, scores in (found[0::2], found[1::2]):
        # Rounding must not make a probability exceed 1; "none" is -inf and becomes 0.
        scores.clamp_max_(0).exp_()
        if threshold is not None:
            dropped = ~(scores > threshold)
            matches.masked_fill_(dropped, -1)
            scores.masked_fill_(dropped, 0.0)
    return found


def cycle(
    descriptors: tuple[Tensor, Tensor],
    options: tuple[Tensor | None, ...],
    metric: int,
    points: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Nearest neighbours of set 0, those of them back in set 0, distances, and the scores.

    Distances are left to the caller, None, for points of another type than float32 and for those
    that need a gradient.
    """
    a, b = descriptors
    *rows, _ = a.shape
    *columns, _ = b.shape
    there, scores = _outputs(a, *rows)
    candidates, unused = _outputs(b, *columns)
    back = torch.empty_like(there)
    trip, distance = (back.data_ptr(), 0, 0), None
    if points.dtype is torch.float32 and _library.plain_eager(points):
        distance = torch.empty_like(scores)
        trip = (back.data_ptr(), points.data_ptr(), distance.data_ptr())
    out0 = there.data_ptr(), scores.data_ptr(), 0
    out1 = candidates.data_ptr(), unused.data_ptr(), 0
    strides = points.stride()
    _call(C.match_cycle, descriptors, options, metric, 1.0, out0, out1, trip, strides)
    return there, back, distance, scores
