# SPDX-License-Identifier: Apache-2.0
"""InfoNCE at points of feature maps, one vector after the other: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from patchword.ops.sample_features.reference import Affine, sample_features_reference

# Added to a norm before dividing by it, as the published loss does.
NORM_EPSILON = 1e-6


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
    ``-l[0] + log sum exp l``: key 0 is the positive.
    """
    compute = torch.float64 if features.dtype == torch.float64 else torch.float32
    maps = features.to(compute)

    def read(images: Tensor, points: Tensor) -> Tensor:
        flat = points.reshape(-1, 1, 2)
        vectors = sample_features_reference(
            maps[images.reshape(-1)], flat, affine, align_corners=align_corners
        )[:, 0]
        if normalize:
            vectors = vectors / (vectors.norm(dim=-1, keepdim=True) + NORM_EPSILON)
        return vectors.reshape(*images.shape, features.shape[1])

    queries, keys = read(query_images, query_points), read(key_images, key_points)
    logits = torch.einsum("tc,tnc->tn", queries, keys) / temperature
    return torch.logsumexp(logits, 1) - logits[:, 0]
