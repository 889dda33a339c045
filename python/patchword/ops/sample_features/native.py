# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schemas, allocation, registration, gradients, and when it refuses."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C
from patchword.ops.sample_features.reference import NORM_EPSILON, Affine

MODES = {"bilinear": 0, "nearest": 1}
PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}

# As kSampleMaxSide in kernels/sample_features/sample_features.h.
_MAX_SIDE = 2**24


def refuse(features: Tensor, points: Tensor) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    _, _, height, width = features.shape
    if height > _MAX_SIDE or width > _MAX_SIDE:
        return "the map has more than 2^24 cells along an axis"
    return _library.refuse_device(features) or _library.refuse_dtype(features)


# `affine` below is followed by mode, padding and align_corners, in the forward also by normalize.


def _forward(
    features: Tensor, points: Tensor, affine: Affine | list[float], *options: int
) -> Tensor:
    out = _fake_forward(features, points)
    if out.numel() == 0:
        return out
    if points.dtype is not torch.float32:
        points = points.float()
    _library.launch(
        C.sample_features_forward,
        features,
        features.data_ptr(),
        points.data_ptr(),
        _library.written(out),
        features.shape,
        features.stride(),
        points.shape[1],
        points.stride(),
        tuple(affine),
        DTYPE_TAGS[features.dtype],
        *options,
    )
    return out


def _fake_forward(features: Tensor, points: Tensor, *rest: Any) -> Tensor:
    batch, channels, _, _ = features.shape
    return features.new_empty(batch, points.shape[1], channels)


def _sorted_by_cell(
    features: Tensor, points: Tensor, stream: int, affine: Affine | list[float], *options: int
) -> tuple[Tensor, Tensor]:
    """Order of all points by cell, equal cells as they came, and where each cell begins."""
    batch, _, height, width = features.shape
    cells = torch.empty(points.shape[:2], dtype=torch.int64, device=points.device)
    C.sample_features_cells(
        stream,
        points.data_ptr(),
        cells.data_ptr(),
        features.shape,
        points.shape[1],
        points.stride(),
        tuple(affine),
        *options,
    )
    ordered, order = torch.sort(cells.flatten(), stable=True)
    edges = torch.arange(batch * height * width + 1, device=points.device)
    return order, torch.searchsorted(ordered, edges)


def _backward(
    grad: Tensor, features: Tensor, points: Tensor, affine: Affine | list[float], *rest: int
) -> tuple[Tensor, Tensor]:
    grad_features, grad_points = _fake_backward(grad, features, points, affine, *rest)
    if grad.numel() == 0:
        return grad_features.zero_(), grad_points.zero_()
    *options, wants_features, wants_points = rest
    points = points.float()
    grad = grad.contiguous()
    device, stream, _ = _library.runtime(features)
    order = starts = None
    if wants_features and device == _library.CUDA:
        order, starts = _sorted_by_cell(features, points, stream, affine, *options)
    _library.launch(
        C.sample_features_backward,
        features,
        features.data_ptr(),
        points.data_ptr(),
        grad.data_ptr(),
        _library.written(grad_features) if wants_features else 0,
        grad_points.data_ptr() if wants_points else 0,
        _library.address(order),
        _library.address(starts),
        features.shape,
        features.stride(),
        grad_features.stride() if wants_features else (0, 0, 0, 0),
        points.shape[1],
        points.stride(),
        tuple(affine),
        DTYPE_TAGS[features.dtype],
        *options,
    )
    return grad_features, grad_points


def _fake_backward(
    grad: Tensor, features: Tensor, points: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    wants_features, wants_points = rest[-2:]
    return (
        torch.empty_like(features) if wants_features else features.new_empty(0),
        points.new_empty(*(points.shape if wants_points else (0,)), dtype=torch.float32),
    )


_forward_op = _library.register(
    "sample_features_forward(Tensor features, Tensor points, float[] affine, int mode, "
    "int padding, bool align_corners, bool normalize) -> Tensor",
    _forward,
    _fake_forward,
)
# A gradient that is not wanted comes back with no elements.
_backward_op = _library.register(
    "sample_features_backward(Tensor grad, Tensor features, Tensor points, float[] affine, "
    "int mode, int padding, bool align_corners, bool wants_features, bool wants_points) "
    "-> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)


def _through_norm(grad: Tensor, vectors: Tensor) -> Tensor:
    """Gradient of the vectors from that of the vectors divided by their norms."""
    vectors = vectors.float()
    length = vectors.norm(dim=-1, keepdim=True)
    unit = vectors / length.clamp_min(NORM_EPSILON)
    along = (grad.float() * unit).sum(-1, keepdim=True)
    # A shorter vector is divided by a constant: nothing to take away there.
    along = torch.where(length > NORM_EPSILON, along, 0.0)
    through: Tensor = (grad.float() - unit * along) / length.clamp_min(NORM_EPSILON)
    return through.to(grad.dtype)


class _SampleFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, points: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(features, points)
        ctx.options = options
        return cast(Tensor, _forward_op(features, points, *options))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        features, points = ctx.saved_tensors
        *geometry, normalize = ctx.options
        if normalize:
            grad = _through_norm(grad, _forward_op(features, points, *geometry, False))
        wanted = ctx.needs_input_grad[:2]
        grad_features, grad_points = _backward_op(grad, features, points, *geometry, *wanted)
        return (
            grad_features if wanted[0] else None,
            grad_points.to(points.dtype) if wanted[1] else None,
            *(None for _ in ctx.options),
        )


def sample_features_native(
    features: Tensor,
    points: Tensor,
    affine: Affine,
    *,
    mode: str,
    padding: str,
    align_corners: bool,
    normalize: bool,
) -> Tensor:
    """Same contract as :func:`sample_features_reference`."""
    options = (affine, MODES[mode], PADDINGS[padding], align_corners, normalize)
    out: Tensor
    if _library.plain_eager(features, points):
        return _forward(features, points, *options)
    if _library.wants_gradient(features, points):
        out = _SampleFeatures.apply(features, points, *options)  # type: ignore[no-untyped-call]
        return out
    out = _forward_op(features, points, *options)
    return out
