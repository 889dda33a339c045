# SPDX-License-Identifier: Apache-2.0
"""The dense backbones that ``match`` can use: which layers are read and how they are joined."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.backbones.efficientnet_lite import load_efficientnet_lite0
from patchword.backbones.xfeat import load_xfeat

# Border cells see only half a neighbourhood; grey around the picture (zero to the network) tells
# them so. Measured on the 24 homography pairs: nearest neighbours within 16 pixels .81 -> .84;
# mirrored or repeated borders do worse than none, as they look like real content.
_MARGIN = 32


def join_maps(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Bring maps ``[B, C_i, ...]`` to one grid, give each cell of each map unit length, and join.

    Returns:
        ``[B, sum C_i, *size]`` with cells of unit length.
    """
    parts = []
    for one in maps:
        unit = F.normalize(one, dim=1)
        if tuple(unit.shape[-2:]) != size:
            unit = F.interpolate(unit, size=size, mode="bilinear", align_corners=False)
            unit = F.normalize(unit, dim=1)
        parts.append(unit)
    return F.normalize(torch.cat(parts, dim=1), dim=1)


class EfficientNetBackbone:
    """EfficientNet-Lite0, blocks 10 (112 channels) and 14 (192 channels), stride 16."""

    name = "efficientnet-lite0"
    stride = 16
    multiple = 32
    fill = 127.0 / 255.0

    def __init__(self, device: torch.device, blocks: tuple[int, ...] = (10, 14)) -> None:
        """Load the weights onto ``device``."""
        self.device = device
        self.blocks = blocks
        self.network = load_efficientnet_lite0().to(device)

    @torch.inference_mode()
    def describe(self, pixels: Tensor) -> Tensor:
        """Unit descriptors ``[B, 304, H / 16, W / 16]`` of ``[B, 3, H, W]`` RGB in [0, 1]."""
        padded = F.pad(pixels, (_MARGIN,) * 4, value=self.fill)
        outputs = self.network.forward_blocks(padded, self.blocks)
        size = (padded.shape[-2] // self.stride, padded.shape[-1] // self.stride)
        cut = _MARGIN // self.stride
        joined = join_maps([outputs[block] for block in self.blocks], size)
        return joined[..., cut:-cut, cut:-cut].contiguous()


class XFeatBackbone:
    """XFeat's 64-channel descriptors at stride 8, averaged to stride 16."""

    name = "xfeat"
    stride = 16
    multiple = 32
    fill = 127.0 / 255.0

    def __init__(self, device: torch.device) -> None:
        """Load the weights onto ``device``."""
        self.device = device
        self.network = load_xfeat().to(device)

    @torch.inference_mode()
    def describe(self, pixels: Tensor) -> Tensor:
        """Unit descriptors ``[B, 64, H / 16, W / 16]`` of ``[B, 3, H, W]`` RGB in [0, 1]."""
        dense = F.normalize(self.network(pixels), dim=1)
        return F.normalize(F.avg_pool2d(dense, 2), dim=1)


class JointBackbone:
    """Two backbones of equal stride, their descriptors joined with equal weight."""

    def __init__(self, first: EfficientNetBackbone, second: XFeatBackbone) -> None:
        """Join two loaded backbones."""
        self.name = f"{first.name}+{second.name}"
        self.stride, self.multiple, self.fill = first.stride, first.multiple, first.fill
        self.device = first.device
        self._parts = (first, second)

    @torch.inference_mode()
    def describe(self, pixels: Tensor) -> Tensor:
        """Unit descriptors ``[B, D, H / 16, W / 16]`` of ``[B, 3, H, W]`` RGB in [0, 1]."""
        maps = [part.describe(pixels) for part in self._parts]
        return F.normalize(torch.cat(maps, dim=1), dim=1)
