# SPDX-License-Identifier: Apache-2.0
"""The small network: ink in, patch vectors out that are compared with projected sentences.

Trained from ImageNet weights on scenes composed of single drawings, see ``default_card.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from patchword.backbones.efficientnet_lite import ConvNorm, EfficientNetLite0
from patchword.errors import ShapeError

# Where the blocks of EfficientNet-Lite0 end that lie at strides 8, 16 and 32, and their channels.
_TAPS = {4: 40, 10: 112, 15: 320}
# A full black line on white is 2 units darker than its surroundings for the pretrained stem. Paper
# is 0 here, which is what convolutions pad with, so that beyond a picture's border lies paper.
_INK_VALUE = -2.0
_FIRST_SCALE = 12.0

MULTIPLE = 32
STRIDE = 8


@dataclass(frozen=True)
class SmallConfig:
    """Sizes of the small network.

    Attributes:
        width: Channels in which the three maps are joined.
        dimension: Size of the space that patches and words share.
        text_dimension: Size of the sentence vectors.
    """

    width: int = 128
    dimension: int = 192
    text_dimension: int = 384


class _Mixer(nn.Module):
    """A depthwise 5 x 5 and a pointwise convolution, added to what goes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.norm: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.pointwise(F.relu(self.norm(self.depthwise(x))))
        return out


class _Lateral(nn.Module):
    """A pointwise convolution and a norm that bring a map to the common width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1, bias=False)
        self.norm: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class SmallSketchNet(nn.Module):
    """EfficientNet-Lite0 on one channel of ink, joined at stride 8, beside a word projection."""

    def __init__(
        self,
        network: EfficientNetLite0 | None = None,
        config: SmallConfig | None = None,
        *,
        frozen_blocks: int = 0,
    ) -> None:
        """Build the network.

        Args:
            network: The network to start from, unfolded; fresh weights when None. It is taken
                apart: do not use it afterwards.
            config: Sizes.
            frozen_blocks: So many of the first blocks, and with them the stem, keep their weights;
                their norms still follow the statistics of sketches.
        """
        super().__init__()
        self.config = SmallConfig() if config is None else config
        self.frozen_blocks = frozen_blocks
        network = EfficientNetLite0() if network is None else network
        self.stem, self.blocks = network.stem, network.blocks
        self.stem.conv = _one_channel(self.stem.conv)
        if frozen_blocks:
            for part in (self.stem, *self.blocks[:frozen_blocks]):
                part.requires_grad_(False)
        width = self.config.width
        self.lateral8, self.lateral16, self.lateral32 = (
            _Lateral(channels, width) for channels in _TAPS.values()
        )
        self.mix16 = nn.Sequential(_Mixer(width), _Mixer(width))
        self.mix8 = _Mixer(width)
        self.out = nn.Conv2d(width, self.config.dimension, 1)
        self.text = nn.Linear(self.config.text_dimension, self.config.dimension, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))

    def fold(self) -> SmallSketchNet:
        """Fold every norm into its convolution and freeze; returns the network itself."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
            elif isinstance(module, _Lateral):
                module.conv, module.norm = _fused(module.conv, module.norm), nn.Identity()
            elif isinstance(module, _Mixer):
                module.depthwise = _fused(module.depthwise, module.norm)
                module.norm = nn.Identity()
        return self.requires_grad_(False)

    def encode_ink(self, ink: Tensor) -> Tensor:
        """Describe every patch of 8 x 8 pixels.

        Args:
            ink: ``[B, 1, H, W]`` in [0, 1], 1 on a line; sides are multiples of 32.

        Returns:
            ``[B, dimension, H / 8, W / 8]`` of unit length along axis 1.

        Raises:
            ShapeError: ``ink`` has another shape.
        """
        if ink.ndim != 4 or ink.shape[1] != 1 or ink.shape[2] % MULTIPLE or ink.shape[3] % MULTIPLE:
            raise ShapeError(
                f"encode_ink: ink must be [B, 1, H, W] with sides a multiple of {MULTIPLE}, got "
                f"{list(ink.shape)}."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_blocks == 0):
            x = self.stem(ink.contiguous(memory_format=torch.channels_last) * _INK_VALUE)
        taps = []
        for index, block in enumerate(self.blocks):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.frozen_blocks):
                x = block(x)
            if index in _TAPS:
                taps.append(x)
        map16, map8 = self.lateral16(taps[1]), self.lateral8(taps[0])
        joined = self.mix16(F.relu(map16 + _grown(self.lateral32(taps[2]), map16)))
        joined = self.mix8(F.relu(map8 + _grown(joined, map8)))
        return F.normalize(self.out(F.relu(joined)), dim=1)

    def encode_sentences(self, sentences: Tensor) -> Tensor:
        """Map sentence vectors ``[K, text_dimension]`` to unit vectors ``[K, dimension]``."""
        return F.normalize(self.text(sentences), dim=1)

    def forward(self, ink: Tensor, points: Tensor, sentences: Tensor) -> Tensor:
        """Scores of chosen points for every word, as training needs them.

        Args:
            ink: ``[B, 1, H, W]``, as for :meth:`encode_ink`.
            points: ``[B, P, 2]`` (x, y) in [-1, 1] over the picture, ``align_corners=False``.
            sentences: ``[K, text_dimension]``.

        Returns:
            ``[B, P, K]``: cosine times the learned scale, interpolated bilinearly.
        """
        maps = self.encode_ink(ink)
        at = F.grid_sample(
            maps, points[:, None], mode="bilinear", padding_mode="border", align_corners=False
        )
        scores = at[:, :, 0].transpose(1, 2) @ self.encode_sentences(sentences).T
        return self.log_scale.exp() * scores


def average_templates(vectors: Sequence[Tensor]) -> Tensor:
    """One unit vector a word from its unit vectors in several templates, ``[K, D]`` each."""
    return F.normalize(torch.stack(list(vectors)).mean(dim=0), dim=1)


def _grown(small: Tensor, large: Tensor) -> Tensor:
    return F.interpolate(small, size=large.shape[-2:], mode="bilinear", align_corners=False)


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d | nn.Identity) -> nn.Conv2d:
    return fuse_conv_bn_eval(conv, norm) if isinstance(norm, nn.BatchNorm2d) else conv


def _one_channel(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution for pictures whose three channels are equal."""
    kernel, stride = (conv.kernel_size[0], conv.kernel_size[1]), conv.stride[0]
    grey = nn.Conv2d(1, conv.out_channels, kernel, stride, bias=conv.bias is not None)
    with torch.no_grad():
        grey.weight.copy_(conv.weight.sum(dim=1, keepdim=True))
        if conv.bias is not None and grey.bias is not None:
            grey.bias.copy_(conv.bias)
    return grey
