# SPDX-License-Identifier: Apache-2.0
"""Bilinear and nearest sampling of feature maps at points."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.sample_features import native
from patchword.ops.sample_features.reference import Affine, sample_features_reference

__all__ = ["refusals", "sample_features"]


def _always(features: Tensor, points: Tensor) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


_COORDINATES = ("pixel", "unit", "normalized")


def _affine(
    coordinates: str, stride: float, align_corners: bool, width: int, height: int
) -> Affine:
    shift = 0.0 if align_corners else -0.5
    if coordinates == "pixel":
        scale = 1.0 / stride
        return scale, shift, scale, shift
    span_x = float(width - 1 if align_corners else width)
    span_y = float(height - 1 if align_corners else height)
    if coordinates == "unit":
        return span_x, shift, span_y, shift
    return span_x / 2, span_x / 2 + shift, span_y / 2, span_y / 2 + shift


def sample_features(
    features: Tensor,
    points: Tensor,
    *,
    stride: float = 1.0,
    coordinates: Literal["pixel", "unit", "normalized"] = "pixel",
    mode: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["zeros", "border", "reflection"] = "zeros",
    align_corners: bool = False,
    normalize: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """Feature vectors of a map at points.

    Args:
        features: ``[B, C, h, w]``, any strides; float16/bfloat16/float32/float64.
        points: ``[B, M, 2]``, x before y. NaN is read one cell before the first.
        stride: Pixels per cell; used by ``coordinates="pixel"`` alone.
        coordinates: ``"pixel"``: origin at the top-left corner of the top-left pixel, cell
            ``(r, c)`` centred at ``((c + .5) stride, (r + .5) stride)``; with ``align_corners``
            cell centres lie at whole multiples of ``stride``. ``"unit"``: [0, 1] across the map.
            ``"normalized"``: [-1, 1], as ``torch.nn.functional.grid_sample``.
        mode: ``"nearest"`` rounds halves to even.
        padding: What lies outside: zeros, the border cell, or the mirrored map.
        align_corners: Whether the ends of the range are cell centres instead of cell edges.
        normalize: Divide each vector by its L2 norm, or by 1e-12 if that is larger.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        ``[B, M, C]`` in the dtype of ``features``. Empty when ``B``, ``M`` or ``C`` is 0.

    Raises:
        ShapeError: Rank, batch size or last size do not fit, or the map has no cell.
        DTypeError: ``features`` is not floating point.
        OptionError: An option is none of its documented values.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Differentiable in ``features`` and ``points``, the latter with ``mode="bilinear"`` alone
        (nearest: 0). At a cell's centre, where the slope jumps, the gradient is the difference
        towards larger coordinates; outside and on the border of a padded map it is 0. The
        compiled form reads points in float32. Deterministic on every backend, backward included.

    Example:
        >>> import torch
        >>> map = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> sample_features(map, torch.tensor([[[16.0, 16.0]]]), stride=16)
        tensor([[[1.5000]]])
    """
    shape, spots = features.shape, points.shape
    if len(shape) != 4:
        raise ShapeError(
            f"sample_features: features must have shape [B, C, h, w], got {list(shape)}.",
            "[B, C, h, w]",
            tuple(shape),
        )
    if len(spots) != 3 or spots[2] != 2 or spots[0] != shape[0]:
        raise ShapeError(
            f"sample_features: points must have shape [{shape[0]}, M, 2], got {list(spots)}.",
            (shape[0], "M", 2),
            tuple(spots),
        )
    if not features.dtype.is_floating_point:
        raise DTypeError(f"sample_features: features must be floating point, got {features.dtype}.")
    if not points.dtype.is_floating_point:
        raise DTypeError(f"sample_features: points must be floating point, got {points.dtype}.")
    if points.device != features.device:
        raise DTypeError(
            f"sample_features: points must be on {features.device} like features, "
            f"got {points.device}."
        )
    _, _, height, width = shape
    if (height == 0 or width == 0) and spots[1] > 0:
        raise ShapeError("sample_features: features must have at least one cell, got none.")
    if coordinates not in _COORDINATES:
        raise OptionError(
            f'sample_features: coordinates must be "pixel", "unit" or "normalized", '
            f"got {coordinates!r}."
        )
    if mode not in native.MODES:
        raise OptionError(f'sample_features: mode must be "bilinear" or "nearest", got {mode!r}.')
    if padding not in native.PADDINGS:
        raise OptionError(
            f'sample_features: padding must be "zeros", "border" or "reflection", got {padding!r}.'
        )
    if not stride > 0:
        raise OptionError(f"sample_features: stride must be positive, got {stride}.")
    affine = _affine(coordinates, stride, align_corners, width, height)
    chosen = _backends.choose("sample_features", refusals, backend, features, points)
    run = native.sample_features_native if chosen == "native" else sample_features_reference
    return run(
        features,
        points,
        affine,
        mode=mode,
        padding=padding,
        align_corners=align_corners,
        normalize=normalize,
    )
