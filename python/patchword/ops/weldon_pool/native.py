# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schemas, allocation, registration, gradient, and when it refuses."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchword import _library
from patchword._library import DTYPE_TAGS, C
from patchword.ops.weldon_pool.reference import Plan

# Counts are 32-bit in the kernels.
_MAX_CELLS = 2**30


def refuse(maps: Tensor) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    if maps.shape[2] * maps.shape[3] > _MAX_CELLS:
        return "the maps have more than 2^30 cells"
    return _library.refuse_device(maps) or _library.refuse_dtype(maps)


# `plan` below is top_count, bottom_count, top_divisor and bottom_divisor.


def _forward(maps: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    out, thresholds = _fake_forward(maps, *arguments)
    if out.numel() == 0:
        return out, thresholds
    *plan, keep = arguments
    _library.launch(
        C.weldon_pool_forward,
        maps,
        maps.data_ptr(),
        out.data_ptr(),
        thresholds.data_ptr() if keep else 0,
        maps.shape,
        maps.stride(),
        DTYPE_TAGS[maps.dtype],
        (plan[0], plan[1]),
        (plan[2], plan[3]),
    )
    return out, thresholds


def _fake_forward(maps: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    keep = arguments[-1]
    batch, channels, _, _ = maps.shape
    rows = (batch, channels, 2) if keep else (0,)
    return maps.new_empty(batch, channels), maps.new_empty(*rows, dtype=torch.int32)


def _backward(grad: Tensor, maps: Tensor, thresholds: Tensor, *plan: Any) -> Tensor:
    grad_maps = torch.empty_like(maps)
    if maps.numel() == 0:
        return grad_maps
    grad = grad.contiguous()
    _library.launch(
        C.weldon_pool_backward,
        maps,
        maps.data_ptr(),
        thresholds.data_ptr(),
        grad.data_ptr(),
        _library.written(grad_maps),
        maps.shape,
        maps.stride(),
        grad_maps.stride(),
        DTYPE_TAGS[maps.dtype],
        (plan[0], plan[1]),
        (plan[2], plan[3]),
    )
    return grad_maps


def _fake_backward(grad: Tensor, maps: Tensor, thresholds: Tensor, *plan: Any) -> Tensor:
    return torch.empty_like(maps)


# Thresholds come back with no elements unless `keep`.
_forward_op = _library.register(
    "weldon_pool_forward(Tensor maps, int top_count, int bottom_count, float top_divisor, "
    "float bottom_divisor, bool keep) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_backward_op = _library.register(
    "weldon_pool_backward(Tensor grad, Tensor maps, Tensor thresholds, int top_count, "
    "int bottom_count, float top_divisor, float bottom_divisor) -> Tensor",
    _backward,
    _fake_backward,
)


class _WeldonPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, *plan: Any) -> Tensor:
        out, thresholds = _forward_op(maps, *plan, True)
        ctx.save_for_backward(maps, thresholds)
        ctx.plan = plan
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        maps, thresholds = ctx.saved_tensors
        return _backward_op(grad, maps, thresholds, *ctx.plan), *(None for _ in ctx.plan)


def weldon_pool_native(maps: Tensor, plan: Plan) -> Tensor:
    """Same contract as :func:`weldon_pool_reference`."""
    if _library.plain_eager(maps):
        return _forward(maps, *plan, False)[0]
    if _library.wants_gradient(maps):
        return cast(Tensor, _WeldonPool.apply(maps, *plan))  # type: ignore[no-untyped-call]
    return cast(Tensor, _forward_op(maps, *plan, False)[0])
