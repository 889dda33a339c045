# SPDX-License-Identifier: Apache-2.0
"""Inputs for every form of the attention kernels for CUDA, and the errors that they may make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Relative Frobenius errors of the outputs and of the gradients against float64.
FORWARD = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}
BACKWARD = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def draw(dtype: torch.dtype, device: str, *shape: int) -> Tensor:
    """Normally distributed numbers, the same ones on every device."""
    return torch.randn(shape).to(dtype).to(device)


def draw_ragged(
    dtype: torch.dtype,
    device: str,
    sizes: tuple[Sequence[int], Sequence[int]],
    heads: int,
    dim: int,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Packed queries, keys and values of both sides, and the offsets that co-attention takes."""
    offsets = {
        f"offsets{side}": torch.tensor([0, *counts]).cumsum(0).to(device)
        for side, counts in enumerate(sizes)
    }
    tensors = [draw(dtype, device, sum(counts), heads, dim) for counts in sizes for _ in range(3)]
    return tensors, offsets


def error(got: Tensor, wanted: Tensor) -> float:
    """The relative Frobenius error of a result that has to be finite."""
    got, wanted = got.detach().double(), wanted.detach().double()
    assert got.isfinite().all()
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))


def check_results(got: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Compare outputs, then as many log-sum-exps, with those of the reference in float64."""
    half = len(got) // 2
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.shape == b.shape
        if i < half:
            assert error(a, b) <= FORWARD[dtype]
        else:
            assert torch.equal(a.isneginf(), b.isneginf())
            seen = ~b.isneginf()
            # The dot tolerance of the contract times the norms, which are about sqrt(d) here.
            torch.testing.assert_close(a[seen].double(), b[seen], atol=3e-5, rtol=0)
