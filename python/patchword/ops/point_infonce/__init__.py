# SPDX-License-Identifier: Apache-2.0
"""InfoNCE between points of feature maps: one right key against several wrong ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.point_infonce import native
from patchword.ops.point_infonce.reference import point_infonce_reference
from patchword.ops.sample_features import _COORDINATES, _affine

__all__ = ["pair_weights", "point_infonce", "refusals"]


def _always(
    features: Tensor,
    query_images: Tensor,
    query_points: Tensor,
    key_images: Tensor,
    key_points: Tensor,
) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


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
    backend: Backend | None = None,
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

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        ``[T]`` losses ``-l_0 + log sum exp l``, float32 (float64 for float64 features). See
        :func:`pair_weights` for means over pairs of pictures.

    Raises:
        ShapeError: Shapes do not fit, or the maps have no cell.
        DTypeError: Features or points that are not floating point, images that are no integers,
            or tensors on several devices.
        OptionError: A temperature or stride that is not positive, or unknown coordinates.
        IndexError: An image outside 0..B-1. On a GPU, where looking would wait for the device,
            the loss of such a query is NaN instead, and so are the gradients of its points.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Differentiable once, in features and points. The compiled form keeps two numbers per point
        for the backward and reads the maps again there; neither pass holds the vectors of all
        points. Points are read in float32. Deterministic, backward included.

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
    for name, tensor in (
        ("query_images", query_images),
        ("query_points", query_points),
        ("key_images", key_images),
        ("key_points", key_points),
    ):
        if tensor.device != features.device:
            raise DTypeError(
                f"point_infonce: {name} must be on {features.device} like features, "
                f"got {tensor.device}."
            )
    if not temperature > 0:
        raise OptionError(f"point_infonce: temperature must be positive, got {temperature}.")
    if not stride > 0:
        raise OptionError(f"point_infonce: stride must be positive, got {stride}.")
    if coordinates not in _COORDINATES:
        raise OptionError(
            f'point_infonce: coordinates must be "pixel", "unit" or "normalized", '
            f"got {coordinates!r}."
        )
    _, _, height, width = features.shape
    if rows > 0 and (height == 0 or width == 0):
        raise ShapeError("point_infonce: features must have at least one cell, got none.")
    affine = _affine(coordinates, stride, align_corners, width, height)
    tensors = (features, query_images, query_points, key_images, key_points)
    chosen = _backends.choose("point_infonce", refusals, backend, *tensors)
    run = native.point_infonce_native if chosen == "native" else point_infonce_reference
    return run(
        *tensors,
        affine,
        temperature=temperature,
        normalize=normalize,
        align_corners=align_corners,
    )


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
