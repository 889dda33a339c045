# SPDX-License-Identifier: Apache-2.0
"""The adapter after the blocks: published as cross-attention to text, exactly a global context.

In the published layer tokens ask, one text vector repeated for every token answers, and tokens are
the values. All keys are equal, so every softmax is uniform and the attention gives the mean of the
values for each query, head and text. The collapsed form computes that mean once; the plain form
computes the attention as published and is kept to check the other.

Source: Lin et al., "Zero-Shot Everything Sketch-Based Image Retrieval, and in Explainable Style",
AAAI 2023, arXiv:2303.14348, for the layer that the published code starts from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6


class StdNorm(nn.Module):
    """``gain * (x - mean) / (std + 1e-6) + bias`` with the unbiased deviation."""

    def __init__(self, width: int) -> None:
        """Start from the identity gain."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., width]`` to the same shape."""
        centred = x - x.mean(dim=-1, keepdim=True)
        return self.gain * centred / (x.std(dim=-1, keepdim=True) + _EPS) + self.bias


class ContextAdapter(nn.Module):
    """Adds what the tokens have in common, then a feed-forward part, each followed by a norm."""

    def __init__(
        self, width: int, embed: int, heads: int, hidden: int, dropout: float = 0.1
    ) -> None:
        """Build the maps; ``query``, ``key`` and ``text`` serve the plain form only."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.text = nn.Linear(embed, width)
        self.norm0 = StdNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.norm1 = StdNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
        """The collapsed form.

        Args:
            tokens: ``[B, N, width]``.
            rows: Which tokens' answers are wanted; the context is the mean of all.

        Returns:
            ``[B, len(rows), width]``.
        """
        # The maps are affine, so the mean may be taken before them.
        context = self.out(self.value(tokens.mean(dim=1, keepdim=True)))
        return self._finish(tokens[:, rows], context)

    def plain(self, tokens: Tensor, text: Tensor) -> Tensor:
        """The published form.

        Args:
            tokens: ``[B, N, width]``.
            text: ``[B, embed]``, one text vector an item.

        Returns:
            ``[B, N, width]``.
        """
        batch, count, width = tokens.shape
        repeated = self.text(text)[:, None].expand(batch, count, width)

        def split(x: Tensor) -> Tensor:
            return x.view(batch, count, self.heads, -1).transpose(1, 2)

        query, key = split(self.query(tokens)), split(self.key(repeated))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        mixed = self.dropout(scores.softmax(dim=-1)) @ split(self.value(tokens))
        return self._finish(tokens, self.out(mixed.transpose(1, 2).flatten(2)))

    def _finish(self, tokens: Tensor, context: Tensor) -> Tensor:
        y = self.norm0(tokens + self.dropout(context))
        inner = self.dropout(F.relu(self.expand(y)))
        out: Tensor = self.norm1(y + self.dropout(self.contract(inner)))
        return out
