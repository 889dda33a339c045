# SPDX-License-Identifier: Apache-2.0
"""XFeat's descriptor network, written from its tensor table; key points and matcher are left out.

Source: Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching", CVPR 2024,
arXiv:2404.19174.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from patchword.backbones.weights import XFEAT, load_state_dict


class BasicLayer(nn.Module):
    """Convolution without bias, batch norm without affine part, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        """Build the layer; the padding keeps the size at stride 1."""
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, affine=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, h, w]`` to ``[B, C', h / stride, w / stride]``."""
        out: Tensor = self.layer(x)
        return out


class XFeatDescriptors(nn.Module):
    """Grey picture in, 64-channel descriptors at stride 8 out."""

    def __init__(self) -> None:
        """Build the network with fresh weights; :func:`load_xfeat` fills them."""
        super().__init__()
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(
            BasicLayer(1, 4),
            BasicLayer(4, 8, stride=2),
            BasicLayer(8, 8),
            BasicLayer(8, 24, stride=2),
        )
        self.block2 = nn.Sequential(BasicLayer(24, 24), BasicLayer(24, 24))
        self.block3 = nn.Sequential(
            BasicLayer(24, 64, stride=2), BasicLayer(64, 64), BasicLayer(64, 64, kernel=1)
        )
        self.block4 = nn.Sequential(
            BasicLayer(64, 64, stride=2), BasicLayer(64, 64), BasicLayer(64, 64)
        )
        self.block5 = nn.Sequential(
            BasicLayer(64, 128, stride=2),
            BasicLayer(128, 128),
            BasicLayer(128, 128),
            BasicLayer(128, 64, kernel=1),
        )
        self.block_fusion = nn.Sequential(
            BasicLayer(64, 64), BasicLayer(64, 64), nn.Conv2d(64, 64, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Descriptors ``[B, 64, H / 8, W / 8]``, not normalised, of ``[B, 3, H, W]`` in [0, 1]."""
        grey = F.instance_norm(images.mean(dim=1, keepdim=True))
        fine = self.block3(self.block2(self.block1(grey) + self.skip1(grey)))
        middle = self.block4(fine)
        coarse = self.block5(middle)
        size = fine.shape[-2:]
        total = fine + F.interpolate(middle, size, mode="bilinear")
        total = total + F.interpolate(coarse, size, mode="bilinear")
        out: Tensor = self.block_fusion(total)
        return out


def load_xfeat() -> XFeatDescriptors:
    """Build the descriptor network with its published weights, in evaluation mode.

    Raises:
        CheckpointError: The weights package is missing or its file is not the expected one.
    """
    network = XFeatDescriptors()
    wanted = network.state_dict().keys()
    state = {name: tensor for name, tensor in load_state_dict(XFEAT).items() if name in wanted}
    network.load_state_dict(state, strict=True)
    return network.eval().requires_grad_(False)
