# SPDX-License-Identifier: Apache-2.0
"""CLIP's image tower: one vector a picture, or one vector a patch that words can be compared with.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.backbones.clip.config import ImageConfig
from patchword.backbones.clip.layers import Activation, Transformer
from patchword.errors import OptionError, ShapeError

PositionMode = Literal["bicubic", "bilinear"]


class ImageTower(nn.Module):
    """A vision transformer with CLIP's extra norm before the blocks."""

    def __init__(
        self, config: ImageConfig, embed: int, activation: Activation = "quick_gelu"
    ) -> None:
        """Build the tower with random weights."""
        super().__init__()
        width, scale = config.width, config.width**-0.5
        self.config = config
        self.conv1 = nn.Conv2d(3, width, config.patch, config.patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(1 + config.grid**2, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.layers, config.heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed))

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Patches ``(h, w)`` of an input ``[B, 3, H, W]``.

        Raises:
            ShapeError: It is no such input, or its sides are no multiples of the patch.
        """
        patch = self.config.patch
        if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < patch:
            raise ShapeError(
                f"ImageTower: pixels must be [B, 3, H, W] with sides of at least {patch}, got "
                f"{list(pixels.shape)}."
            )
        height, width = pixels.shape[2:]
        if height % patch or width % patch:
            raise ShapeError(
                f"ImageTower: sides of the input must be multiples of {patch}, got "
                f"{height} x {width}."
            )
        return height // patch, width // patch

    def embed(self, pixels: Tensor, position_mode: PositionMode = "bicubic") -> Tensor:
        """Tokens ``[B, 1 + h * w, width]`` before the first norm, the class token first.

        Args:
            pixels: ``[B, 3, H, W]``, normalised with CLIP's mean and deviation.
            position_mode: How positions are interpolated for a grid other than the trained one.
        """
        grid = self.grid(pixels)
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.positions(grid, position_mode)

    def positions(self, grid: tuple[int, int], mode: PositionMode = "bicubic") -> Tensor:
        """Positional vectors ``[1 + h * w, width]`` for any grid; the stored table is unchanged."""
        side = self.config.grid
        if grid == (side, side):
            return self.positional_embedding
        first, rest = self.positional_embedding[:1], self.positional_embedding[1:]
        maps = rest.T.reshape(1, -1, side, side)
        resized = F.interpolate(maps, grid, mode=mode, align_corners=False)
        return torch.cat([first, resized[0].flatten(1).T])

    def project(self, tokens: Tensor) -> Tensor:
        """Bring tokens ``[..., width]`` after the blocks into the space shared with text."""
        out: Tensor = self.ln_post(tokens) @ self.proj
        return out

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors ``[B, embed]`` of whole pictures, not scaled to unit length.

        Args:
            pixels: ``[B, 3, H, W]``, normalised, sides multiples of the patch.
        """
        tokens = self.transformer(self.ln_pre(self.embed(pixels)))
        return self.project(tokens[:, 0])

    def patches(self, pixels: Tensor, start: int | None = None) -> Tensor:
        """Vectors ``[B, h * w, embed]`` of patches by value-value attention, no training needed.

        Args:
            pixels: ``[B, 3, H, W]``, normalised, sides multiples of the patch.
            start: First block, from 1, of the value-value path; by default the seventh of twelve.

        Raises:
            OptionError: There is no such block.

        Source:
            Li et al., "A Closer Look at the Explainability of Contrastive Language-Image
            Pre-training", Pattern Recognition 2025, arXiv:2304.05653.
        """
        layers = self.config.layers
        first = layers // 2 + 1 if start is None else start
        if not 1 <= first <= layers:
            raise OptionError(f"ImageTower: start must be in [1, {layers}], got {first}.")
        tokens = self.ln_pre(self.embed(pixels))
        path, _ = self.transformer.dual(tokens, first, (layers,))[layers]
        return self.project(path[:, 1:])
