# SPDX-License-Identifier: Apache-2.0
"""What a dense backbone is, and the way from any picture to its patch features."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.structures import ImageArray, PatchFeatures


@runtime_checkable
class Backbone(Protocol):
    """A frozen network that describes every patch of a picture.

    Attributes:
        name: Name under which :func:`patchword.backbones.create_backbone` builds it.
        stride: Pixels of its input per patch.
        multiple: Its input's height and width must be multiples of this.
        fill: Pixel value in [0, 1] that the network takes for nothing.
        device: Where it runs.
    """

    name: str
    stride: int
    multiple: int
    fill: float
    device: torch.device

    def describe(self, pixels: Tensor) -> Tensor:
        """Map ``[B, 3, H, W]`` RGB in [0, 1] to unit descriptors ``[B, D, H/stride, W/stride]``."""
        ...


def input_size(size: tuple[int, int], max_size: int, multiple: int) -> tuple[int, int]:
    """``(H, W)`` a network sees: longest side at most ``max_size``, both sides whole multiples."""
    factor = min(1.0, max_size / max(size))
    height, width = (max(1, round(side * factor / multiple)) * multiple for side in size)
    return height, width


def to_pixels(image: ImageArray, size: tuple[int, int], device: torch.device | str) -> Tensor:
    """Resize a picture and return ``[1, 3, *size]`` float32 in [0, 1]."""
    pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255.0
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    resized = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return resized.clamp(0.0, 1.0)


@torch.inference_mode()
def extract_features(
    backbone: Backbone, image: ImageArray, *, size: tuple[int, int]
) -> PatchFeatures:
    """Describe every patch of a picture.

    Args:
        backbone: The network.
        image: uint8 ``[H, W, 3]``.
        size: ``(H, W)`` that the network sees, multiples of ``backbone.multiple``.
    """
    pixels = to_pixels(image, size, backbone.device)
    maps = backbone.describe(pixels)
    return PatchFeatures(
        tokens=maps.flatten(2).transpose(1, 2),
        grid=(maps.shape[2], maps.shape[3]),
        stride=backbone.stride,
        image_size=(image.shape[0], image.shape[1]),
        pixels=pixels,
        image=image,
    )
