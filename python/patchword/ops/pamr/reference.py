# SPDX-License-Identifier: Apache-2.0
"""Pixel-adaptive mask refinement in plain torch: the definition that the kernels must meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A neighbour's distance counts in units of SPREAD times the local deviation, plus EPSILON.
SPREAD = 0.1
EPSILON = 1e-8
_RING = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Tensor:
    """``[B, K, h, w]`` to ``[B, K, N, h, w]``; beyond the border the border is read."""
    height, width = maps.shape[-2:]
    y, x = torch.arange(height, device=maps.device), torch.arange(width, device=maps.device)
    shifted = [
        maps[..., (y + dy * d).clamp(0, height - 1), :][..., (x + dx * d).clamp(0, width - 1)]
        for d in dilations
        for dy, dx in _RING
    ]
    return torch.stack(shifted, 2)


def weights(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """Weights ``[B, N, h, w]`` of the neighbours of every pixel; they add up to 1."""
    around = _neighbours(image, dilations)
    centre = image[:, :, None]
    # The centre belongs to the ring of every dilation.
    values = torch.cat((around, centre.expand(-1, -1, len(dilations), -1, -1)), 2)
    sigma = values.std(2, keepdim=True)
    distance = (around - centre).abs() / (EPSILON + SPREAD * sigma)
    return torch.softmax(-distance.mean(1), 1)


def pamr_reference(
    image: Tensor, masks: Tensor, dilations: Sequence[int], iterations: int, live: Tensor | None
) -> Tensor:
    """Refine ``masks [B, C, h, w]`` along the edges of ``image [B, K, h, w]``.

    ``iterations`` times, every value becomes the weighted mean of its ``8 len(dilations)``
    neighbours. Channels that are not ``live [B, C]`` come out as 0. Computes in float32, in
    float64 when an input is float64; returns the dtype of ``masks``.
    """
    wide = torch.float64 in (image.dtype, masks.dtype)
    compute = torch.float64 if wide else torch.float32
    refined = masks.detach().to(compute)
    if masks.numel() and iterations:
        weight = weights(image.detach().to(compute), dilations)[:, None]
        for _ in range(iterations):
            refined = (_neighbours(refined, dilations) * weight).sum(2)
    if live is not None:
        refined = torch.where(live[:, :, None, None], refined, 0.0)
    return refined.to(masks.dtype, copy=True)
