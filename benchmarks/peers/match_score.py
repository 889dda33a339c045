# SPDX-License-Identifier: Apache-2.0
"""Match scores in plain PyTorch: cell by cell as usually written, and all cells at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Run
from benchmarks.registry import Inputs


def _sampled(points01: Tensor, weights0: Tensor, mask1: Tensor) -> Tensor:
    seen = F.grid_sample(mask1[:, None], (2 * points01 - 1)[:, None], align_corners=False)
    return weights0 * seen[:, 0, 0]


def _cells(points01: Tensor, grid: tuple[int, int]) -> Tensor:
    height, width = grid
    column = (points01[..., 0] * (width - 1)).round()
    row = (points01[..., 1] * (height - 1)).round()
    return (row * width + column).long()


def _per_cell(inputs: Inputs) -> Tensor:
    cells = _cells(inputs["points01"], inputs["grid"])
    weights = _sampled(inputs["points01"], inputs["weights0"], inputs["mask1"])
    scores = []
    for b in range(len(cells)):
        best: dict[int, float] = {}
        for q in range(cells.shape[1]):
            cell = int(cells[b, q])
            like = torch.dot(inputs["features0"][q], inputs["features1"][b, cell])
            best[cell] = max(best.get(cell, 0.0), float(weights[b, q] * like))
        scores.append(sum(best.values()))
    return torch.tensor(scores)


def per_cell(inputs: Inputs) -> Run:
    """Return the call that looks every cell up by itself."""
    return partial(_per_cell, inputs)


def _vectorised(
    features0: Tensor,
    features1: Tensor,
    points01: Tensor,
    weights0: Tensor,
    mask1: Tensor,
    grid: tuple[int, int],
) -> Tensor:
    cells = _cells(points01, grid)
    rows = features1.gather(1, cells[..., None].expand(-1, -1, features1.shape[2]))
    like = (rows * features0).sum(-1, dtype=torch.float32)
    values = (_sampled(points01, weights0, mask1) * like).clamp(min=0)
    best = values.new_zeros(len(cells), features1.shape[1])
    return best.scatter_reduce(1, cells, values, "amax").sum(1)


def vectorised(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """All candidates and cells at once."""
    names = ("features0", "features1", "points01", "weights0", "mask1", "grid")
    return _vectorised, tuple(inputs[name] for name in names)
