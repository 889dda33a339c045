# SPDX-License-Identifier: Apache-2.0
"""The small sketch network: ink in, patch vectors out that are compared with projected words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.backbones.efficientnet_lite import EfficientNetLite0, same_padding

# Ink is that much darker than paper in the units the pretrained stem was trained in; paper is 0,
# which is also what convolutions pad with, so that the border of a picture looks like paper.
_INK_VALUE = -2.0
# Ends of the stages at strides 8, 16 and 32, and their widths.
_TAPS = {4: 40, 10: 112, 15: 320}


@dataclass(frozen=True)
class SmallConfig:
    """Sizes of the small network.

    Attributes:
        width: Channels of the decoder.
        dimension: Size of the space that patches and words share.
        text_dimension: Size of the sentence vectors.
    """

    width: int = 128
    dimension: int = 192
    text_dimension: int = 384


class _Mixer(nn.Module):
    """Depthwise 5 x 5 and pointwise convolution, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.pointwise(F.relu(self.norm(self.depthwise(x))))
        return out


class SmallSketchNet(nn.Module):
    """EfficientNet-Lite0 on ink, its three coarse maps joined at stride 8, and a word projection."""

    stride = 8

    def __init__(self, network: EfficientNetLite0, config: SmallConfig | None = None) -> None:
        super().__init__()
        self.config = SmallConfig() if config is None else config
        width = self.config.width
        self.stem = network.stem
        conv = self.stem.conv
        grey = nn.Conv2d(1, conv.out_channels, conv.kernel_size, conv.stride, bias=conv.bias is not None)
        with torch.no_grad():
            grey.weight.copy_(conv.weight.sum(dim=1, keepdim=True))
        self.stem.conv = grey
        self.blocks = network.blocks
        self.lateral = nn.ModuleDict(
            {str(tap): nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)) for tap, channels in _TAPS.items()}
        )
        self.mix16 = nn.Sequential(_Mixer(width), _Mixer(width))
        self.mix8 = _Mixer(width)
        self.out = nn.Conv2d(width, self.config.dimension, 1)
        self.text = nn.Linear(self.config.text_dimension, self.config.dimension, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(12.0)))
        self.frozen_blocks = 0

    def forward(self, ink: Tensor) -> Tensor:
        x = ink * _INK_VALUE
        maps = {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_blocks == 0):
            x = self.stem(x)
        for index, block in enumerate(self.blocks):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.frozen_blocks):
                x = block(x)
            if index in _TAPS:
                maps[index] = self.lateral[str(index)](x)
        p16 = maps[10] + F.interpolate(maps[15], size=maps[10].shape[-2:], mode="bilinear")
        p16 = self.mix16(F.relu(p16))
        p8 = maps[4] + F.interpolate(p16, size=maps[4].shape[-2:], mode="bilinear")
        return F.normalize(self.out(F.relu(self.mix8(F.relu(p8)))), dim=1)

    def project(self, sentences: Tensor) -> Tensor:
        return F.normalize(self.text(sentences), dim=1)
