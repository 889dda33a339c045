# SPDX-License-Identifier: Apache-2.0
"""Positional encodings of patch grids: functions of the grid's size, without parameters."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def sine_encoding(
    grid: tuple[int, int], width: int, device: torch.device | str | None = None
) -> Tensor:
    """Sines and cosines of row and column, each counted from 1 and scaled to one full turn.

    The first half of the channels tells the row, the second the column. With ``n = width / 2`` and
    ``t_k = 10000 ** (2 * (k // 2) / n)``, channel ``k`` of a half is the sine (even ``k``) or the
    cosine (odd ``k``) of ``2 pi i / (size + 1e-6) / t_k`` at row or column ``i = 1 .. size``.

    Args:
        grid: ``(h, w)``.
        width: Channels, a multiple of 4.
        device: Where the result lies; ``None`` for the CPU.

    Returns:
        float32 ``[h * w, width]``, row-major. Shared between calls: not to be written to.

    Source:
        Carion et al., "End-to-End Object Detection with Transformers", arXiv:2005.12872, in the
        normalised form.
    """
    return _encoding(grid, width, str(torch.device("cpu" if device is None else device)))


# A gallery has pictures of few sizes, and each size costs as much as a small layer.
@functools.lru_cache(maxsize=32)
def _encoding(grid: tuple[int, int], width: int, device: str) -> Tensor:
    # A tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = (_axis(size, width // 2) for size in grid)
        height, wide = grid
        halves = (
            rows[:, None].expand(height, wide, -1),
            columns[None].expand(height, wide, -1),
        )
        return torch.cat(halves, dim=-1).reshape(height * wide, width).to(device)


def _axis(size: int, channels: int) -> Tensor:
    """One axis, ``[size, channels]``."""
    place = torch.arange(1, size + 1, dtype=torch.float32) * (2 * math.pi) / (size + 1e-6)
    pair = torch.arange(channels, dtype=torch.float32).div(2, rounding_mode="floor")
    angle = place[:, None] / 10000.0 ** (2 * pair / channels)
    even = torch.arange(channels) % 2 == 0
    return torch.where(even, angle.sin(), angle.cos())
