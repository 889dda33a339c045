# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schema, allocation, registration, and when it refuses."""

from __future__ import annotations

import torch
from torch import Tensor

from patchword import _library
from patchword._library import C, DTYPE_TAGS

MODES = {"bilinear": 0, "nearest": 1}
PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}


def refuse(features: Tensor, points: Tensor) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    return _library.refuse_device(features) or _library.refuse_dtype(features)


def _forward(
    features: Tensor,
    points: Tensor,
    affine: list[float],
    mode: int,
    padding: int,
    align_corners: bool,
) -> Tensor:
    batch, channels, height, width = features.shape
    count = points.shape[1]
    out = features.new_empty((batch, count, channels))
    if out.numel() == 0:
        return out
    device, stream, threads = _library.runtime(features)
    points = points.float()
    sizes = (batch, channels, height, width, count)
    strides = features.stride()
    scratch = None
    if device == _library.CPU:
        size = C.sample_features_workspace(threads, sizes, strides[1])
        if size:
            scratch = torch.empty(size, dtype=torch.uint8, device=features.device)
    C.sample_features_forward(
        device,
        stream,
        threads,
        (
            features.data_ptr(),
            points.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr() if scratch is not None else 0,
        ),
        DTYPE_TAGS[features.dtype],
        mode,
        padding,
        align_corners,
        sizes,
        strides,
        points.stride(),
        affine,
    )
    return out


def _fake(
    features: Tensor,
    points: Tensor,
    affine: list[float],
    mode: int,
    padding: int,
    align_corners: bool,
) -> Tensor:
    return features.new_empty((features.shape[0], points.shape[1], features.shape[1]))


_op = _library.register(
    "sample_features_forward(Tensor features, Tensor points, float[] affine, int mode, "
    "int padding, bool align_corners) -> Tensor",
    _forward,
    _fake,
)


def sample_features_native(
    features: Tensor,
    points: Tensor,
    affine: tuple[float, float, float, float],
    *,
    mode: str,
    padding: str,
    align_corners: bool,
) -> Tensor:
    """Same contract as :func:`sample_features_reference`."""
    run = _forward if _library.plain_eager(features, points) else _op
    out: Tensor = run(features, points, list(affine), MODES[mode], PADDINGS[padding], align_corners)
    return out
