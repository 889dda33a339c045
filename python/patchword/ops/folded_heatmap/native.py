# SPDX-License-Identifier: Apache-2.0
"""The compiled forms: schemas, allocation, and when they refuse."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C

# Places of cells are 32-bit in the kernels.
_MAX_CELLS = 2**31


def refuse_fold(text: Tensor, projection: Tensor) -> str | None:
    """Why the compiled kernel cannot fold these texts, or None when it can."""
    return _library.refuse_device(text) or _library.refuse_dtype(text, projection)


def refuse_heatmap(maps: Tensor, text: Tensor, projection: Tensor | None = None) -> str | None:
    """Why the compiled kernels cannot make these maps, or None when they can."""
    if maps.shape[2] * maps.shape[3] >= _MAX_CELLS:
        return "the maps have 2^31 or more cells"
    return _library.refuse_device(maps) or _library.refuse_dtype(maps, text, projection)


def _fold(text: Tensor, projection: Tensor, top_units: int) -> Tensor:
    texts, units = text.shape
    channels = projection.shape[1]
    folded = text.new_empty(texts, channels, dtype=torch.float32)
    if folded.numel() == 0:
        return folded
    text = text.float().contiguous()
    projection = projection.float()
    if projection.stride(1) != 1 and channels > 1:
        projection = projection.contiguous()
    _library.launch(
        C.fold_units,
        text,
        text.data_ptr(),
        projection.data_ptr(),
        folded.data_ptr(),
        (texts, units, channels, top_units),
        projection.stride(0),
    )
    return folded


def _fake_fold(text: Tensor, projection: Tensor, top_units: int) -> Tensor:
    return text.new_empty(text.shape[0], projection.shape[1], dtype=torch.float32)


def _cell_stride(maps: Tensor) -> int | None:
    """Elements between neighbouring cells in row-major order, or None if that varies."""
    height, width = maps.shape[2:]
    along_y, along_x = maps.stride()[2:]
    if height == 1:
        return along_x
    if width == 1:
        return along_y
    return along_x if along_y == width * along_x else None


def _heat(
    maps: Tensor,
    folded: Tensor,
    threshold: float,
    with_mask: bool,
    from_minimum: bool,
    columns_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    results = _fake_heat(maps, folded, threshold, with_mask, from_minimum, columns_first)
    heat, location, mask = results
    if location.numel() == 0:
        return results
    cell_stride = _cell_stride(maps)
    if cell_stride is None:
        maps = maps.contiguous()
        cell_stride = 1
    folded = folded.float().contiguous()
    _library.launch(
        C.folded_heatmap,
        maps,
        (
            maps.data_ptr(),
            folded.data_ptr(),
            heat.data_ptr(),
            location.data_ptr(),
            mask.data_ptr() if with_mask else 0,
        ),
        (*maps.shape, folded.shape[1]),
        (*maps.stride()[:2], cell_stride, folded.stride(0) if folded.shape[0] > 1 else 0),
        DTYPE_TAGS[maps.dtype],
        threshold,
        from_minimum,
        columns_first,
    )
    return results


def _fake_heat(
    maps: Tensor,
    folded: Tensor,
    threshold: float,
    with_mask: bool,
    from_minimum: bool,
    columns_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    maps_of = (maps.shape[0], folded.shape[1])
    cells = (*maps_of, *maps.shape[2:])
    return (
        maps.new_empty(*cells, dtype=torch.float32),
        maps.new_empty(*maps_of, 2, dtype=torch.int64),
        maps.new_empty(*(cells if with_mask else (0,)), dtype=torch.bool),
    )


_fold_op = _library.register(
    "fold_units(Tensor text, Tensor projection, int top_units) -> Tensor", _fold, _fake_fold
)
# The mask comes back with no elements unless it is wanted.
_heat_op = _library.register(
    "folded_heatmap(Tensor maps, Tensor folded, float threshold, bool with_mask, "
    "bool from_minimum, bool columns_first) -> (Tensor, Tensor, Tensor)",
    _heat,
    _fake_heat,
)


def fold_units_native(text: Tensor, projection: Tensor, top_units: int) -> Tensor:
    """Same contract as :func:`fold_units_reference`, in float32."""
    run = _fold if _library.plain_eager(text, projection) else _fold_op
    return cast(Tensor, run(text, projection, top_units))


def folded_heatmap_native(
    maps: Tensor,
    folded: Tensor,
    threshold: float | None,
    from_minimum: bool,
    columns_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as :func:`folded_heatmap_reference`, in float32."""
    run = _heat if _library.plain_eager(maps, folded) else _heat_op
    options = (threshold or 0.0, threshold is not None, from_minimum, columns_first)
    return cast("tuple[Tensor, Tensor, Tensor]", run(maps, folded, *options))
