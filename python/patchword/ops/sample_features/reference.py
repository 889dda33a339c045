# SPDX-License-Identifier: Apache-2.0
"""Feature maps read at points, in plain torch: the definition that the kernels must meet."""

from __future__ import annotations

import torch
from torch import Tensor

# scale_x, shift_x, scale_y, shift_y: a coordinate times the scale plus the shift is a cell index.
Affine = tuple[float, float, float, float]

# Vectors shorter than this are divided by it when normalised.
NORM_EPSILON = 1e-12


def _reflect(index: Tensor, low: float, span: float) -> Tensor:
    if span <= 0:
        return torch.zeros_like(index)
    distance = (index - low).abs()
    flips = torch.floor(distance / span)
    # Beyond 2^53 the parity of the flips means nothing; infinity has none at all.
    flips = torch.where(flips < 2.0**53, flips, 0.0)
    rest = torch.where(distance / span < 2.0**53, distance - flips * span, 0.0)
    return low + torch.where(flips % 2 == 1, span - rest, rest)


def _pad(index: Tensor, size: int, padding: str, align_corners: bool) -> Tensor:
    if padding == "zeros":
        # Two cells beyond the map every weight is 0.
        return index.clamp(-3, size + 2)
    if padding == "reflection":
        index = _reflect(index, 0.0, size - 1) if align_corners else _reflect(index, -0.5, size)
    # On the border itself the index stands still: no gradient there, as in grid_sample.
    return torch.where(index > 0, torch.where(index < size - 1, index, float(size - 1)), 0.0)


def _axis(
    coordinate: Tensor,
    scale: float,
    shift: float,
    size: int,
    mode: str,
    padding: str,
    corners: bool,
) -> tuple[Tensor, Tensor]:
    """First cell and the fraction of the way to the second."""
    index = torch.where(
        coordinate.isnan(), -1.0, coordinate.nan_to_num(0.0, torch.inf, -torch.inf) * scale + shift
    )
    index = _pad(index, size, padding, corners)
    if mode == "nearest":
        index = index.round()
    first = index.detach().floor()
    return first, index - first


def sample_features_reference(
    features: Tensor,
    points: Tensor,
    affine: Affine,
    *,
    mode: str = "bilinear",
    padding: str = "zeros",
    align_corners: bool = False,
    normalize: bool = False,
) -> Tensor:
    """Read ``features [B, C, h, w]`` at ``points [B, M, 2]``.

    ``affine = (scale_x, shift_x, scale_y, shift_y)`` takes a coordinate to a cell index, whole
    numbers at cell centres; that is worked out in float64. Corners outside the map count as zero
    with ``padding="zeros"``; NaN and infinity in a corner whose weight is 0 stay out of the sum.
    ``normalize`` divides each vector by its L2 norm, or by 1e-12 if that is larger.
    Returns ``[B, M, C]``.
    """
    batch, channels, height, width = features.shape
    compute = torch.float64 if features.dtype == torch.float64 else torch.float32
    x, y = points.double().unbind(-1)
    x0, fraction_x = _axis(x, affine[0], affine[1], width, mode, padding, align_corners)
    y0, fraction_y = _axis(y, affine[2], affine[3], height, mode, padding, align_corners)
    cells = features.to(compute).flatten(2)
    out = features.new_zeros((batch, points.shape[1], channels), dtype=compute)
    for dy, weight_y in enumerate((1 - fraction_y, fraction_y)):
        for dx, weight_x in enumerate((1 - fraction_x, fraction_x)):
            column, row = x0 + dx, y0 + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (weight_x * weight_y).to(compute)[..., None]
            cell = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            value = cells.gather(2, cell[:, None].expand(-1, channels, -1)).transpose(1, 2)
            kept = inside[..., None] & ((weight != 0) | value.isfinite())
            out = out + torch.where(kept, value, 0.0) * weight
    if normalize:
        out = out / out.norm(dim=-1, keepdim=True).clamp_min(NORM_EPSILON)
    return out.to(features.dtype)
