# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schemas, allocation, registration, gradients, and when it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C
from patchword.ops.attention.streams import Stream

# As kAttentionMaxDim in kernels/attention/attention.h.
MAX_DIM = 128

# q, k, v, key_mask, key_lengths, query_offsets, key_offsets: what the ops get of each stream.
_FIELDS = 7
Parts = tuple[Tensor | None, ...]

_kept = threading.local()
_KEPT_BYTES = 1 << 22


def refuse(*tensors: Tensor) -> str | None:
    """Why the compiled kernel cannot run these queries, keys and values, or None when it can."""
    first = tensors[0]
    reason = _library.refuse_device(first) or _library.refuse_dtype(*tensors)
    if reason is None and not 1 <= first.shape[-1] <= MAX_DIM:
        return f"the head size {first.shape[-1]} is not 1 to {MAX_DIM}"
    return reason


def _parts(stream: Stream) -> Parts:
    return (
        stream.q,
        stream.k,
        stream.v,
        stream.key_mask,
        stream.key_lengths,
        stream.query_offsets,
        stream.key_offsets,
    )


def _rows_like(rows: Tensor) -> Tensor:
    """New rows of the same shape whose heads lie side by side in memory."""
    if rows.ndim == 3:
        return rows.new_empty(rows.shape)
    batch, heads, count, dim = rows.shape
    return rows.new_empty((batch, count, heads, dim)).transpose(1, 2)


def _lse_like(rows: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[:-1], dtype=torch.float32)


def _unit_last(rows: Tensor) -> Tensor:
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(rows: Tensor, packed: bool) -> tuple[int, int, int]:
    """Batch, head and row strides of ``[B, H, N, ...]`` or packed ``[T, H, ...]``."""
    strides = rows.stride()
    return (0, strides[1], strides[0]) if packed else (strides[0], strides[1], strides[2])


class _Call:
    """Addresses, sizes and strides of a call, and the tensors that they belong to."""

    def __init__(
        self, parts: Parts, outs: Sequence[Tensor], lses: Sequence[Tensor | None], scales: Any
    ) -> None:
        first = parts[0]
        assert first is not None
        offsets = parts[5]
        self.first = first
        self.batch = first.shape[0] if offsets is None else offsets.shape[0] - 1
        self.kept: list[Tensor | None] = []
        self.scales = tuple(scales)
        self.streams = tuple(
            [
                self._stream(parts[_FIELDS * i : _FIELDS * (i + 1)], outs[i], lses[i])
                for i in range(len(outs))
            ]
        )

    def _stream(self, parts: Parts, out: Tensor, lse: Tensor | None) -> tuple[int, ...]:
        q, k, v, mask, lengths, query_offsets, key_offsets = parts
        assert q is not None
        assert k is not None
        assert v is not None
        q, k, v = _unit_last(q), _unit_last(k), _unit_last(v)
        if mask is not None:
            mask = mask.contiguous() if mask.stride(-1) != 1 else mask
        lengths, query_offsets, key_offsets = (
            None if t is None else t.contiguous() for t in (lengths, query_offsets, key_offsets)
        )
        self.kept += [q, k, v, mask, lengths, query_offsets, key_offsets]
        return (
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            _address(lse),
            _address(query_offsets),
            _address(key_offsets),
            _address(lengths),
            _address(mask),
            q.shape[-2] if q.ndim == 4 else q.shape[0],
            k.shape[-2] if k.ndim == 4 else k.shape[0],
            mask.stride(0) if mask is not None and mask.ndim == 2 else 0,
            *_strides(q, q.ndim == 3),
            *_strides(k, k.ndim == 3),
            *_strides(v, v.ndim == 3),
            *_strides(out, q.ndim == 3),
            *((0, 0, 0) if lse is None else _strides(lse, q.ndim == 3)),
        )

    def run(self, function: Callable[..., int], *gradients: Any) -> None:
        first = self.first
        device, stream, threads = _library.runtime(first)
        scratch = getattr(_kept, "workspace", None) if device == _library.CPU else None
        address, size = (0, 0) if scratch is None else (scratch.data_ptr(), scratch.numel())
        arguments = (
            DTYPE_TAGS[first.dtype],
            self.batch,
            first.shape[1],
            first.shape[-1],
            self.streams,
            self.scales,
            *gradients,
        )
        needed = function(device, stream, threads, address, size, *arguments)
        if needed:
            # A small workspace outlives the call, one per thread; on a GPU the allocator keeps it.
            scratch = torch.empty(needed, dtype=torch.uint8, device=first.device)
            if needed <= _KEPT_BYTES and device == _library.CPU:
                _kept.workspace = scratch
            function(device, stream, threads, scratch.data_ptr(), needed, *arguments)


def _streams_of(parts: Parts) -> int:
    return 1 if parts[_FIELDS] is None else 2


def _run(
    parts: Parts, scales: Sequence[float], want_lse: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    queries = [parts[_FIELDS * i] for i in range(_streams_of(parts))]
    outs = [_rows_like(q) for q in queries if q is not None]
    lses: list[Tensor | None] = [
        _lse_like(q) if want_lse else None for q in queries if q is not None
    ]
    if any(out.numel() for out in outs):
        _Call(parts, outs, lses, scales).run(C.attention_forward)
    return outs, lses


def _split(arguments: Sequence[Any]) -> tuple[Parts, Sequence[Any]]:
    return tuple(arguments[: 2 * _FIELDS]), arguments[2 * _FIELDS :]


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts, (scales,) = _split(arguments)
    outs, lses = _run(parts, scales, True)
    return _results(parts, outs, lses)


def _results(
    parts: Parts, outs: Sequence[Tensor], lses: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs and log-sum-exps of two streams; empty tensors for one that is absent."""
    first = outs[0]
    other = outs[1] if len(outs) > 1 else first.new_empty(0)
    lse1 = lses[1] if len(lses) > 1 else first.new_empty(0, dtype=torch.float32)
    assert lses[0] is not None
    assert lse1 is not None
    return first, other, lses[0], lse1


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts, _ = _split(arguments)
    queries = [parts[_FIELDS * i] for i in range(_streams_of(parts))]
    outs = [_rows_like(q) for q in queries if q is not None]
    return _results(parts, outs, [_lse_like(q) for q in queries if q is not None])


def _stream_schema(side: int, optional: str) -> str:
    tensors = ", ".join(f"Tensor{optional} {name}{side}" for name in ("q", "k", "v"))
    return (
        f"{tensors}, Tensor? key_mask{side}, Tensor? key_lengths{side}, "
        f"Tensor? query_offsets{side}, Tensor? key_offsets{side}"
    )


_INPUTS = f"{_stream_schema(0, '')}, {_stream_schema(1, '?')}, float[] scales"

# The results of a second stream that is absent have no elements.
_forward_op = _library.register(
    f"attention_forward({_INPUTS}) -> (Tensor out0, Tensor out1, Tensor lse0, Tensor lse1)",
    _forward,
    _fake_forward,
)


def _gradients_like(parts: Parts) -> list[Tensor]:
    return [
        _rows_like(rows)
        for i in range(_streams_of(parts))
        for rows in parts[_FIELDS * i : _FIELDS * i + 3]
        if rows is not None
    ]


def _six(gradients: list[Tensor]) -> tuple[Tensor, ...]:
    empty = [gradients[0].new_empty(0) for _ in range(6 - len(gradients))]
    return (*gradients, *empty)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    parts, (scales, *rest) = _split(arguments)
    count = _streams_of(parts)
    outs, lses, grad_outs, grad_lses = rest[0::4], rest[1::4], rest[2::4], rest[3::4]
    gradients = _gradients_like(parts)
    if not any(g.numel() for g in gradients):
        return _six(gradients)
    call = _Call(parts, outs[:count], lses[:count], scales)
    streams = []
    for i in range(count):
        out = outs[i]
        grad_out = grad_outs[i]
        grad_out = torch.zeros_like(out) if grad_out is None else _unit_last(grad_out)
        grad_lse = grad_lses[i]
        if grad_lse is not None:
            # The kernel reads it with the strides of the log-sum-exp.
            grad_lse = grad_lse.float().contiguous()
        call.kept += [grad_out, grad_lse]
        mine = gradients[3 * i : 3 * i + 3]
        streams.append(
            (
                grad_out.data_ptr(),
                _address(grad_lse),
                *(g.data_ptr() for g in mine),
                *_strides(grad_out, out.ndim == 3),
                *(stride for g in mine for stride in _strides(g, g.ndim == 3)),
            )
        )
    call.run(C.attention_backward, tuple(streams))
    return _six(gradients)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    parts, _ = _split(arguments)
    return _six(_gradients_like(parts))


_backward_op = _library.register(
    f"attention_backward({_INPUTS}, Tensor out0, Tensor lse0, Tensor? grad_out0, "
    "Tensor? grad_lse0, Tensor? out1, Tensor? lse1, Tensor? grad_out1, Tensor? grad_lse1) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scales: list[float], *parts: Tensor | None) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = _forward_op(*parts, scales)
        out0, out1, lse0, lse1 = results
        ctx.single = parts[_FIELDS] is None
        ctx.scales = scales
        ctx.save_for_backward(*parts, out0, lse0, out1, lse1)
        ctx.set_materialize_grads(False)
        if ctx.single:
            ctx.mark_non_differentiable(out1, lse1)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *parts, out0, lse0, out1, lse1 = ctx.saved_tensors
        grad_out0, grad_out1, grad_lse0, grad_lse1 = grads
        second = (None,) * 4 if ctx.single else (out1, lse1, grad_out1, grad_lse1)
        found = _backward_op(*parts, ctx.scales, out0, lse0, grad_out0, grad_lse0, *second)
        wanted = ctx.needs_input_grad[1:]
        results: list[Tensor | None] = [None] * (2 * _FIELDS)
        for i in range(1 if ctx.single else 2):
            for j in range(3):
                if wanted[_FIELDS * i + j]:
                    results[_FIELDS * i + j] = found[3 * i + j]
        return None, *results


def _distinct(parts: Parts) -> Parts:
    """Views in place of tensors that came before: torch.compile refuses repeated inputs."""
    seen: list[Tensor] = []
    result: list[Tensor | None] = []
    for part in parts:
        again = part is not None and any(part is other for other in seen)
        result.append(part.view_as(part) if part is not None and again else part)
        if part is not None:
            seen.append(part)
    return tuple(result)


def attention_native(streams: Sequence[Stream], want_lse: bool) -> list[tuple[Tensor, Any]]:
    """Output and log-sum-exp of one or two streams; None instead of one that nobody wants."""
    parts: Parts = _parts(streams[0])
    parts += _parts(streams[1]) if len(streams) > 1 else (None,) * _FIELDS
    scales = [stream.scale for stream in streams]
    rows = parts[:3] + parts[_FIELDS : _FIELDS + 3]
    if _library.plain_eager(*rows):
        outs, lses = _run(parts, scales, want_lse)
        return list(zip(outs, lses, strict=True))
    if _library.wants_gradient(*rows):
        apply: Callable[..., tuple[Tensor, ...]] = _Attention.apply
        results = apply(scales, *_distinct(parts))
    else:
        results = _forward_op(*parts, scales)
    return [(results[i], results[2 + i]) for i in range(len(streams))]
