# SPDX-License-Identifier: Apache-2.0
"""The one place that knows pixels, patches and maps between pictures.

Points are ``(x, y)`` in pixels, continuous; the corner of the top-left pixel is (0, 0) and its
centre (0.5, 0.5). Sizes are ``(H, W)``. Homographies are 3 x 3 and take points of the first frame
to the second.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.errors import OptionError, ShapeError

Matrix = npt.NDArray[np.float64]


def patch_centers(grid: tuple[int, int], stride: float = 1.0) -> Matrix:
    """Centres of a patch grid, ``[h * w, 2]``, row-major: patch (r, c) at ((c+.5)p, (r+.5)p)."""
    rows, columns = np.mgrid[0 : grid[0], 0 : grid[1]]
    return (np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5) * stride


def patch_index(
    points: npt.ArrayLike, grid: tuple[int, int], stride: float = 1.0
) -> npt.NDArray[np.int64]:
    """Row-major index of the patch that holds each point ``[M, 2]``; -1 outside the grid."""
    cells = np.floor(np.asarray(points, dtype=np.float64) / stride).astype(np.int64)
    inside = (cells >= 0).all(axis=-1) & (cells[..., 0] < grid[1]) & (cells[..., 1] < grid[0])
    return np.where(inside, cells[..., 1] * grid[1] + cells[..., 0], -1)


def normalize_points(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels ``[..., 2]`` to [-1, 1] for ``grid_sample`` with ``align_corners=False``."""
    extent = points.new_tensor([size[1], size[0]])
    return points * (2.0 / extent) - 1.0


def denormalize_points(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Inverse of :func:`normalize_points`."""
    extent = points.new_tensor([size[1], size[0]])
    return (points + 1.0) * (extent / 2.0)


def warp_points(homography: Matrix, points: npt.ArrayLike) -> Matrix:
    """Take points ``[M, 2]`` through a homography; points at infinity come out as NaN."""
    wanted = np.asarray(points, dtype=np.float64)
    lifted = wanted @ homography[:, :2].T + homography[:, 2]
    depth = lifted[..., 2:]
    safe = np.where(np.abs(depth) < 1e-12, np.nan, depth)
    warped: Matrix = lifted[..., :2] / safe
    return warped


def from_index_coordinates(homography: npt.ArrayLike) -> Matrix:
    """Turn a homography between pixel indices (centres at whole numbers) into one of points."""
    shift = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    back = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
    moved = shift @ np.asarray(homography, dtype=np.float64) @ back
    scaled: Matrix = moved / moved[2, 2]
    return scaled


def scale_matrix(x: float, y: float) -> Matrix:
    """Homography that multiplies points by ``(x, y)``."""
    return np.diag([x, y, 1.0])


def rotation_canvas(
    size: tuple[int, int], degrees: float, multiple: int
) -> tuple[Matrix, tuple[int, int]]:
    """Canvas that holds a rotated picture.

    Args:
        size: ``(H, W)`` of the picture.
        degrees: Angle, counter-clockwise on the screen for positive values of ``-degrees``.
        multiple: The canvas's height and width are rounded up to multiples of this.

    Returns:
        The homography from canvas to picture, and the canvas's ``(H, W)``.
    """
    height, width = size
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # A hair is taken off so that a quarter turn of whole pixels gains no extra row.
    tall = math.ceil((abs(cos) * height + abs(sin) * width) / multiple - 1e-9) * multiple
    wide = math.ceil((abs(sin) * height + abs(cos) * width) / multiple - 1e-9) * multiple
    turn = np.array([[cos, -sin], [sin, cos]])
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = np.array([width / 2, height / 2]) - turn @ np.array([wide / 2, tall / 2])
    return matrix, (tall, wide)


def local_scale(homography: Matrix, points: npt.ArrayLike) -> Matrix:
    """Linear magnification of a homography at points ``[M, 2]``: square root of its area change."""
    wanted = np.asarray(points, dtype=np.float64)
    depth = np.abs(wanted @ homography[2, :2] + homography[2, 2])
    determinant = abs(float(np.linalg.det(homography)))
    scale: Matrix = np.sqrt(determinant / np.maximum(depth, 1e-6) ** 3)
    return scale


def warp_image(
    pixels: Tensor, homography: Matrix, size: tuple[int, int], *, fill: float
) -> tuple[Tensor, Tensor]:
    """Draw a picture in another frame: ``out(p) = pixels(homography(p))``, bilinear.

    Args:
        pixels: ``[1, C, H, W]``.
        homography: From the new frame to the picture.
        size: ``(H, W)`` of the new frame.
        fill: Value outside the picture.

    Returns:
        ``[1, C, *size]`` and the part of each new pixel that lies inside the picture,
        ``[1, 1, *size]`` of 0 and 1.
    """
    source = (pixels.shape[-2], pixels.shape[-1])
    shrink = float(np.median(local_scale(homography, patch_centers((8, 8), 1 / 8) * size[::-1])))
    if shrink > 1.5:
        # Bilinear reading skips pixels when it shrinks, so the picture is averaged down first.
        reduced = tuple(max(1, round(side / shrink)) for side in source)
        pixels = F.interpolate(pixels, size=reduced, mode="bilinear", antialias=True)
    centers = warp_points(homography, patch_centers(size))
    points = torch.from_numpy(centers).to(pixels).reshape(1, *size, 2)
    places = normalize_points(points, source)
    places = torch.nan_to_num(places, nan=9.0).clamp(-9.0, 9.0)
    inside = (places.abs() <= 1.0).all(dim=-1)[:, None]
    drawn = F.grid_sample(
        pixels, places, mode="bilinear", padding_mode="border", align_corners=False
    )
    return torch.where(inside, drawn, torch.full_like(drawn, fill)), inside.to(pixels.dtype)


def check_box(box: npt.ArrayLike, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Check a box ``x0 y0 x1 y1`` (half-open, pixels) against a picture ``(H, W)`` and cut it.

    Raises:
        ShapeError: The box is not four numbers.
        OptionError: The box is empty or has no pixel of the picture.
    """
    corners = np.asarray(box, dtype=np.float64).reshape(-1)
    if corners.shape != (4,):
        raise ShapeError(f"check_box: box must be x0, y0, x1, y1, got {corners.size} numbers.")
    x0, y0, x1, y1 = (float(value) for value in corners)
    cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(size[1])), min(y1, float(size[0]))
    if not (cut[2] > cut[0] and cut[3] > cut[1]):
        raise OptionError(
            f"check_box: box must overlap the picture of {size[1]} x {size[0]} pixels, got "
            f"x {x0:g} to {x1:g}, y {y0:g} to {y1:g}."
        )
    return cut
