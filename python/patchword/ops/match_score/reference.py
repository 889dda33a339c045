# SPDX-License-Identifier: Apache-2.0
"""Match scores in plain torch: the definition that the kernels must meet."""

from __future__ import annotations

import torch
from torch import Tensor

from patchword.ops.sample_features.reference import sample_features_reference


def target_cells(points: Tensor, grid: tuple[int, int], rounding: str) -> Tensor:
    """Row-major cells ``[B, Q]`` of points ``[B, Q, 2]`` in [0, 1]; NaN gives some cell.

    A place times a size is rounded to float32, since between two cells that rounding decides.
    """
    height, width = grid
    x, y = points.float().nan_to_num(0.0, torch.inf, -torch.inf).unbind(-1)
    if rounding == "cell":
        column, row = (x * width).floor(), (y * height).floor()
    else:
        # A last index of 0 times infinity would be NaN.
        column = torch.zeros_like(x) if width == 1 else (x * (width - 1)).round()
        row = torch.zeros_like(y) if height == 1 else (y * (height - 1)).round()
    return (row.clamp(0, height - 1) * width).long() + column.clamp(0, width - 1).long()


def match_score_reference(
    features0: Tensor,
    features1: Tensor,
    points01: Tensor,
    weights0: Tensor,
    mask1: Tensor | None,
    grid: tuple[int, int],
    rounding: str,
) -> Tensor:
    """Score ``[B]`` of features ``[B, Q, D]`` against ``[B, h * w, D]``.

    Each query's value is its weight, times ``mask1`` ``[B, h, w]`` sampled bilinearly at its point
    (zeros outside), times the dot product of its features with those of its target cell. A cell
    keeps the largest value of its queries if that is above 0; the score is the sum over cells.
    """
    compute = torch.float64 if features0.dtype == torch.float64 else torch.float32
    batch, queries, channels = features0.shape
    height, width = grid
    cells = target_cells(points01, grid, rounding)
    weights = weights0.to(compute)
    if mask1 is not None:
        affine = (float(width), -0.5, float(height), -0.5)
        seen = sample_features_reference(
            mask1[:, None].to(compute),
            points01.float(),
            affine,
            mode="bilinear",
            padding="zeros",
            align_corners=False,
            normalize=False,
        )
        weights = weights * seen[..., 0]
    index = cells[..., None].expand(batch, queries, channels)
    dots = (features0.to(compute) * features1.gather(1, index).to(compute)).sum(-1)
    takes_part = ~points01.isnan().any(-1) & (weights != 0)
    values = torch.where(takes_part, weights, 0.0) * torch.where(takes_part, dots, 0.0)
    values = torch.where(values > 0, values, 0.0)  # false for NaN
    best = values.new_zeros(batch, height * width).scatter_reduce(1, cells, values, "amax")
    return best.double().sum(1).to(compute)
