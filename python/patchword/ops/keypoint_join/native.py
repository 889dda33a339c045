# SPDX-License-Identifier: Apache-2.0
"""The compiled form: two registered phases, allocation between them, and when it refuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchword import _library
from patchword._library import C

# As kJoinParts, kJoinDuplicates and kJoinUnsorted in kernels/keypoint_join/keypoint_join.h.
_PARTS = 4
_DUPLICATES, _UNSORTED = 1, 2


def refuse(ids: Tensor, *rest: Tensor, **options: Any) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    return _library.refuse_device(ids)


def _fake_count(
    ids: Tensor, offsets: Tensor, pairs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    starts = ids.new_empty(pairs.shape[0] * _PARTS + 1)
    images = offsets.shape[0] - 1
    duplicates = ids.new_empty(images, dtype=torch.bool)
    flags = ids.new_empty(images, dtype=torch.uint8)
    return starts, flags, duplicates, torch.empty_like(duplicates)


def _count(ids: Tensor, offsets: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    starts, flags, duplicates, unsorted = results = _fake_count(ids, offsets, pairs)
    _library.launch(
        C.keypoint_join_count,
        ids,
        (ids.data_ptr(), offsets.data_ptr(), pairs.data_ptr()),
        (ids.shape[0], flags.shape[0], pairs.shape[0]),
        starts.data_ptr(),
        flags.data_ptr(),
        duplicates.data_ptr(),
        unsorted.data_ptr(),
    )
    if not _library.on_cpu(ids):
        starts[0] = 0
        starts.copy_(starts.cumsum(0))
        torch.ne(flags & _DUPLICATES, 0, out=duplicates)
        torch.ne(flags & _UNSORTED, 0, out=unsorted)
    return results


def _fake_fill(
    ids: Tensor, offsets: Tensor, pairs: Tensor, flags: Tensor, starts: Tensor, capacity: int
) -> tuple[Tensor, Tensor]:
    return ids.new_empty(capacity), ids.new_empty(capacity)


def _fill(
    ids: Tensor, offsets: Tensor, pairs: Tensor, flags: Tensor, starts: Tensor, capacity: int
) -> tuple[Tensor, Tensor]:
    rows0, rows1 = _fake_fill(ids, offsets, pairs, flags, starts, capacity)
    if capacity == 0:
        return rows0, rows1
    _library.launch(
        C.keypoint_join_fill,
        ids,
        (ids.data_ptr(), offsets.data_ptr(), pairs.data_ptr()),
        (ids.shape[0], flags.shape[0], pairs.shape[0]),
        flags.data_ptr(),
        starts.data_ptr(),
        _library.written(rows0),
        _library.written(rows1),
        capacity,
    )
    return rows0, rows1


# Where the matches of each part of each pair begin; of each image its flags and what they say.
_count_op = _library.register(
    "keypoint_join_count(Tensor ids, Tensor offsets, Tensor pairs) "
    "-> (Tensor starts, Tensor flags, Tensor duplicates, Tensor unsorted)",
    _count,
    _fake_count,
)
_fill_op = _library.register(
    "keypoint_join_fill(Tensor ids, Tensor offsets, Tensor pairs, Tensor flags, Tensor starts, "
    "SymInt capacity) -> (Tensor, Tensor)",
    _fill,
    _fake_fill,
)


def keypoint_join_native(
    ids: Tensor, offsets: Tensor, pairs: Tensor, capacity: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Same contract as :func:`keypoint_join_reference`."""
    ids, offsets, pairs = ids.contiguous(), offsets.contiguous(), pairs.contiguous()
    plain = _library.plain_eager(ids, offsets, pairs)
    count, fill = (_count, _fill) if plain else (_count_op, _fill_op)
    starts, flags, duplicates, unsorted = count(ids, offsets, pairs)
    # The one read of a number from the device; a capacity given beforehand avoids it.
    size = int(starts[-1]) if capacity is None else capacity
    rows0, rows1 = fill(ids, offsets, pairs, flags, starts, size)
    return starts[::_PARTS], rows0, rows1, duplicates, unsorted
