# SPDX-License-Identifier: Apache-2.0
"""Calls of one plain set on the CPU: checked, routed and laid out once per signature.

A tiny set is computed in less time than Python needs to check and to route it. All of that depends
on shapes, strides, types and settings alone, so a call like one before takes over what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword import _library
from patchword._library import CPU, DTYPE_TAGS, C
from patchword.ops._backends import Backend
from patchword.ops.attention import dispatch, native, routes
from patchword.ops.attention.streams import Stream, check_scale, fits

_MOST_BYTES = 1 << 21
"""Of a result. Above it the overhead is lost in the work, and memory wants huge pages."""
_MOST_PLANS = 1024

# Of a stream: no offsets of queries or keys, no lengths, no mask.
_NOWHERE = (0,) * 4
_NO_LSE = (0,) * 3

# Makes others of its type, in half the time of torch.empty.
_FLOAT32 = torch.empty(0, dtype=torch.float32)

# Bound once: a tiny call asks them.
_watched = _library.watched
_autocasts = torch.is_autocast_enabled
_grad_enabled = torch.is_grad_enabled
_threads = torch.get_num_threads

Ints = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What calls of one signature have in common; the memory that they use differs."""

    scale: float
    shape: Ints
    """Of queries, output and their gradients; the next are the strides of the latter."""

    strides: Ints
    key_shape: Ints
    key_strides: Ints
    sizes: Ints
    """Type, batch, heads and head size, as the kernel wants them."""

    tail: Ints
    """What the kernel wants of the stream after its five addresses."""

    lse_shape: Ints
    saved_strides: tuple[Ints, ...]
    gradient_strides: Ints


class _General:
    """In place of a plan: take the way of all calls."""


class _Torch:
    """In place of a plan: call torch's attention."""


_GENERAL, _TORCH = _General(), _Torch()
Found = _Plan | _General | _Torch


def _rows(batch: int, heads: int, count: int, dim: int) -> Ints:
    """Strides of rows whose heads lie side by side in memory."""
    width = heads * dim
    return count * width, dim, width, 1


def _native_plan(q: Tensor, k: Tensor, v: Tensor, scale: float, trains: bool) -> Found:
    saved = q.stride(), k.stride(), v.stride()
    if any(strides[3] != 1 for strides in saved):
        return _GENERAL
    batch, heads, count, dim = q.shape
    keys = k.shape[2]
    out, key_rows = _rows(batch, heads, count, dim), _rows(batch, heads, keys, dim)
    lse = (heads * count, count, 1)
    tail = (*_NOWHERE, count, keys, 0, *saved[0][:3], *saved[1][:3], *saved[2][:3], *out[:3])
    return _Plan(
        scale=scale,
        shape=tuple(q.shape),
        strides=out,
        key_shape=tuple(k.shape),
        key_strides=key_rows,
        sizes=(DTYPE_TAGS[q.dtype], batch, heads, dim),
        tail=(*tail, *(lse if trains else _NO_LSE)),
        lse_shape=(batch, heads, count),
        saved_strides=(*saved, out),
        gradient_strides=(*out[:3], *key_rows[:3], *key_rows[:3]),
    )


def _find(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    backend: Backend | None,
    trains: bool,
) -> Found | None:
    """What to do with calls like this; None where inputs are to be refused with their sentence."""
    if not fits(q, k, v) or not (scale is None or math.isfinite(scale)):
        return None
    largest = max(q.nbytes, k.nbytes) if trains else q.nbytes
    if q.numel() * k.numel() == 0 or largest > _MOST_BYTES or not _library.on_cpu(q):
        return _GENERAL
    factor = check_scale(op, "scale", scale, q.shape[-1])
    name = dispatch.choose(op, "plain", backend, False, (Stream(q, k, v, factor),))
    if name == routes.NATIVE:
        return _native_plan(q, k, v, factor, trains)
    return _TORCH if name in routes.SDPA_ROUTES else _GENERAL


def _call(entry: Callable[..., int], plan: _Plan, *arguments: Any) -> None:
    kept = native.kept
    needed = entry(CPU, 0, _threads(), kept.address, kept.size, *plan.sizes, *arguments)
    if needed:
        memory = native.workspace(needed)
        entry(CPU, 0, _threads(), memory.data_ptr(), needed, *plan.sizes, *arguments)


def _launch(plan: _Plan, q: Tensor, k: Tensor, v: Tensor, lse: int) -> Tensor:
    out = q.new_empty_strided(plan.shape, plan.strides)
    stream = (q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), lse, *plan.tail)
    _call(C.attention_forward, plan, (stream,), (plan.scale,))
    return out


class _Planned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lse = _FLOAT32.new_empty(plan.lse_shape)
        out = _launch(plan, q, k, v, lse.data_ptr())
        ctx.save_for_backward(q, k, v, out)
        # Nobody else holds it, and it has no gradient: it need not be watched like the others.
        ctx.kept = plan, lse
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        plan, lse = ctx.kept
        steps = grad.stride()
        # Hooks on saved tensors may have brought them back in other memory.
        found = q.stride(), k.stride(), v.stride(), out.stride()
        moved = found != plan.saved_strides
        if moved or steps[3] != 1 or _watched() or _grad_enabled() or type(grad) is not Tensor:
            stream = Stream(q, k, v, plan.scale)
            return None, *native.attention_gradients(stream, out, lse, grad)
        grad_q = q.new_empty_strided(plan.shape, plan.strides)
        grad_k = q.new_empty_strided(plan.key_shape, plan.key_strides)
        grad_v = q.new_empty_strided(plan.key_shape, plan.key_strides)
        forward = (
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            *plan.tail,
        )
        backward = (
            grad.data_ptr(),
            0,
            grad_q.data_ptr(),
            grad_k.data_ptr(),
            grad_v.data_ptr(),
            *steps[:3],
            *plan.gradient_strides,
        )
        _call(C.attention_backward, plan, (forward,), (plan.scale,), (backward,))
        return None, grad_q, grad_k, grad_v


# Function.apply looks for functorch first; a call that functorch sees has no plan.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _Planned).apply


def attend(
    op: str, q: Tensor, k: Tensor, v: Tensor, scale: float | None, backend: Backend | None
) -> Tensor | None:
    """Attention of one padded set whose keys all take part, where a plan will do.

    Args:
        op: Public function, for messages.
        q: As :func:`patchword.ops.attention` gets it, unchecked.
        k: The same.
        v: The same.
        scale: The same.
        backend: None or ``native``.

    Returns:
        The output; None for whatever is not so simple, bad inputs included.

    Raises:
        BackendError: A forced backend or route cannot run these inputs.
        ConfigError: The routing table is not valid.
    """
    if (
        _watched()
        or not (type(q) is type(k) is type(v) is Tensor)
        or not (q.is_cpu and k.is_cpu and v.is_cpu)
        # A scale that can change in place cannot stand for its value.
        or not (scale is None or type(scale) is float)
        or _autocasts("cpu")
    ):
        return None
    trains = _grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    key = (
        op,
        q.shape,
        k.shape,
        v.shape,
        q.stride(),
        k.stride(),
        v.stride(),
        q.dtype,
        k.dtype,
        v.dtype,
        scale,
        backend,
        trains,
    )
    plans = _library.plans
    plan: Found | None = plans.get(key)
    if plan is None:
        plan = _find(op, q, k, v, scale, backend, trains)
        if plan is None:
            return None
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        plans[key] = plan
    if isinstance(plan, _Plan):
        return _apply(plan, q, k, v) if trains else _launch(plan, q, k, v, 0)
    if plan is _GENERAL:
        return None
    if scale is None:  # the default is torch's own
        return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)
