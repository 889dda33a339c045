# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schemas, allocation, registration, gradients, and when it refuses."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchword import _library
from patchword._library import DTYPE_TAGS, C
from patchword.ops.sample_features.reference import Affine

# As kSampleMaxSide in kernels/sample_features/sample_features.h.
_MAX_SIDE = 2**24
# Points and map rows are numbered in 32 bits.
_MAX_COUNT = 2**31
# As kInfonceCudaBlock in kernels/point_infonce/point_infonce.h.
_CUDA_BLOCK = 64


def refuse(
    features: Tensor,
    query_images: Tensor,
    query_points: Tensor,
    key_images: Tensor,
    key_points: Tensor,
) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    batch, _, height, width = features.shape
    if height > _MAX_SIDE or width > _MAX_SIDE:
        return "the maps have more than 2^24 cells along an axis"
    rows, keys = key_images.shape
    if batch * height >= _MAX_COUNT or rows * (1 + keys) >= _MAX_COUNT:
        return "there are 2^31 or more points or map rows"
    return _library.refuse_device(features) or _library.refuse_dtype(features)


def _complain(images: Tensor, what: str, batch: int) -> None:
    wrong = images[(images < 0) | (images >= batch)]
    if wrong.numel():
        raise IndexError(
            f"point_infonce: {what} must lie in 0..{batch - 1}, got {int(wrong[0])}. "
            "Number the maps of the batch from 0."
        )


def _launch(entry: Any, features: Tensor, points: tuple[Tensor, ...], *arguments: Any) -> None:
    """Run an entry of ``_C``, which says that an image does not exist but not which one."""
    try:
        _library.launch(entry, features, *arguments)
    except IndexError:
        _complain(points[0], "query_images", features.shape[0])
        _complain(points[2], "key_images", features.shape[0])
        raise


def _read_points(*points: Tensor) -> tuple[Tensor, ...]:
    """Images as int64 and points as float32, what the kernels read."""
    return tuple(t.float() if t.is_floating_point() else t.long() for t in points)


def _described(
    features: Tensor,
    points: tuple[Tensor, ...],
    affine: Affine | list[float],
    temperature: float,
    normalize: bool,
) -> tuple[tuple[Any, ...], ...]:
    """What every entry begins with: addresses, sizes, strides, options and scales."""
    tensors = (features, *points)
    return (
        tuple(t.data_ptr() for t in tensors),
        (*features.shape, *points[2].shape),
        tuple(step for t in tensors for step in t.stride()),
        (DTYPE_TAGS[features.dtype], normalize),
        (*affine, temperature),
    )


def _forward(
    features: Tensor,
    query_images: Tensor,
    query_points: Tensor,
    key_images: Tensor,
    key_points: Tensor,
    affine: Affine | list[float],
    temperature: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    points = _read_points(query_images, query_points, key_images, key_points)
    losses, dots, norms = _fake_forward(features, query_images, query_points, key_images)
    if losses.numel() == 0:
        return losses, dots, norms
    _launch(
        C.point_infonce_forward,
        features,
        points,
        *_described(features, points, affine, temperature, normalize),
        losses.data_ptr(),
        dots.data_ptr(),
        norms.data_ptr(),
    )
    return losses, dots, norms


def _fake_forward(
    features: Tensor,
    query_images: Tensor,
    query_points: Tensor,
    key_images: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, keys = key_images.shape
    return (
        features.new_empty((rows,), dtype=torch.float32),
        features.new_empty((rows, keys), dtype=torch.float32),
        features.new_empty((rows, 1 + keys), dtype=torch.float32),
    )


def _cuda_memory(
    features: Tensor,
    points: tuple[Tensor, ...],
    described: tuple[tuple[Any, ...], ...],
    wants_features: bool,
) -> tuple[Tensor, ...]:
    """Weights, pulls and vectors to be written; order of the points and where cells begin."""
    rows, keys = points[2].shape
    count = rows * (1 + keys)
    weights = features.new_empty((count,), dtype=torch.float32)
    vectors = features.new_empty((count, _CUDA_BLOCK), dtype=torch.float32)
    cells = features.new_empty((count if wants_features else 0,), dtype=torch.int64)
    if not wants_features:
        return weights, torch.empty_like(weights), vectors, cells, cells
    _library.launch(C.point_infonce_cells, features, *described, cells.data_ptr())
    ordered, order = torch.sort(cells, stable=True)
    batch, _, height, width = features.shape
    edges = torch.arange(batch * height * width + 1, device=cells.device)
    starts = torch.searchsorted(ordered, edges)
    return weights, torch.empty_like(weights), vectors, order, starts


def _empty_gradients(
    features: Tensor,
    query_points: Tensor,
    key_points: Tensor,
    wants_features: bool,
    wants_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys = (
        features.new_empty(t.shape if wants_points else (0,), dtype=torch.float32)
        for t in (query_points, key_points)
    )
    grad_features = torch.empty_like(features) if wants_features else features.new_empty((0,))
    return grad_features, queries, keys


def _backward(
    grad: Tensor,
    features: Tensor,
    query_images: Tensor,
    query_points: Tensor,
    key_images: Tensor,
    key_points: Tensor,
    dots: Tensor,
    norms: Tensor,
    affine: Affine | list[float],
    temperature: float,
    normalize: bool,
    wants_features: bool,
    wants_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    points = _read_points(query_images, query_points, key_images, key_points)
    made = _empty_gradients(features, query_points, key_points, wants_features, wants_points)
    if dots.numel() == 0 or features.numel() == 0:
        return made[0].zero_(), made[1].zero_(), made[2].zero_()
    grad = grad.contiguous()
    described = _described(features, points, affine, temperature, normalize)
    memory: tuple[Tensor, ...] = ()
    if not _library.on_cpu(features):
        memory = _cuda_memory(features, points, described, wants_features)
    _launch(
        C.point_infonce_backward,
        features,
        points,
        *described,
        dots.data_ptr(),
        norms.data_ptr(),
        (
            grad.data_ptr(),
            _library.written(made[0]) if wants_features else 0,
            made[1].data_ptr() if wants_points else 0,
            made[2].data_ptr() if wants_points else 0,
        ),
        made[0].stride() if wants_features else (0, 0, 0, 0),
        tuple(t.data_ptr() for t in memory) if memory else (0,) * 5,
    )
    return made


def _fake_backward(grad: Tensor, features: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, query_points, _, key_points, *_, wants_features, wants_points = rest
    return _empty_gradients(features, query_points, key_points, wants_features, wants_points)


_forward_op = _library.register(
    "point_infonce_forward(Tensor features, Tensor query_images, Tensor query_points, "
    "Tensor key_images, Tensor key_points, float[] affine, float temperature, bool normalize) "
    "-> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
)
# Gradients that are not wanted come back with no elements.
_backward_op = _library.register(
    "point_infonce_backward(Tensor grad, Tensor features, Tensor query_images, "
    "Tensor query_points, Tensor key_images, Tensor key_points, Tensor dots, Tensor norms, "
    "float[] affine, float temperature, bool normalize, bool wants_features, bool wants_points) "
    "-> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


class _PointInfonce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        losses, dots, norms = _forward_op(*arguments)
        ctx.save_for_backward(*arguments[:5], dots, norms)
        ctx.options = arguments[5:]
        return cast(Tensor, losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad
        grad_features, grad_queries, grad_keys = _backward_op(
            grad, *ctx.saved_tensors, *ctx.options, wanted[0], wanted[2] or wanted[4]
        )
        _, _, queries, _, keys, *_ = ctx.saved_tensors
        return (
            grad_features if wanted[0] else None,
            None,
            grad_queries.to(queries.dtype) if wanted[2] else None,
            None,
            grad_keys.to(keys.dtype) if wanted[4] else None,
            *(None for _ in ctx.options),
        )


def point_infonce_native(
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
    """Same contract as :func:`point_infonce_reference`.

    ``align_corners`` changes nothing here: the affine map says it all where padding is zeros.
    """
    tensors = (features, query_images, query_points, key_images, key_points)
    options = (affine, float(temperature), normalize)
    if _library.plain_eager(*tensors):
        return _forward(*tensors, *options)[0]
    if _library.wants_gradient(*tensors):
        return cast(Tensor, _PointInfonce.apply(*tensors, *options))  # type: ignore[no-untyped-call]
    return cast(Tensor, _forward_op(*tensors, *options)[0])
