# SPDX-License-Identifier: Apache-2.0
"""A BERT encoder for inference, with the tensor names of published checkpoints.

Source: Devlin et al., "BERT", NAACL 2019, arXiv:1810.04805.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class BertConfig:
    """Sizes of the encoder; the defaults are those of MiniLM-L6-H384.

    Attributes:
        vocabulary: Number of word pieces.
        hidden: Width of a token.
        layers: Number of encoder layers.
        heads: Attention heads a layer.
        intermediate: Width inside the feed-forward part.
        positions: Longest sequence in pieces.
        norm_eps: Added to the variance in layer norms.
    """

    vocabulary: int = 30522
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    intermediate: int = 1536
    positions: int = 512
    norm_eps: float = 1e-12


class BertEmbeddings(nn.Module):
    """Sum of piece, position and segment vectors, normalised."""

    def __init__(self, config: BertConfig) -> None:
        """Build the tables."""
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(2, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids ``[B, L]`` to ``[B, L, hidden]``; all pieces belong to the first segment."""
        places = torch.arange(ids.shape[1], device=ids.device)
        total = self.word_embeddings(ids) + self.position_embeddings(places)
        out: Tensor = self.LayerNorm(total + self.token_type_embeddings.weight[0])
        return out


class BertSelfAttention(nn.Module):
    """Query, key and value projections and attention over all heads."""

    def __init__(self, config: BertConfig) -> None:
        """Build the projections."""
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """Map ``[B, L, hidden]`` to the same shape; ``valid_mask [B, L]`` True = attend."""
        batch, length, hidden = x.shape

        def split(projected: Tensor) -> Tensor:
            return projected.view(batch, length, self.heads, -1).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.query(x)),
            split(self.key(x)),
            split(self.value(x)),
            attn_mask=valid_mask[:, None, None, :],
        )
        return mixed.transpose(1, 2).reshape(batch, length, hidden)


class BertOutput(nn.Module):
    """Projection, addition to the input and layer norm."""

    def __init__(self, inputs: int, config: BertConfig) -> None:
        """Build the projection from ``inputs`` to the hidden width."""
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map ``x [B, L, inputs]`` and the residual to ``[B, L, hidden]``."""
        out: Tensor = self.LayerNorm(self.dense(x) + residual)
        return out


class BertAttention(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: BertConfig) -> None:
        """Build both parts; they are called ``self`` and ``output`` in checkpoints."""
        super().__init__()
        self.add_module("self", BertSelfAttention(config))
        self.output = BertOutput(config.hidden, config)

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """Map ``[B, L, hidden]`` to the same shape."""
        attended = self.get_submodule("self")(x, valid_mask)
        out: Tensor = self.output(attended, x)
        return out


class BertLayer(nn.Module):
    """Attention and a feed-forward part with the exact GELU."""

    def __init__(self, config: BertConfig) -> None:
        """Build one layer."""
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden, config.intermediate)})
        self.output = BertOutput(config.intermediate, config)

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """Map ``[B, L, hidden]`` to the same shape."""
        x = self.attention(x, valid_mask)
        out: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return out


class BertEncoder(nn.Module):
    """Piece ids in, token vectors of the last layer out."""

    def __init__(self, config: BertConfig | None = None) -> None:
        """Build the encoder with fresh weights."""
        super().__init__()
        self.config = config if config is not None else BertConfig()
        self.embeddings = BertEmbeddings(self.config)
        layers = [BertLayer(self.config) for _ in range(self.config.layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, ids: Tensor, valid_mask: Tensor) -> Tensor:
        """Encode.

        Args:
            ids: ``[B, L]`` int64.
            valid_mask: ``[B, L]`` bool, True for pieces that belong to the text.

        Returns:
            ``[B, L, hidden]``.
        """
        x: Tensor = self.embeddings(ids)
        layers = self.encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, valid_mask)
        return x
