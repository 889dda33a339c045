# SPDX-License-Identifier: Apache-2.0
"""What a dense backbone is, and the way from any picture to its patch features."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
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


def to_uint8_image(image: Any) -> ImageArray:
    """Turn whatever a caller calls a picture into uint8 RGB ``[H, W, 3]``.

    Args:
        image: Path, PIL picture, array ``[H, W, 3]`` or ``[H, W]`` (uint8, or float in [0, 1]),
            or tensor ``[3, H, W]`` (uint8, or float in [0, 1]).

    Raises:
        ShapeError: An array or tensor has another shape, or no pixel.
        DTypeError: Its element type is neither uint8 nor floating.
        DatasetError: A file cannot be read.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ShapeError(
                f"to_uint8_image: image tensor must have shape [3, H, W], got {list(image.shape)}."
            )
        image = image.detach().permute(1, 2, 0).cpu()
        image = image.float().numpy() if image.is_floating_point() else image.numpy()
    if not isinstance(image, np.ndarray):
        from patchword.data.io import read_image

        read: ImageArray = read_image(image)
        return read
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ShapeError(
            f"to_uint8_image: image array must have shape [H, W, 3] or [H, W] with at least one "
            f"pixel, got {list(image.shape)}."
        )
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if not np.issubdtype(image.dtype, np.floating):
        raise DTypeError(
            f"to_uint8_image: image must be uint8 or float in [0, 1], got {image.dtype}."
        )
    if not (np.isfinite(image).all() and image.min() >= 0.0 and image.max() <= 1.0):
        raise OptionError(
            "to_uint8_image: a floating image must lie in [0, 1], got values outside. "
            "Divide by its largest value."
        )
    return np.round(image * 255.0).astype(np.uint8)


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
    backbone: Backbone, image: ImageArray, *, max_size: int, upscale: float = 1.0
) -> PatchFeatures:
    """Describe every patch of a picture.

    Args:
        backbone: The network.
        image: uint8 ``[H, W, 3]``.
        max_size: Longest side in pixels that the network sees.
        upscale: Enlarges the picture first (still limited by ``max_size``).
    """
    wanted = (round(image.shape[0] * upscale), round(image.shape[1] * upscale))
    size = input_size(wanted, max_size, backbone.multiple)
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
