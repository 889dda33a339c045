# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schemas, allocation, registration, gradients, and when it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, FLOAT_DTYPES, C
from patchword.ops.attention.streams import Stream

# As kAttentionMaxDim in kernels/attention/attention.h.
MAX_DIM = 128

# q, k, v, key_mask, key_lengths, query_offsets, key_offsets: what the ops get of each stream.
_FIELDS = 7
Parts = tuple[Tensor | None, ...]


class _Kept(threading.local):
    """A small workspace that outlives the calls of one thread on the CPU."""

    memory: Tensor | None = None
    address = 0
    size = 0


kept = _Kept()
_KEPT_BYTES = 1 << 22


def refuse(*tensors: Tensor) -> str | None:
    """Why the compiled kernel cannot run these queries, keys and values, or None when it can."""
    first = tensors[0]
    reason = _library.refuse_device(first) or _library.refuse_dtype(*tensors)
    if reason is None and not 1 <= first.shape[-1] <= MAX_DIM:
        return f"the head size {first.shape[-1]} is not 1 to {MAX_DIM}"
    return reason


def runs_here(q: Tensor) -> bool:
    """Whether :func:`refuse` has nothing against queries on the CPU; the usual case, cheaply."""
    return C is not None and q.is_cpu and q.dtype in FLOAT_DTYPES and 1 <= q.shape[-1] <= MAX_DIM


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
    width = heads * dim
    return rows.new_empty_strided((batch, heads, count, dim), (count * width, dim, width, 1))


def _lse_like(rows: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[:-1], dtype=torch.float32)


def _unit_last(rows: Tensor) -> Tensor:
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(rows: Tensor, packed: bool) -> tuple[int, ...]:
    """Batch, head and row strides of ``[B, H, N, ...]`` or packed ``[T, H, ...]``."""
    strides = rows.stride()
    return (0, strides[1], strides[0]) if packed else strides[:3]


def _stream_numbers(
    parts: Parts, out: Tensor, lse: Tensor | None, kept: list[Tensor | None]
) -> tuple[int, ...]:
    """What the kernel gets of a stream; what it reads goes to ``kept``, to outlive the call."""
    q, k, v, mask, lengths, query_offsets, key_offsets = parts
    assert q is not None
    assert k is not None
    assert v is not None
    rows = (_unit_last(q), _unit_last(k), _unit_last(v))
    kept.extend(rows)
    q, k, v = rows
    packed, packed_keys = query_offsets is not None, key_offsets is not None
    addresses: tuple[int, ...] = (0, 0, 0, 0)
    mask_stride = 0
    if mask is not None or lengths is not None or packed or packed_keys:
        if mask is not None:
            mask = mask.contiguous() if mask.stride(-1) != 1 else mask
            mask_stride = mask.stride(0) if mask.ndim == 2 else 0
        index = [
            None if t is None else t.contiguous() for t in (query_offsets, key_offsets, lengths)
        ]
        kept += (*index, mask)
        addresses = (*map(_address, index), _address(mask))
    return (
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        _library.written(out),
        _address(lse),
        *addresses,
        q.shape[0 if packed else 2],
        k.shape[0 if packed_keys else 2],
        mask_stride,
        *_strides(q, packed),
        *_strides(k, packed_keys),
        *_strides(v, packed_keys),
        *_strides(out, packed),
        *((0, 0, 0) if lse is None else _strides(lse, packed)),
    )


def workspace(needed: int) -> Tensor:
    """Memory for a call on the CPU; it is kept for the next one unless it is large."""
    memory = torch.empty(needed, dtype=torch.uint8)
    if needed <= _KEPT_BYTES:
        kept.memory, kept.address, kept.size = memory, memory.data_ptr(), needed
    return memory


class _Call:
    """Addresses, sizes and strides of a call, and the tensors that they belong to."""

    def __init__(
        self,
        streams: Sequence[Parts],
        outs: Sequence[Tensor],
        lses: Sequence[Tensor | None],
        scales: Sequence[float],
    ) -> None:
        first, offsets = streams[0][0], streams[0][5]
        assert first is not None
        self.first = first
        self.batch = first.shape[0] if offsets is None else offsets.shape[0] - 1
        self.kept: list[Tensor | None] = []
        self.scales = tuple(scales)
        self.streams = tuple(
            [
                _stream_numbers(stream, outs[i], lses[i], self.kept)
                for i, stream in enumerate(streams)
            ]
        )

    def run(self, function: Callable[..., int], *gradients: Any) -> None:
        first = self.first
        device, stream, threads = _library.runtime(first)
        on_cpu = device == _library.CPU
        # On a GPU the allocator is the one that keeps memory.
        address, size = (kept.address, kept.size) if on_cpu else (0, 0)
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
            if on_cpu:
                memory = workspace(needed)
            else:
                memory = torch.empty(needed, dtype=torch.uint8, device=first.device)
            function(device, stream, threads, memory.data_ptr(), needed, *arguments)


def _streams_of(parts: Parts) -> list[Parts]:
    """The arguments of each stream that is there."""
    return [parts[:_FIELDS]] if parts[_FIELDS] is None else [parts[:_FIELDS], parts[_FIELDS:]]


def _run(
    streams: Sequence[Parts], scales: Sequence[float], want_lse: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    outs: list[Tensor] = []
    lses: list[Tensor | None] = []
    work = 0
    for stream in streams:
        q = stream[0]
        assert q is not None
        outs.append(_rows_like(q))
        lses.append(_lse_like(q) if want_lse else None)
        work += q.numel()
    if work:
        _Call(streams, outs, lses, scales).run(C.attention_forward)
    return outs, lses


def _split(arguments: Sequence[Any]) -> tuple[Parts, Sequence[Any]]:
    return tuple(arguments[: 2 * _FIELDS]), arguments[2 * _FIELDS :]


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts, (scales,) = _split(arguments)
    return _results(*_run(_streams_of(parts), scales, True))


def _results(
    outs: Sequence[Tensor], lses: Sequence[Tensor | None]
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
    queries = [stream[0] for stream in _streams_of(parts)]
    outs = [_rows_like(q) for q in queries if q is not None]
    return _results(outs, [_lse_like(q) for q in queries if q is not None])


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
        _rows_like(rows) for stream in _streams_of(parts) for rows in stream[:3] if rows is not None
    ]


def _six(gradients: list[Tensor]) -> tuple[Tensor, ...]:
    empty = [gradients[0].new_empty(0) for _ in range(6 - len(gradients))]
    return (*gradients, *empty)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    parts, (scales, *rest) = _split(arguments)
    forward = _streams_of(parts)
    count = len(forward)
    outs, lses, grad_outs, grad_lses = rest[0::4], rest[1::4], rest[2::4], rest[3::4]
    gradients = _gradients_like(parts)
    if not any(g.numel() for g in gradients):
        return _six(gradients)
    call = _Call(forward, outs[:count], lses[:count], scales)
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
                *map(_library.written, mine),
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


def _direct(op: Callable[..., Any], implementation: Callable[..., Any], *arguments: Any) -> Any:
    """The implementation of an op, past the dispatcher where nothing but it would be called."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    return (implementation if _library.plain_eager(*tensors) else op)(*arguments)


def attention_gradients(
    stream: Stream, out: Tensor, lse: Tensor, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one set's queries, keys and values from that of its output."""
    nothing = (None,) * _FIELDS
    found = _direct(
        _backward_op,
        _backward,
        *_parts(stream),
        *nothing,
        [stream.scale],
        out,
        lse,
        grad_out,
        None,
        *(None,) * 4,
    )
    return found[0], found[1], found[2]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scales: list[float], *parts: Tensor | None) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = _direct(_forward_op, _forward, *parts, scales)
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
        found = _direct(
            _backward_op,
            _backward,
            *parts,
            ctx.scales,
            out0,
            lse0,
            grad_out0,
            grad_lse0,
            *second,
        )
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
    rows = [tensor for stream in streams for tensor in stream[:3]]
    scales = [stream.scale for stream in streams]
    parts = [_parts(stream) for stream in streams]
    if _library.plain_eager(*rows):
        return list(zip(*_run(parts, scales, want_lse), strict=True))
    both = parts[0] + (parts[1] if len(parts) > 1 else (None,) * _FIELDS)
    if _library.wants_gradient(*rows):
        apply: Callable[..., tuple[Tensor, ...]] = _Attention.apply
        results = apply(scales, *_distinct(both))
    else:
        results = _forward_op(*both, scales)
    return [(results[i], results[2 + i]) for i in range(len(streams))]
