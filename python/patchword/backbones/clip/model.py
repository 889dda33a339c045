# SPDX-License-Identifier: Apache-2.0
"""CLIP: an image tower and a text tower that meet in one space.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, arXiv:2103.00020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchword.backbones.clip.config import ClipConfig
from patchword.backbones.clip.image import ImageTower
from patchword.backbones.clip.text import TextTower


class Clip(nn.Module):
    """Both towers and the learned scale of their product."""

    def __init__(self, config: ClipConfig) -> None:
        """Build both towers with random weights; see :func:`load_clip` for trained ones."""
        super().__init__()
        self.config = config
        self.visual = ImageTower(config.image, config.embed, config.activation)
        self.text = TextTower(config.text, config.embed, config.activation)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Vectors ``[B, embed]`` of pictures ``[B, 3, H, W]`` from :func:`preprocess`."""
        out: Tensor = self.visual(pixels)
        return out

    def encode_patches(self, pixels: Tensor) -> Tensor:
        """Vectors ``[B, h * w, embed]`` of patches; see :meth:`ImageTower.patches`."""
        return self.visual.patches(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Vectors ``[C, embed]`` of texts ``[C, 77]`` from the tokenizer."""
        out: Tensor = self.text(tokens)
        return out
