# SPDX-License-Identifier: Apache-2.0
"""Random inputs of the attention ops, and checks of results and gradients against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from patchword.ops import attention
from patchword.testing import assert_attention, assert_gradient, assert_log_sum_exp

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# B, H, Nq, Nk, d: empty, one, primes, around tiles of 4, 8, 24, 48 and blocks of 96 and 128.
SHAPES = [
    (0, 2, 3, 4, 8),
    (1, 2, 0, 4, 8),
    (2, 1, 3, 0, 8),
    (1, 1, 1, 1, 1),
    (2, 3, 7, 5, 3),
    (1, 2, 10, 10, 64),
    (1, 2, 33, 65, 32),
    (1, 1, 24, 128, 96),
    (1, 1, 49, 129, 128),
    (2, 1, 25, 127, 33),
    (1, 1, 97, 31, 100),
]


def make(shape: Sequence[int], dtype: torch.dtype = torch.float32, device: str = "cpu"):
    """Queries, keys and values, rounded to ``dtype``."""
    batch, heads, queries, keys, dim = shape
    counts = (queries, keys, keys)
    return tuple(torch.randn(batch, heads, n, dim).to(device, dtype) for n in counts)


def check(
    out: Tensor, lse: Tensor | None, tensors: Sequence[Tensor], what: str, **options: Any
) -> None:
    """One stream's results against the reference in float64."""
    q, k, v = (t.detach().cpu().double() for t in tensors)
    options = {n: o.cpu() if isinstance(o, Tensor) else o for n, o in options.items()}
    want, want_lse = attention(q, k, v, return_lse=True, backend="reference", **options)
    assert out.dtype == tensors[0].dtype
    assert_attention(out, want, what)
    if lse is None:
        return
    assert lse.dtype == torch.float32
    norms = q.norm(dim=-1).amax() * k.norm(dim=-1).amax() if q.numel() and k.numel() else 0.0
    scale = options.get("scale") or max(q.shape[-1], 1) ** -0.5
    mode = "float32" if tensors[0].dtype == torch.float32 else "half"
    assert_log_sum_exp(lse, want_lse, what, norm_product=norms, scale=scale, mode=mode)


def gradients(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], seeds: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of all differentiable results of ``function`` at ``tensors``."""
    inputs = [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
    inputs = [t.requires_grad_() for t in inputs]
    results = function(*inputs)
    seeds = [s.to(r.device, r.dtype) for s, r in zip(seeds, results, strict=True)]
    return list(torch.autograd.grad(results, inputs, seeds))


def check_gradients(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], what: str
) -> None:
    """``function(*tensors, backend)`` natively against the reference in float64."""
    results = function(*tensors, backend="native")
    # A log-sum-exp of -inf has no gradient to hand in.
    seeds = [
        torch.where(r.cpu().isfinite(), torch.randn(r.shape), 0.0).to(r.dtype) for r in results
    ]
    wide = [t.detach().cpu().double() for t in tensors]
    want = gradients(lambda *t: function(*t, backend="reference"), wide, seeds)
    got = gradients(lambda *t: function(*t, backend="native"), tensors, seeds)
    for i, (mine, oracle) in enumerate(zip(got, want, strict=True)):
        assert mine.dtype == tensors[i].dtype
        assert_gradient(mine, oracle, f"{what}: input {i}")
