# SPDX-License-Identifier: Apache-2.0
"""Residual attention blocks of CLIP, with the tensor names of its published checkpoints."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword import ops

Activation = Literal["quick_gelu", "gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation ``x * sigmoid(1.702 x)`` that OpenAI's checkpoints were trained with."""
    return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the projections."""
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = x.shape
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        heads = fused.view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def _merge(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Map ``[B, N, width]`` to the same shape; ``mask`` True = attend, shaped to broadcast."""
        query, key, value = self._split(x)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self._merge(mixed)

    def dual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ordinary attention, and that of values to values, both through the output projection.

        Args:
            x: ``[B, N, width]``.

        Returns:
            Two tensors ``[B, N, width]``: ``softmax(q k^T / sqrt(d)) v`` and
            ``softmax(v v^T / sqrt(d)) v``, projected.

        Source:
            Li et al., "A Closer Look at the Explainability of Contrastive Language-Image
            Pre-training", Pattern Recognition 2025, arXiv:2304.05653.
        """
        query, key, value = self._split(x)
        ordinary, values, *_ = ops.dual_attention(query, key, value)
        return self._merge(ordinary), self._merge(values)


class Mlp(nn.Module):
    """Two linear maps with an activation between."""

    def __init__(self, width: int, activation: Activation) -> None:
        """Build the maps, four times as wide inside."""
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.activation = quick_gelu if activation == "quick_gelu" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., width]`` to the same shape."""
        out: Tensor = self.c_proj(self.activation(self.c_fc(x)))
        return out


class Block(nn.Module):
    """Attention and feed-forward part, each on normalised input and added to it."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        """Build one block."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, activation)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Map ``[B, N, width]`` to the same shape."""
        x = x + self.attn(self.ln_1(x), mask, causal=causal)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

    def dual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """This block's output for ``x``, and what its value-value attention adds beside it."""
        ordinary, values = self.attn.dual(self.ln_1(x))
        x = x + ordinary
        return x + self.mlp(self.ln_2(x)), values


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, activation: Activation) -> None:
        """Build the blocks; they are called ``resblocks`` in checkpoints."""
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Map ``[B, N, width]`` to the same shape."""
        for block in self.resblocks:
            x = block(x, mask, causal=causal)
        return x

    def dual(
        self, x: Tensor, start: int, taps: tuple[int, ...]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Run all blocks, the last ones with value-value attention beside the ordinary one.

        The value-value path starts as a copy of the ordinary one before block ``start`` and adds
        up what the value-value attentions give; it never feeds back.

        Args:
            x: ``[B, N, width]``.
            start: First block, counted from 1, with both attentions.
            taps: Blocks, counted from 1 and not before ``start``, after which to look.

        Returns:
            For each tap the value-value path and the ordinary path, ``[B, N, width]``.
        """
        for block in self.resblocks[: start - 1]:
            x = block(x)
        path = x
        seen = {}
        for number, block in enumerate(self.resblocks[start - 1 : max(taps)], start=start):
            assert isinstance(block, Block)
            x, values = block.dual(x)
            path = path + values
            if number in taps:
                seen[number] = (path, x)
        return seen
