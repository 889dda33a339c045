# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower; texts of any lengths share their beginnings and need no padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from patchword.backbones.clip.config import TextConfig
from patchword.backbones.clip.layers import Activation, Transformer
from patchword.backbones.clip.prefix_tree import grow_trees
from patchword.errors import OptionError, ShapeError


class TextTower(nn.Module):
    """A causal transformer over ids, read at the end id."""

    def __init__(
        self, config: TextConfig, embed: int, activation: Activation = "quick_gelu"
    ) -> None:
        """Build the tower with random weights."""
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context, config.width))
        self.transformer = Transformer(config.width, config.layers, config.heads, activation)
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(config.width**-0.5 * torch.randn(config.width, embed))

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors ``[C, embed]`` of texts, not scaled to unit length.

        Args:
            tokens: Ids ``[C, L]`` with L at most the context, zeros after the end id. The end id
                is the largest of a row, as in the published code; what follows it has no effect
                and is not computed.

        Raises:
            ShapeError: Rank or length do not fit.
        """
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.config.context:
            raise ShapeError(
                f"TextTower: tokens must be [C, L] with L in [1, {self.config.context}], got "
                f"{list(tokens.shape)}."
            )
        ends = tokens.argmax(dim=1).tolist()
        rows = tokens.tolist()
        return self.encode_sequences([row[: end + 1] for row, end in zip(rows, ends, strict=True)])

    def padded(self, tokens: Tensor) -> Tensor:
        """The same as :meth:`forward`, computed the published way over all positions."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x, causal=True))
        rows = torch.arange(len(tokens), device=tokens.device)
        out: Tensor = x[rows, tokens.argmax(dim=1)] @ self.text_projection
        return out

    def encode_sequences(
        self, sequences: Sequence[Sequence[int]], *, tree_size: int = 512
    ) -> Tensor:
        """Vectors ``[C, embed]`` of id sequences, each computed up to its last id.

        A causal transformer gives two texts with the same beginning the same states there, so
        the texts are merged into trees of shared beginnings and each state is computed once.

        Args:
            sequences: Ids, each from 1 to ``context`` long, start and end ids included.
            tree_size: Most states in one tree; a state attends to its own beginning by a mask
                over the tree.

        Raises:
            OptionError: A sequence is empty or too long, or an id is not in the vocabulary.
        """
        for ids in sequences:
            if not 1 <= len(ids) <= self.config.context:
                raise OptionError(
                    f"TextTower: a sequence must have 1 to {self.config.context} ids, got "
                    f"{len(ids)}."
                )
            if min(ids) < 0 or max(ids) >= self.config.vocabulary:
                raise OptionError(
                    f"TextTower: ids must be in [0, {self.config.vocabulary}), got "
                    f"{min(ids)} to {max(ids)}."
                )
        weight = self.text_projection
        out = weight.new_empty(len(sequences), weight.shape[1])
        for tree in grow_trees(sequences, tree_size):
            nodes = torch.tensor(tree.ids, device=weight.device)
            depths = torch.tensor(tree.depths, device=weight.device)
            x = self.token_embedding(nodes) + self.positional_embedding[depths]
            mask = tree.ancestors().to(weight.device)
            x = self.transformer(x[None], mask)[0]
            leaves = torch.tensor([node for _, node in tree.ends], device=weight.device)
            rows = torch.tensor([row for row, _ in tree.ends], device=weight.device)
            out = out.index_copy(0, rows, cast(Tensor, self.ln_final(x[leaves])) @ weight)
        return out
