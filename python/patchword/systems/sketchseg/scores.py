# SPDX-License-Identifier: Apache-2.0
"""Scores of patches stretched, and read at single pixels of the sketch's size."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# Free parameter of the cubic, the one that torch's interpolation and the library's op use.
_CUBIC = -0.75
# Pixels read at once; bounds memory for a sketch that is all ink.
_CHUNK = 1 << 20


def minmax(scores: Tensor) -> Tensor:
    """Stretch each column of ``[N, C]`` to [0, 1]; a constant one becomes 0, not NaN."""
    low, high = scores.amin(dim=0), scores.amax(dim=0)
    span = high - low
    return (scores - low) / torch.where(span > 0, span, torch.ones_like(span))


def scores_at(
    maps: Tensor,
    size: tuple[int, int],
    pixels: Tensor,
    categories: Tensor,
    mode: Literal["bilinear", "bicubic"],
) -> Tensor:
    """Interpolated scores, each of one category at one pixel.

    Args:
        maps: ``[C, h, w]`` float32.
        size: ``(H, W)`` that the maps are stretched to.
        pixels: int64 ``[P]``, flat indices ``row * W + column``.
        categories: int64 ``[P]``, or one for all as ``[1]``.
        mode: As :func:`patchword.ops.mask_upsample`.

    Returns:
        float32 ``[P]``; bicubic ones are cut to the range of their map.
    """
    count, height, width = maps.shape
    flat = maps.reshape(-1)
    rows, row_weights = _taps(size[0], height, mode, maps.device)
    columns, column_weights = _taps(size[1], width, mode, maps.device)
    low, high = maps.reshape(count, -1).amin(dim=1), maps.reshape(count, -1).amax(dim=1)
    parts = []
    for start in range(0, len(pixels), _CHUNK):
        chunk = pixels[start : start + _CHUNK]
        chosen = categories[start : start + _CHUNK] if len(categories) > 1 else categories
        row, column = chunk // size[1], chunk % size[1]
        base = chosen * (height * width)
        total = torch.zeros(len(chunk), device=maps.device)
        for row_tap, row_weight in zip(rows, row_weights, strict=True):
            line = torch.zeros_like(total)
            first = base + row_tap[row] * width
            for column_tap, weight in zip(columns, column_weights, strict=True):
                line += flat[first + column_tap[column]] * weight[column]
            total += line * row_weight[row]
        parts.append(total.clamp(low[chosen], high[chosen]))
    return torch.cat(parts) if parts else torch.zeros(0, device=maps.device)


def _taps(
    size: int, cells: int, mode: Literal["bilinear", "bicubic"], device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Cells and weights of each output pixel along one axis, tap by tap."""
    # In float32 step by step, as torch computes it, so that labels and scores agree.
    position = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (cells / size) - 0.5
    if mode == "bilinear":
        position = position.clamp(min=0)
        first = position.floor().clamp(max=cells - 1)
        part = position - first
        taps = [first.long(), (first.long() + 1).clamp(max=cells - 1)]
        return taps, [1 - part, part]
    first = position.floor()
    part = position - first
    taps = [(first.long() + offset).clamp(0, cells - 1) for offset in (-1, 0, 1, 2)]
    return taps, [_far(part + 1), _near(part), _near(1 - part), _far(2 - part)]


def _near(x: Tensor) -> Tensor:
    return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1


def _far(x: Tensor) -> Tensor:
    return ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
