# SPDX-License-Identifier: Apache-2.0
"""Feature maps read at points, in plain torch: the definition that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def _reflect(index: Tensor, low: float, span: float) -> Tensor:
    if span <= 0:
        return torch.zeros_like(index)
    distance = (index - low).abs()
    flips = torch.floor(distance / span)
    rest = distance - flips * span
    return low + torch.where(flips % 2 == 1, span - rest, rest)


def _pad(index: Tensor, size: int, padding: str, align_corners: bool) -> Tensor:
    if padding == "zeros":
        return index
    if padding == "reflection":
        index = _reflect(index, 0.0, size - 1) if align_corners else _reflect(index, -0.5, size)
    return index.clamp(0, size - 1)


def sample_features_reference(
    features: Tensor,
    points: Tensor,
    affine: tuple[float, float, float, float],
    *,
    mode: str = "bilinear",
    padding: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Read ``features [B, C, h, w]`` at ``points [B, M, 2]``.

    ``affine = (scale_x, shift_x, scale_y, shift_y)`` takes a coordinate to a cell index, whole
    numbers at cell centres. Corners outside the map count as zero with ``padding="zeros"``; a
    corner whose weight is exactly 0 is not read. Returns ``[B, M, C]``.
    """
    batch, channels, height, width = features.shape
    compute = torch.float64 if features.dtype == torch.float64 else torch.float32
    points = points.to(compute)
    scale_x, shift_x, scale_y, shift_y = affine
    index_x = torch.where(points[..., 0].isnan(), -1.0, points[..., 0] * scale_x + shift_x)
    index_y = torch.where(points[..., 1].isnan(), -1.0, points[..., 1] * scale_y + shift_y)
    index_x = _pad(index_x, width, padding, align_corners).clamp(-3, width + 2)
    index_y = _pad(index_y, height, padding, align_corners).clamp(-3, height + 2)
    if mode == "nearest":
        index_x, index_y = index_x.round(), index_y.round()
    x0, y0 = index_x.floor(), index_y.floor()
    cells = features.to(compute).flatten(2)
    out = features.new_zeros((batch, points.shape[1], channels), dtype=compute)
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = x0 + dx, y0 + dy
            weight = (1 - (index_x - x).abs()) * (1 - (index_y - y).abs())
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (weight != 0)
            cell = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
            value = cells.gather(2, cell[:, None].expand(-1, channels, -1)).transpose(1, 2)
            term = torch.where(inside[..., None], value * weight[..., None], 0.0)
            out = out + term
    return out.to(features.dtype)
