# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schema, allocation, registration, and when it refuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C

ROUNDINGS = {"cell": 0, "published": 1}

# As kMatchScoreMaxSide in kernels/match_score/match_score.h.
_MAX_SIDE = 2**24


def refuse(
    features0: Tensor,
    features1: Tensor,
    points01: Tensor | None = None,
    weights0: Tensor | None = None,
    mask1: Tensor | None = None,
    *,
    grid: tuple[int, int] = (1, 1),
) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    if max(grid) > _MAX_SIDE:
        return "the grid has more than 2^24 cells along an axis"
    if _library.wants_gradient(features0, features1, points01, weights0, mask1):
        return "it has no gradient"
    return _library.refuse_device(features0) or _library.refuse_dtype(features0)


def _channels_last(features: Tensor) -> Tensor:
    """CUDA reads rows: copy what is not made of them, one copy for an expanded batch."""
    if features.stride(2) == 1 or features.shape[2] <= 1:
        return features
    if features.stride(0) == 0:
        return features[:1].contiguous().expand_as(features)
    return features.contiguous()


def _forward(
    features0: Tensor,
    features1: Tensor,
    points01: Tensor,
    weights0: Tensor,
    mask1: Tensor | None,
    height: int,
    width: int,
    rounding: int,
) -> Tensor:
    batch = features0.shape[0]
    out = features0.new_empty(batch, dtype=torch.float32)
    if batch == 0 or features0.numel() == 0 or features1.numel() == 0:
        return out.zero_()
    points, weights = points01.float(), weights0.float()
    mask = None if mask1 is None else mask1.float()
    cells = None
    if not _library.on_cpu(features0):
        features0, features1 = _channels_last(features0), _channels_last(features1)
        cells = features0.new_zeros(batch, height * width, dtype=torch.int32)
    _library.launch(
        C.match_score_forward,
        features0,
        features0.data_ptr(),
        features1.data_ptr(),
        points.data_ptr(),
        weights.data_ptr(),
        _library.address(mask),
        out.data_ptr(),
        _library.address(cells),
        features0.shape,
        features0.stride(),
        features1.stride(),
        points.stride(),
        weights.stride(),
        (0, 0, 0) if mask is None else mask.stride(),
        height,
        width,
        DTYPE_TAGS[features0.dtype],
        rounding,
    )
    return out


def _fake_forward(features0: Tensor, *_: Any) -> Tensor:
    return features0.new_empty(features0.shape[0], dtype=torch.float32)


_forward_op = _library.register(
    "match_score_forward(Tensor features0, Tensor features1, Tensor points01, Tensor weights0, "
    "Tensor? mask1, int height, int width, int rounding) -> Tensor",
    _forward,
    _fake_forward,
)


def match_score_native(
    features0: Tensor,
    features1: Tensor,
    points01: Tensor,
    weights0: Tensor,
    mask1: Tensor | None,
    grid: tuple[int, int],
    rounding: str,
) -> Tensor:
    """Same contract as :func:`match_score_reference`, always float32."""
    arguments = (features0, features1, points01, weights0, mask1, *grid, ROUNDINGS[rounding])
    if _library.plain_eager(features0, features1, points01, weights0, mask1):
        return _forward(*arguments)
    out: Tensor = _forward_op(*arguments)
    return out
