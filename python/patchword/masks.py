# SPDX-License-Identifier: Apache-2.0
"""From maps on a patch grid to masks at a picture's size."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword import ops
from patchword.structures import FloatArray, ImageArray


def upsample_map(region: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample ``[h, w]`` or ``[K, h, w]`` bilinearly to ``size``; values stay in their range."""
    maps = region.reshape(1, -1, *region.shape[-2:]).contiguous()
    return ops.mask_upsample(maps, size).reshape(*region.shape[:-2], *size)


def guided_refine(
    mask: Tensor, image: ImageArray, *, radius: int | None = None, epsilon: float = 1e-3
) -> FloatArray:
    """Pull a soft mask's edges to those of its picture with a guided filter.

    Args:
        mask: ``[H, W]`` in [0, 1].
        image: uint8 ``[H, W, 3]``; its grey values guide.
        radius: Half window in pixels; by default a sixtieth of the longest side.
        epsilon: Grey variance below which the filter only smooths.

    Returns:
        float32 ``[H, W]`` in [0, 1].

    Source:
        He, Sun and Tang, "Guided Image Filtering", ECCV 2010.
    """
    if radius is None:
        radius = max(1, round(max(image.shape[:2]) / 60))
    guide = torch.from_numpy(np.ascontiguousarray(image)).to(mask.device).float().mean(dim=2) / 255
    stack = torch.stack([guide, mask, guide * guide, guide * mask])
    mean_guide, mean_mask, square, product = _window_mean(stack, radius)
    variance = square - mean_guide**2
    slope = (product - mean_guide * mean_mask) / (variance + epsilon)
    offset = mean_mask - slope * mean_guide
    slope, offset = _window_mean(torch.stack([slope, offset]), radius)
    refined: FloatArray = (slope * guide + offset).clamp(0.0, 1.0).cpu().numpy()
    return refined


def _window_mean(maps: Tensor, radius: int) -> Tensor:
    """Mean of ``[K, H, W]`` over square windows cut at the border, one axis after the other."""
    side = 2 * radius + 1
    one = maps[:, None]
    one = F.avg_pool2d(one, (side, 1), 1, (radius, 0), count_include_pad=False)
    one = F.avg_pool2d(one, (1, side), 1, (0, radius), count_include_pad=False)
    return one[:, 0]
