# SPDX-License-Identifier: Apache-2.0
"""Random inputs that rows for the CPU and rows for CUDA share, each of them seeded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.registry import Inputs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def leaning_patches(
    batch: int, patches: int, classes: int, size: int, *, dtype: torch.dtype, scale: float
) -> Inputs:
    """Return patches [batch,patches,size] that lean towards some query, and the queries."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(classes, size, generator=generator)
    owner = torch.randint(classes, (batch, patches), generator=generator)
    noise = torch.randn(batch, patches, size, generator=generator)
    values = noise * 3 + queries[owner]
    return {"patches": values.to(dtype), "queries": queries.to(dtype), "scale": scale}


def logits(
    batch: int,
    classes: int,
    low: int,
    high: int,
    *,
    coarser: int | None,
    mode: str = "bilinear",
) -> Inputs:
    """Return logits [batch,classes,low,low] and the side to upsample to.

    They are noise, or smoothed noise of a grid that is ``coarser`` times coarser.
    """
    generator = torch.Generator().manual_seed(2)
    grid = low if coarser is None else max(2, low // coarser)
    values = torch.randn(batch, classes, grid, grid, generator=generator)
    if coarser is not None:
        values = F.interpolate(values, size=(low, low), mode="bicubic", align_corners=False)
    return {"logits": values, "size": (high, high), "mode": mode}


def packed_sets(
    batch: int, heads: int, tokens: int, dim: int, *, dtype: str, cross: bool
) -> Inputs:
    """Return packed projections [B,N,3,H,d] of two sets and a gradient of the output."""
    generator = torch.Generator().manual_seed(6)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(DTYPES[dtype])

    return {
        "packed0": draw(batch, tokens, 3, heads, dim),
        "packed1": draw(batch, tokens, 3, heads, dim),
        "seed": draw(batch, heads, tokens, dim),
        "cross": cross,
    }


def recurrence_tensors(steps: int, batch: int, units: int) -> Inputs:
    """Return the tensors of a layer with three gates, and the gradient of its output."""
    generator = torch.Generator().manual_seed(8)
    shapes = {
        "gates": (steps, batch, 3, units),
        "bias": (2 * units,),
        "weight": (2 * units,),
        "highway": (steps, batch, units),
        "grad": (steps, batch, units),
    }
    inputs: Inputs = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    for name in ("bias", "weight"):
        inputs[name] *= 0.1
    return inputs
