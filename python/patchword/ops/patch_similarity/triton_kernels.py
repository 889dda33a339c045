# SPDX-License-Identifier: Apache-2.0
"""Logits and softmax maps of up to 256 classes in Triton, for GPUs without the compiled library."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from patchword import _library

MAX_CLASSES = 256
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if find_spec("triton") is not None and (torch.cuda.is_available() or _INTERPRETED):
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _similarity_kernel(  # type: ignore[no-untyped-def]
        patches, queries, scale, bias, take_part, out,
        count, dim, classes, scale_value, background, eps,
        patches_b, patches_n, patches_d, queries_b, queries_c, queries_d, mask_b,
        out_b, out_n, out_c,
        COSINE: tl.constexpr, SOFTMAX: tl.constexpr, HAS_SCALE: tl.constexpr,
        HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BACKGROUND: tl.constexpr,
        WIDEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """One program: BLOCK_N patches of one batch entry against all classes.

        Patches are read once, queries once per program; norms come from the same tiles.
        """
        batch = tl.program_id(1).to(tl.int64)
        n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        c = tl.arange(0, BLOCK_C).to(tl.int64)
        z = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
        x_squares = tl.zeros((BLOCK_N,), dtype=tl.float32)
        w_squares = tl.zeros((BLOCK_C,), dtype=tl.float32)
        for start in range(0, dim, BLOCK_D):
            d = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
            x = tl.load(
                patches + batch * patches_b + n[:, None] * patches_n + d[None, :] * patches_d,
                mask=(n[:, None] < count) & (d[None, :] < dim),
                other=0.0,
            )
            w = tl.load(
                queries + batch * queries_b + c[:, None] * queries_c + d[None, :] * queries_d,
                mask=(c[:, None] < classes) & (d[None, :] < dim),
                other=0.0,
            )
            if WIDEN:
                x, w = x.to(tl.float32), w.to(tl.float32)
            z = tl.dot(x, tl.trans(w), z, input_precision="ieee")
            x_squares += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
            w_squares += tl.sum(w.to(tl.float32) * w.to(tl.float32), 1)
        factor = tl.load(scale).to(tl.float32) if HAS_SCALE else scale_value
        if COSINE:
            z = z / tl.maximum(tl.sqrt(x_squares), eps)[:, None]
            z = z / tl.maximum(tl.sqrt(w_squares), eps)[None, :]
        z = z * factor
        if HAS_BIAS:
            z += tl.load(bias + c, mask=c < classes, other=0.0).to(tl.float32)[None, :]
        if SOFTMAX:
            valid = c < classes
            if HAS_MASK:
                valid = valid & (tl.load(take_part + batch * mask_b + c, mask=valid, other=0) != 0)
            peak = tl.max(tl.where(valid[None, :], z, -float("inf")), 1)
            if HAS_BACKGROUND:
                peak = tl.maximum(peak, background)
            # An infinite peak (or NaN) makes the row NaN, as torch does.
            finite = peak - peak == 0.0
            shift = tl.where(finite, peak, 0.0)
            e = tl.where(valid[None, :], tl.exp(z - shift[:, None]), 0.0)
            total = tl.sum(e, 1)
            if HAS_BACKGROUND:
                total += tl.exp(background - shift)
            z = tl.where(finite[:, None], e / total[:, None], float("nan"))
            z = tl.where(valid[None, :], z, 0.0)
        tl.store(
            out + batch * out_b + n[:, None] * out_n + c[None, :] * out_c,
            z.to(out.dtype.element_ty),
            mask=(n[:, None] < count) & (c[None, :] < classes),
        )


def refuse(
    patches: Tensor, queries: Tensor, *, outputs: int = 1, top_k: int = 5, grouped: bool = False
) -> str | None:
    """Why the Triton kernel cannot run these inputs, or None when it can."""
    reason = _library.refuse_dtype(patches, queries)
    if find_spec("triton") is None:
        reason = "triton is not installed"
    elif not patches.is_cuda and not (_INTERPRETED and patches.device.type == "cpu"):
        reason = "triton kernels need a CUDA tensor (or TRITON_INTERPRET=1 before the import)"
    elif outputs not in (1, 2):
        reason = "the triton version makes logits or softmax alone"
    elif grouped:
        reason = "the triton version has no groups"
    elif queries.shape[-2] > MAX_CLASSES:
        reason = f"{queries.shape[-2]} classes exceed {MAX_CLASSES}"
    elif patches.dtype != queries.dtype:
        reason = "the triton version needs patches and queries of one dtype"
    elif torch.compiler.is_compiling() or _library.wants_gradient(patches, queries):
        reason = "the triton version is neither differentiable nor traceable"
    return reason


def patch_similarity_triton(
    patches: Tensor,
    queries: Tensor,
    *,
    softmax: bool,
    cosine: bool,
    scale: float | Tensor,
    bias: float | Tensor,
    class_mask: Tensor | None,
    background: float | None,
    channels_last: bool,
    eps: float,
) -> Tensor:
    """The logits or the softmax map, as :func:`patch_similarity_reference` defines them."""
    batch, count, dim = patches.shape
    classes = queries.shape[-2]
    shape = (batch, count, classes) if channels_last else (batch, classes, count)
    # The interpreter truncates to bfloat16, so torch does the rounding there.
    out = patches.new_empty(shape, dtype=torch.float32 if _INTERPRETED else patches.dtype)
    if out.numel() == 0:
        return out.to(patches.dtype)
    shared = queries.ndim == 2
    bias_tensor = bias if isinstance(bias, Tensor) else None
    if not isinstance(bias, Tensor) and bias != 0:
        bias_tensor = patches.new_full((classes,), bias, dtype=torch.float32)
    mask = None if class_mask is None else class_mask.contiguous().view(torch.uint8)
    stride_b, stride_1, stride_2 = out.stride()
    rows = 16 if _INTERPRETED else 32
    pointers: tuple[Any, ...] = (
        scale if isinstance(scale, Tensor) else patches,
        patches if bias_tensor is None else bias_tensor.contiguous(),
        patches if mask is None else mask,
    )
    _similarity_kernel[(triton.cdiv(count, rows), batch)](
        patches,
        queries,
        *pointers,
        out,
        count,
        dim,
        classes,
        1.0 if isinstance(scale, Tensor) else float(scale),
        0.0 if background is None else float(background),
        float(eps),
        *patches.stride(),
        0 if shared else queries.stride(0),
        *queries.stride()[-2:],
        classes if mask is not None and mask.ndim == 2 else 0,
        stride_b,
        *((stride_1, stride_2) if channels_last else (stride_2, stride_1)),
        COSINE=cosine,
        SOFTMAX=softmax,
        HAS_SCALE=isinstance(scale, Tensor),
        HAS_BIAS=bias_tensor is not None,
        HAS_MASK=mask is not None,
        HAS_BACKGROUND=background is not None,
        # The interpreter multiplies the bits of bfloat16.
        WIDEN=_INTERPRETED,
        BLOCK_N=rows,
        BLOCK_C=max(16, triton.next_power_of_2(classes)),
        BLOCK_D=32,
    )
    return out.to(patches.dtype)
