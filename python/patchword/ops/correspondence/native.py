# SPDX-License-Identifier: Apache-2.0
"""The compiled forms: schemas, allocation, registration, and when they refuse."""

from __future__ import annotations

import threading
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

# A workspace up to this size outlives the call, one per thread.
_KEPT_BYTES = 2**20
_kept = threading.local()


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
    descriptors: Tensor, lengths: Tensor | None, valid: Tensor | None, bias: Tensor | None
) -> tuple[tuple[int, int, int, int], tuple[int, ...], tuple[int, ...]]:
    pointers = (
        descriptors.data_ptr(),
        0 if lengths is None else lengths.data_ptr(),
        0 if valid is None else valid.data_ptr(),
        0 if bias is None else bias.data_ptr(),
    )
    return pointers, descriptors.stride(), (0, 0) if valid is None else valid.stride()


def _workspace(size: int, like: Tensor) -> Tensor:
    if size > _KEPT_BYTES or not like.is_cpu:
        return torch.empty(size, dtype=torch.uint8, device=like.device)
    kept: Tensor | None = getattr(_kept, "workspace", None)
    if kept is None:
        kept = _kept.workspace = torch.empty(_KEPT_BYTES, dtype=torch.uint8)
    return kept


class _Call:
    """The arguments that both entry points share, with the tensors kept alive behind them."""

    def __init__(
        self,
        descriptors0: Tensor,
        descriptors1: Tensor,
        options: tuple[Tensor | None, ...],
        metric: int,
        scale: float,
        k: int,
        *,
        sums: bool = False,
    ) -> None:
        a, b = descriptors0, descriptors1
        kept = [None if t is None else t.contiguous() for t in (options[0], options[1])]
        biases = [None if t is None else t.contiguous() for t in (options[4], options[5])]
        self.sizes = (a.shape[0], a.shape[1], b.shape[1], a.shape[2])
        device, stream, threads = _library.runtime(a)
        if device == _library.CPU:
            size = C.match_workspace(threads, self.sizes, k)
        else:
            size = C.match_cuda_workspace(self.sizes, DTYPE_TAGS[a.dtype], sums)
        self.workspace = _workspace(size, a)
        self._alive = (*kept, *biases)
        self.arguments = (
            device,
            stream,
            threads,
            self.sizes,
            DTYPE_TAGS[a.dtype],
            metric,
            scale,
            *_side(a, kept[0], options[2], biases[0]),
            *_side(b, kept[1], options[3], biases[1]),
            self.workspace.data_ptr(),
        )


def _outputs(like: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    indices = torch.empty(shape, dtype=torch.int64, device=like.device)
    return indices, torch.empty(shape, dtype=torch.float32, device=like.device)


def _fill_none(*outputs: Tensor) -> None:
    for out in outputs:
        out.fill_(-1 if out.dtype == torch.int64 else -torch.inf)


def _best(
    descriptors0: Tensor,
    descriptors1: Tensor,
    lengths0: Tensor | None,
    lengths1: Tensor | None,
    valid0: Tensor | None,
    valid1: Tensor | None,
    bias0: Tensor | None,
    bias1: Tensor | None,
    metric: int,
    scale: float,
    second: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    out = _best_fake(
        descriptors0,
        descriptors1,
        lengths0,
        lengths1,
        valid0,
        valid1,
        bias0,
        bias1,
        metric,
        scale,
        second,
    )
    if descriptors0.shape[0] * descriptors0.shape[1] * descriptors1.shape[1] == 0:
        _fill_none(*out)
        return out
    options = (lengths0, lengths1, valid0, valid1, bias0, bias1)
    call = _Call(descriptors0, descriptors1, options, metric, scale, 1)
    pointers = [t.data_ptr() for t in out]
    if not second:
        pointers[2] = pointers[5] = 0
    C.match_best(*call.arguments, pointers[:3], pointers[3:], 1)
    return out


def _best_fake(
    descriptors0: Tensor,
    descriptors1: Tensor,
    lengths0: Tensor | None,
    lengths1: Tensor | None,
    valid0: Tensor | None,
    valid1: Tensor | None,
    bias0: Tensor | None,
    bias1: Tensor | None,
    metric: int,
    scale: float,
    second: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape0, shape1 = descriptors0.shape[:2], descriptors1.shape[:2]
    indices0, scores0 = _outputs(descriptors0, *shape0)
    indices1, scores1 = _outputs(descriptors0, *shape1)
    second0 = scores0.new_empty(shape0 if second else (0,))
    second1 = scores0.new_empty(shape1 if second else (0,))
    return indices0, scores0, second0, indices1, scores1, second1


def _topk(
    descriptors0: Tensor,
    descriptors1: Tensor,
    lengths0: Tensor | None,
    lengths1: Tensor | None,
    valid0: Tensor | None,
    valid1: Tensor | None,
    metric: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    indices, scores = _topk_fake(
        descriptors0, descriptors1, lengths0, lengths1, valid0, valid1, metric, k
    )
    if descriptors0.shape[0] * descriptors0.shape[1] * descriptors1.shape[1] == 0:
        _fill_none(indices, scores)
        return indices, scores
    options = (lengths0, lengths1, valid0, valid1, None, None)
    call = _Call(descriptors0, descriptors1, options, metric, 1.0, k)
    C.match_best(*call.arguments, (indices.data_ptr(), scores.data_ptr(), 0), (0, 0, 0), k)
    return indices, scores


def _topk_fake(
    descriptors0: Tensor,
    descriptors1: Tensor,
    lengths0: Tensor | None,
    lengths1: Tensor | None,
    valid0: Tensor | None,
    valid1: Tensor | None,
    metric: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    return _outputs(descriptors0, *descriptors0.shape[:2], k)


def _logsumexp(
    descriptors0: Tensor,
    descriptors1: Tensor,
    lengths0: Tensor | None,
    lengths1: Tensor | None,
    valid0: Tensor | None,
    valid1: Tensor | None,
    metric: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    out = _logsumexp_fake(
        descriptors0, descriptors1, lengths0, lengths1, valid0, valid1, metric, scale
    )
    if descriptors0.shape[0] * descriptors0.shape[1] * descriptors1.shape[1] == 0:
        _fill_none(*out)
        return out
    options = (lengths0, lengths1, valid0, valid1, None, None)
    call = _Call(descriptors0, descriptors1, options, metric, scale, 1, sums=True)
    C.match_logsumexp(*call.arguments, out[0].data_ptr(), out[1].data_ptr())
    return out


def _logsumexp_fake(
    descriptors0: Tensor,
    descriptors1: Tensor,
    lengths0: Tensor | None,
    lengths1: Tensor | None,
    valid0: Tensor | None,
    valid1: Tensor | None,
    metric: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return tuple(  # type: ignore[return-value]  # two of them
        torch.empty(d.shape[:2], dtype=torch.float32, device=d.device)
        for d in (descriptors0, descriptors1)
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


def mutual_matches(
    descriptors: tuple[Tensor, Tensor],
    lengths: tuple[Tensor | None, Tensor | None],
    valid: tuple[Tensor | None, Tensor | None],
    metric: int,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    rule: tuple[float | None, float | None, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Mutual matches and their scores, of the given shapes, by two compiled calls on the CPU.

    ``rule`` holds threshold, ratio and allow_single. None where torch has to do it: on other
    devices, for gradients and traces, and for empty inputs.
    """
    a, b = descriptors
    # First of all: what follows cannot be traced.
    if not _library.plain_eager(a, b, *lengths, *valid):
        return None
    if _library.runtime(a)[0] != _library.CPU or not a.is_cpu:
        return None
    if a.shape[0] * a.shape[1] * b.shape[1] == 0:
        return None
    call = _Call(a, b, (*lengths, *valid, None, None), metric, 1.0, 1)
    # Without a device: plain_eager has seen that no mode names another default.
    matches0, matches1 = (torch.empty(shape, dtype=torch.int64) for shape in shapes)
    scores0, scores1 = (torch.empty(shape, dtype=torch.float32) for shape in shapes)
    out0, out1 = (
        (matches0.data_ptr(), scores0.data_ptr(), 0),
        (matches1.data_ptr(), scores1.data_ptr(), 0),
    )
    if rule[1] is not None:
        second0, second1 = torch.empty_like(scores0), torch.empty_like(scores1)
        out0, out1 = (*out0[:2], second0.data_ptr()), (*out1[:2], second1.data_ptr())
    C.match_best(*call.arguments, out0, out1, 1)
    C.match_mutual_tail(call.sizes, metric, out0, out1, *rule)
    return matches0, matches1, scores0, scores1
