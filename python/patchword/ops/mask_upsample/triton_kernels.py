# SPDX-License-Identifier: Apache-2.0
"""Labels of upsampled maps in Triton: a second, independent form of the decision."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from patchword.ops.mask_upsample import native
from patchword.ops.mask_upsample.reference import Reading

BLOCK = 128  # neighbouring pixels of one row per program


def refuse(logits: Tensor, output: str | Tensor = "labels") -> str | None:
    """Why the Triton kernel cannot run these inputs, or None when it can."""
    if isinstance(output, Tensor):  # the target of upsampled_confusion
        return "the Triton version makes labels only, not counts"
    if output != "labels":
        return f"the Triton version makes labels only, not {output}"
    if not logits.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton needs a CUDA tensor, got one on {logits.device}"
    if logits.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"dtype {str(logits.dtype).removeprefix('torch.')} is not float32/float16/bfloat16"
    if find_spec("triton") is None:
        return "triton is not installed"
    return None


def labels(logits: Tensor, reading: Reading, label_dtype: torch.dtype, ignore_index: int) -> Tensor:
    """Same contract as :func:`reference.labels`."""
    size, mode, align_corners, class_mask, region = reading
    batch, channels, height, width = logits.shape
    out = logits.new_empty((batch, *size), dtype=label_dtype)
    if out.numel() == 0:
        return out
    kernel: Any = import_module("patchword.ops.mask_upsample.triton_labels")
    taps = 4 if native.MODES[mode] else 2

    def scale(cells: int, pixels: int) -> float:
        if align_corners:
            return (cells - 1) / (pixels - 1) if pixels > 1 else 0.0
        return cells / pixels

    grid = ((size[1] + BLOCK - 1) // BLOCK, size[0], batch)
    kernel.decide[grid](
        logits,
        out,
        class_mask,
        region,
        *logits.stride(),
        0 if class_mask is None or class_mask.ndim == 1 else class_mask.stride(0),
        0 if class_mask is None else class_mask.stride(-1),
        0 if region is None or region.shape[0] == 1 else region.stride(0),
        0 if region is None else region.stride(1),
        0 if region is None else region.stride(2),
        channels,
        height,
        width,
        size[0],
        size[1],
        scale(height, size[0]),
        scale(width, size[1]),
        ignore_index,
        HAS_MASK=class_mask is not None,
        HAS_REGION=region is not None,
        TAPS_Y=1 if height == size[0] else taps,
        TAPS_X=1 if width == size[1] else taps,
        ALIGN=align_corners,
        BLOCK=BLOCK,
    )
    return out
