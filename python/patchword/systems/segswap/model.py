# SPDX-License-Identifier: Apache-2.0
"""SegSwap's network: a frozen backbone and the transformer over the patches of two pictures.

Source: Shen, Efros, Joulin and Aubry, "Learning Co-segmentation by Segment Swapping for Retrieval
and Discovery", arXiv:2110.15904.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchword.backbones.base import Backbone
from patchword.errors import OptionError
from patchword.nn.cross_transformer import CrossTransformer
from patchword.systems.segswap.config import SegSwapConfig
from patchword.systems.segswap.refine import MaskRefiner


class SegSwapNetwork(nn.Module):
    """Pictures or their features in; coordinates in the other picture and shared masks out.

    Attributes:
        config: What it was built from.
        backbone: The frozen network, or None where only features come in.
        transformer: The part that is trained, with the state-dict prefix ``transformer.``.
        refiner: What makes masks fine, with the prefix ``refiner.``, or None.
    """

    def __init__(self, config: SegSwapConfig, backbone: Backbone | None = None) -> None:
        """Build the transformer with fresh weights around a loaded backbone.

        Raises:
            OptionError: The backbone is another one than the configuration says.
        """
        super().__init__()
        if backbone is not None and backbone.name != config.backbone:
            raise OptionError(
                f"SegSwapNetwork: backbone must be {config.backbone} as configured, "
                f"got {backbone.name}."
            )
        self.config = config
        self.backbone = backbone
        self.transformer = CrossTransformer(config.transformer)
        self.refiner = MaskRefiner(config.refiner) if config.refiner else None

    def features(self, pixels: Tensor) -> Tensor:
        """Frozen unit descriptors ``[B, C, H / 16, W / 16]`` of RGB ``[B, 3, H, W]`` in [0, 1].

        Raises:
            OptionError: The network was built without a backbone.
        """
        if self.backbone is None:
            raise OptionError(
                "SegSwapNetwork: features needs a backbone, got a network built without one."
            )
        maps = self.backbone.describe(pixels)
        # Backbones run in inference mode; what they return cannot be kept for a backward pass.
        return maps.clone() if maps.is_inference() and torch.is_grad_enabled() else maps

    def forward(
        self,
        features0: Tensor,
        features1: Tensor,
        valid0: Tensor | None = None,
        valid1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Relate unit descriptors of two pictures, see :meth:`CrossTransformer.forward`.

        Args:
            features0: ``[B, C, h0, w0]`` of :meth:`features`.
            features1: ``[B, C, h1, w1]``.
            valid0: bool ``[B, h0, w0]``, True where cells of picture 0 may be attended to.
            valid1: The same for picture 1.

        Returns:
            Two maps ``[B, 3, h, w]``: x, y in the other picture as shares of its width and
            height, and the probability of being shared.
        """
        out: tuple[Tensor, Tensor] = self.transformer(features0, features1, valid0, valid1)
        return out

    def cross_transformer(
        self,
        x: Tensor,
        y: Tensor,
        x_pad_mask: Tensor | None = None,
        y_pad_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` under the published convention for masks.

        Args:
            x: ``[B, C, h, w]`` descriptors of unit length.
            y: The same of the other pictures.
            x_pad_mask: bool ``[B, 1, h, w]`` or ``[B, h, w]``, True for cells to ignore.
            y_pad_mask: The same for ``y``.
        """
        return self.forward(x, y, _valid(x_pad_mask), _valid(y_pad_mask))


def _valid(padding: Tensor | None) -> Tensor | None:
    if padding is None:
        return None
    padding = padding[:, 0] if padding.ndim == 4 else padding
    return ~padding.bool()
