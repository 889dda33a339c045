# SPDX-License-Identifier: Apache-2.0
"""Correspondences of grid cells under affine maps, and the masks that agree in both directions.

Points here are ``(x, y)`` divided by the picture's width and height, as the published files
store them: the centre of cell (r, c) of an h x w grid is ((c + 0.5) / w, (r + 0.5) / h).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchword.geometry import Matrix, patch_centers, warp_points

Grid = npt.NDArray[np.float64]


def cell_centers(grid: tuple[int, int]) -> Grid:
    """Normalised centres of the cells, ``[h, w, 2]``."""
    return patch_centers(grid).reshape(*grid, 2) / (grid[1], grid[0])


def affine_flow(matrix: Matrix, grid: tuple[int, int], size: int) -> Grid:
    """Where a pixel map takes each cell centre, normalised, ``[h, w, 2]``.

    Args:
        matrix: 3 x 3, pixels of one ``size`` x ``size`` picture to pixels of the other.
        grid: Cells ``(h, w)``.
        size: Side of both pictures in pixels.
    """
    centers = cell_centers(grid).reshape(-1, 2) * size
    return warp_points(matrix, centers).reshape(*grid, 2) / size


def _corners(
    points: Grid, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Grid, Grid]:
    x = points[..., 0] * shape[1] - 0.5
    y = points[..., 1] * shape[0] - 0.5
    column, row = np.floor(x), np.floor(y)
    return column.astype(np.int64), row.astype(np.int64), x - column, y - row


def sample_zero(values: Grid, points: Grid) -> Grid:
    """Bilinear values of a map ``[h, w, ...]`` at points ``[..., 2]``, zero outside.

    Equals ``grid_sample(align_corners=False, padding_mode="zeros")``.
    """
    height, width = values.shape[:2]
    # One ring of zeros, and indices kept within it, stand for everything outside.
    padded = np.pad(values, ((1, 1), (1, 1)) + ((0, 0),) * (values.ndim - 2))
    safe = np.clip(np.nan_to_num(points, nan=-9.0), -9.0, 9.0)
    column, row, fx, fy = _corners(safe, (height, width))
    left, right = np.clip(column + 1, 0, width + 1), np.clip(column + 2, 0, width + 1)
    top, bottom = np.clip(row + 1, 0, height + 1), np.clip(row + 2, 0, height + 1)
    if values.ndim > 2:
        fx, fy = fx[..., None], fy[..., None]
    above = padded[top, left] * (1 - fx) + padded[top, right] * fx
    below = padded[bottom, left] * (1 - fx) + padded[bottom, right] * fx
    sampled: Grid = above * (1 - fy) + below * fy
    return sampled


def sample_linear(values: Grid, points: Grid) -> Grid:
    """Bilinear values of a map ``[h, w, ...]``, continued linearly outside: exact for affine maps.

    Points further than one picture away are read at that distance.
    """
    height, width = values.shape[:2]
    safe = np.clip(np.nan_to_num(points, nan=0.5), -1.0, 2.0)
    x = safe[..., 0] * width - 0.5
    y = safe[..., 1] * height - 0.5
    left = np.clip(np.floor(x), 0, width - 2).astype(np.int64)
    top = np.clip(np.floor(y), 0, height - 2).astype(np.int64)
    fx, fy = x - left, y - top
    if values.ndim > 2:
        fx, fy = fx[..., None], fy[..., None]
    above = values[top, left] * (1 - fx) + values[top, left + 1] * fx
    below = values[top + 1, left] * (1 - fx) + values[top + 1, left + 1] * fx
    sampled: Grid = above * (1 - fy) + below * fy
    return sampled


def inside(points: Grid) -> Grid:
    """1 where both coordinates lie strictly between 0 and 1, else 0."""
    x, y = points[..., 0], points[..., 1]
    within: Grid = ((x > 0) & (x < 1) & (y > 0) & (y < 1)).astype(np.float64)
    return within


def grid_mask(mask: npt.NDArray[np.uint8], grid: tuple[int, int]) -> Grid:
    """Reduce a 0..255 picture to cells: bilinear, that is the mean of each cell's middle 2 x 2."""
    rows, columns = mask.shape[0] // grid[0], mask.shape[1] // grid[1]
    middle = mask.astype(np.float64) / 255.0
    top, left = rows // 2 - 1, columns // 2 - 1
    parts = [
        middle[top + i :: rows, left + j :: columns][: grid[0], : grid[1]]
        for i in (0, 1)
        for j in (0, 1)
    ]
    reduced: Grid = np.mean(parts, axis=0)
    return reduced


def cycle_masks(mask0: Grid, flow01: Grid, flow10: Grid) -> tuple[Grid, Grid]:
    """Masks of cells that come back to the object after a round trip, one per picture.

    Args:
        mask0: Object of picture 0 on its cells, ``[h, w]`` in [0, 1].
        flow01: Normalised point in picture 1 of each cell of picture 0, ``[h, w, 2]``.
        flow10: The other way.
    """
    seen1 = sample_zero(mask0, flow10) * inside(flow10)
    final0 = mask0 * sample_zero(seen1, flow01) * inside(flow01)
    final1 = sample_zero(final0, flow10) * inside(flow10)
    return final0, final1
