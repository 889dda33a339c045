# SPDX-License-Identifier: Apache-2.0
"""InfoNCE between points of feature maps: a composition of ``sample_features`` and torch.

It has no compiled kernel of its own: maps are read through the compiled ``sample_features``, each
once for all of its points, and the sampled vectors are kept for the backward.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops.point_infonce.reference import NORM_EPSILON
from patchword.ops.sample_features import sample_features

__all__ = ["pair_weights", "point_infonce"]


def _check_points(name: str, images: Tensor, points: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(images.shape) != shape:
        raise ShapeError(
            f"point_infonce: {name}_images must have shape {list(shape)}, "
            f"got {list(images.shape)}.",
            shape,
            tuple(images.shape),
        )
    if tuple(points.shape) != (*shape, 2):
        raise ShapeError(
            f"point_infonce: {name}_points must have shape {[*shape, 2]}, "
            f"got {list(points.shape)}.",
            (*shape, 2),
            tuple(points.shape),
        )
    if images.dtype is torch.bool or images.is_floating_point() or images.is_complex():
        raise DTypeError(f"point_infonce: {name}_images must be integers, got {images.dtype}.")
    if not points.is_floating_point():
        raise DTypeError(
            f"point_infonce: {name}_points must be floating point, got {points.dtype}."
        )


def _read(
    features: Tensor,
    images: Tensor,
    points: Tensor,
    stride: float,
    coordinates: Literal["pixel", "unit", "normalized"],
    align_corners: bool,
) -> Tensor:
    """Vectors ``[K, C]`` at ``points [K, 2]`` of ``images [K]``, every map visited once."""
    batch, count = features.shape[0], images.shape[0]
    order = torch.argsort(images, stable=True)
    many = torch.bincount(images, minlength=batch)
    first = many.cumsum(0) - many
    image = images[order]
    place = torch.arange(count, device=images.device) - first[image]
    # One row of points per image, as long as the longest; the rest lies outside and reads zeros.
    table = points.new_full((batch, int(many.max()) if count else 0, 2), torch.inf)
    table = table.index_put((image, place), points[order])
    vectors = sample_features(
        features, table, stride=stride, coordinates=coordinates, align_corners=align_corners
    )
    slot = torch.empty_like(place)
    slot[order] = place
    return vectors[images, slot]


def point_infonce(
    features: Tensor,
    query_images: Tensor,
    query_points: Tensor,
    key_images: Tensor,
    key_points: Tensor,
    *,
    temperature: float = 0.07,
    normalize: bool = True,
    stride: float = 1.0,
    coordinates: Literal["pixel", "unit", "normalized"] = "unit",
    align_corners: bool = False,
) -> Tensor:
    """Contrast feature vectors at points: each query with one right key and several wrong ones.

    Args:
        features: ``[B, C, h, w]``.
        query_images: ``[T]`` the map that each query lies in.
        query_points: ``[T, 2]``, x before y.
        key_images: ``[T, 1 + N]`` maps of the keys; the first key is the positive.
        key_points: ``[T, 1 + N, 2]``.
        temperature: What dot products are divided by.
        normalize: Divide each vector by its L2 norm plus 1e-6.
        stride: As in :func:`patchword.ops.sample_features`.
        coordinates: As in :func:`patchword.ops.sample_features`.
        align_corners: As there; the published loss has ``True``.

    Returns:
        ``[T]`` losses ``-l_0 + log sum exp l``, float32 (float64 for float64 features). See
        :func:`pair_weights` for means over pairs of pictures.

    Raises:
        ShapeError: Shapes do not fit.
        DTypeError: Features or points that are not floating point, images that are no integers.
        OptionError: A temperature that is not positive.
        IndexError: An image outside 0..B-1, as torch reports it.

    Note:
        A composition, not a kernel: vectors are read by the compiled ``sample_features`` and kept
        for the backward. Gradients reach features and points. Reads the numbers of points per
        image back from the device.

    Example:
        >>> import torch
        >>> maps = torch.eye(2).reshape(1, 2, 1, 2)
        >>> image = torch.zeros(1, dtype=torch.int64)
        >>> keys = torch.tensor([[[0.25, 0.5], [0.75, 0.5]]])
        >>> point_infonce(maps, image, keys[:, 0], image.expand(1, 2), keys, temperature=1.0)
        tensor([0.3133])
    """
    if features.ndim != 4:
        raise ShapeError(
            f"point_infonce: features must have shape [B, C, h, w], got {list(features.shape)}.",
            "[B, C, h, w]",
            tuple(features.shape),
        )
    if not features.is_floating_point():
        raise DTypeError(f"point_infonce: features must be floating point, got {features.dtype}.")
    if key_images.ndim != 2 or key_images.shape[1] == 0:
        raise ShapeError(
            f"point_infonce: key_images must have shape [T, 1 + N], got {list(key_images.shape)}.",
            "[T, 1 + N]",
            tuple(key_images.shape),
        )
    rows, many = key_images.shape
    _check_points("query", query_images, query_points, (rows,))
    _check_points("key", key_images, key_points, (rows, many))
    if not temperature > 0:
        raise OptionError(f"point_infonce: temperature must be positive, got {temperature}.")
    images = torch.cat((query_images, key_images.reshape(-1))).long()
    points = torch.cat((query_points, key_points.reshape(-1, 2)))
    vectors = _read(features, images, points, stride, coordinates, align_corners)
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    if normalize:
        vectors = vectors / (vectors.norm(dim=-1, keepdim=True) + NORM_EPSILON)
    keys = vectors[rows:].reshape(rows, many, features.shape[1])
    logits = torch.matmul(keys, vectors[:rows, :, None])[..., 0] / temperature
    losses: Tensor = torch.logsumexp(logits, 1) - logits[:, 0]
    return losses


def pair_weights(pairs: Tensor, weights: Tensor) -> Tensor:
    """Weights of queries that turn a sum of losses into a weighted sum of means over pairs.

    Args:
        pairs: ``[T]`` the pair of pictures that each query belongs to.
        weights: ``[P]`` of the pairs.

    Returns:
        ``[T]``: the pair's weight over its number of queries, 0 in a pair with fewer than two.

    Example:
        >>> import torch
        >>> pair_weights(torch.tensor([0, 0, 1, 2, 2]), torch.ones(3))
        tensor([0.5000, 0.5000, 0.0000, 0.5000, 0.5000])
    """
    many = torch.bincount(pairs, minlength=weights.shape[0])
    share = torch.where(many >= 2, weights / many.clamp(min=1), 0.0)
    return share[pairs]
