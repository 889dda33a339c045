# SPDX-License-Identifier: Apache-2.0
"""InfoNCE at points of feature maps, in plain torch: the definition that the kernels must meet."""

from __future__ import annotations

import torch
from torch import Tensor

from patchword.ops.sample_features.reference import Affine, _axis

# Added to a norm before dividing by it, as the published loss does.
NORM_EPSILON = 1e-6


def _read(
    maps: Tensor, images: Tensor, points: Tensor, affine: Affine, align_corners: bool
) -> Tensor:
    """Vectors ``[K, C]`` at ``points [K, 2]`` of ``images [K]``: bilinear, zero outside."""
    batch, channels, height, width = maps.shape
    x, y = points.double().unbind(-1)
    outside = ("bilinear", "zeros", align_corners)
    x0, fraction_x = _axis(x, affine[0], affine[1], width, *outside)
    y0, fraction_y = _axis(y, affine[2], affine[3], height, *outside)
    # Indexing would count a negative image from the end; beyond the end it raises IndexError.
    images = torch.where(images < 0, batch, images)
    cells = maps.flatten(2).transpose(1, 2)
    vectors = maps.new_zeros((images.shape[0], channels))
    for dy, weight_y in enumerate((1 - fraction_y, fraction_y)):
        for dx, weight_x in enumerate((1 - fraction_x, fraction_x)):
            column, row = x0 + dx, y0 + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (weight_x * weight_y).to(maps.dtype)[:, None]
            cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            value = cells[images, cell.long()]
            # A cell without weight stays out, whatever it holds.
            kept = inside[:, None] & ((weight != 0) | value.isfinite())
            vectors = vectors + torch.where(kept, value, 0.0) * weight
    return vectors


def point_infonce_reference(
    features: Tensor,
    query_images: Tensor,
    query_points: Tensor,
    key_images: Tensor,
    key_points: Tensor,
    affine: Affine,
    *,
    temperature: float,
    normalize: bool,
    align_corners: bool,
) -> Tensor:
    """Losses ``[T]`` of ``features [B, C, h, w]``; float64 works.

    A vector is read bilinearly, zero outside the map, and divided by its norm plus 1e-6. With
    ``l`` the dot products of query ``t`` and its keys over the temperature, the loss is
    ``-l[0] + log sum exp l``: key 0 is the positive. ``affine`` as in
    :func:`patchword.ops.sample_features.reference.sample_features_reference`.
    """
    compute = torch.float64 if features.dtype == torch.float64 else torch.float32
    maps = features.to(compute)

    def read(images: Tensor, points: Tensor) -> Tensor:
        flat = points.reshape(-1, 2)
        vectors = _read(maps, images.reshape(-1).long(), flat, affine, align_corners)
        if normalize:
            vectors = vectors / (vectors.norm(dim=-1, keepdim=True) + NORM_EPSILON)
        return vectors.reshape(*images.shape, features.shape[1])

    queries, keys = read(query_images, query_points), read(key_images, key_points)
    logits = torch.einsum("tc,tnc->tn", queries, keys) / temperature
    return torch.logsumexp(logits, 1) - logits[:, 0]
