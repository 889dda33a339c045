# SPDX-License-Identifier: Apache-2.0
"""The same tensor in other memory layouts, with NaN (or the largest integer) in the gaps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def _poisoned(size: int, like: Tensor) -> Tensor:
    if like.is_floating_point():
        return torch.full((size,), torch.nan, dtype=like.dtype, device=like.device)
    if like.dtype == torch.bool:
        return torch.ones(size, dtype=like.dtype, device=like.device)
    return torch.full((size,), torch.iinfo(like.dtype).max, dtype=like.dtype, device=like.device)


def strided(
    tensor: Tensor, *, order: tuple[int, ...] | None = None, step: int = 1, offset: int = 0
) -> Tensor:
    """Copy of ``tensor`` with the same values and another layout.

    Args:
        tensor: Any dense tensor.
        order: Dimensions from the slowest to the fastest in memory; default: as they are.
        step: Elements between neighbours of the fastest dimension.
        offset: Elements before the first one, which also breaks 16-byte alignment.

    Returns:
        A detached view of fresh memory whose gaps are poisoned.
    """
    dims = tuple(range(tensor.ndim)) if order is None else order
    strides = [0] * tensor.ndim
    pace = step
    for dim in reversed(dims):
        strides[dim] = pace
        pace *= max(tensor.shape[dim], 1)
    # One step of slack after each run of the fastest dimension would hide nothing more: the gaps
    # of `step` and the words around the tensor are what a wrong stride reads.
    memory = _poisoned(offset + pace + step, tensor)
    view = memory.as_strided(tuple(tensor.shape), tuple(strides), offset)
    view.copy_(tensor.detach())
    return view


def expanded(tensor: Tensor, dim: int = 0, size: int | None = None) -> Tensor:
    """``tensor`` with its first slice along ``dim`` repeated by a stride of 0.

    The values change: compare with ``.contiguous()`` of the result.
    """
    shape = list(tensor.shape)
    shape[dim] = tensor.shape[dim] if size is None else size
    return tensor.detach().narrow(dim, 0, 1).expand(shape)


def layouts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, view)`` with equal values in every layout that torch users meet.

    Contiguous, sliced (last stride 2), offset by one element, last two dimensions swapped in
    memory, all dimensions reversed in memory, and channels-last (plain and with a gap) for 4-D.
    """
    yield "contiguous", tensor.detach().contiguous()
    if tensor.ndim == 0:
        return
    yield "sliced", strided(tensor, step=2)
    yield "offset", strided(tensor, offset=1)
    dims = tuple(range(tensor.ndim))
    if tensor.ndim >= 2:
        yield "transposed", strided(tensor, order=(*dims[:-2], dims[-1], dims[-2]))
        yield "reversed", strided(tensor, order=dims[::-1])
    if tensor.ndim == 4:
        yield "channels_last", strided(tensor, order=(0, 2, 3, 1))
        yield "channels_last_offset", strided(tensor, order=(0, 2, 3, 1), offset=3)
        yield "channels_last_sliced", strided(tensor, order=(0, 2, 3, 1), step=2)
