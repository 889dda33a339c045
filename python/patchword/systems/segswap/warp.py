# SPDX-License-Identifier: Apache-2.0
"""Thin-plate-spline warps of the second picture of a pair, with its mask and correspondences."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from patchword.errors import ShapeError
from patchword.geometry import Matrix
from patchword.systems.segswap.correspondence import (
    Grid,
    cell_centers,
    inside,
    sample_linear,
    sample_zero,
)

Pixels = npt.NDArray[np.uint8]
_EPSILON = 1e-8
_INVERSE_TOLERANCE = 1e-9
_INVERSE_ACCEPTED = 1e-4
# Picture maps are evaluated at every 8th pixel and interpolated: a spline of a few control points
# is smooth, and a logarithm per control point and pixel would cost more than all other stages.
_MAP_STEP = 8


@dataclass(frozen=True)
class ThinPlate:
    """A smooth map of [-1, 1]² into the plane.

    Attributes:
        centers: ``[K, 2]``.
        weights: ``[K, 2]``, one per centre and output coordinate.
        affine: ``[3, 2]``: constant, then the factors of x and y.
    """

    centers: Matrix
    weights: Matrix
    affine: Matrix

    def __call__(self, points: npt.ArrayLike) -> Matrix:
        """Map points ``[..., 2]``."""
        wanted = np.asarray(points, dtype=np.float64)
        flat = wanted.reshape(-1, 2)
        mapped = (
            self.affine[0] + flat @ self.affine[1:] + _kernel(flat, self.centers) @ (self.weights)
        )
        shaped: Matrix = mapped.reshape(wanted.shape)
        return shaped

    def inverse(self, points: npt.ArrayLike, *, steps: int = 40) -> Matrix:
        """Find what maps to points ``[..., 2]``, by fixed-point steps from the affine inverse.

        Returns:
            ``[..., 2]``; NaN where no point within half a picture around [-1, 1]² was found.
        """
        wanted = np.asarray(points, dtype=np.float64)
        flat = wanted.reshape(-1, 2)
        linear = np.linalg.inv(self.affine[1:])
        found = np.clip((flat - self.affine[0]) @ linear, -2.0, 2.0)
        miss = flat - self(found)
        for _ in range(steps):
            if float(np.abs(miss).max(initial=0.0)) < _INVERSE_TOLERANCE:
                break
            found = np.clip(found + miss @ linear, -2.0, 2.0)
            miss = flat - self(found)
        lost = np.abs(miss).max(axis=-1, keepdims=True) > _INVERSE_ACCEPTED
        solved: Matrix = np.where(lost, np.nan, found).reshape(wanted.shape)
        return solved


def _kernel(points: Matrix, centers: Matrix) -> Matrix:
    squared = ((points[:, None] - centers[None]) ** 2).sum(axis=-1)
    values: Matrix = 0.5 * squared * np.log(squared + _EPSILON)
    return values


def fit_thin_plate(source: npt.ArrayLike, target: npt.ArrayLike) -> ThinPlate:
    """Fit the spline that takes ``source`` to ``target``, with its centres at ``target``.

    Centres at the targets, not at the sources, is how the published warp is defined.

    Args:
        source: ``[K, 2]``, not all on a line.
        target: ``[K, 2]``.

    Raises:
        ShapeError: The two differ in shape or are not ``[K, 2]``.
    """
    src = np.asarray(source, dtype=np.float64)
    dst = np.asarray(target, dtype=np.float64)
    if src.shape != dst.shape or src.ndim != 2 or src.shape[1] != 2:
        raise ShapeError(
            "fit_thin_plate: source and target must both be [K, 2], got "
            f"{list(src.shape)} and {list(dst.shape)}.",
            expected="[K, 2]",
            actual=(src.shape, dst.shape),
        )
    count = len(src)
    plane = np.concatenate([np.ones((count, 1)), src], axis=1)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _kernel(src, dst)
    system[:count, count:] = plane
    system[count:, :count] = plane.T
    right = np.concatenate([dst, np.zeros((3, 2))])
    solution = np.linalg.solve(system, right)
    return ThinPlate(dst, solution[:count], solution[count:])


@dataclass(frozen=True)
class RandomWarp:
    """One drawn warp: ``new(v) = old(forward(v))``.

    Attributes:
        forward: From the new picture to the old, both [-1, 1]².
        backward: The published "inverse": the spline fitted the other way round.
    """

    forward: ThinPlate
    backward: ThinPlate


def control_lattice(count: int) -> Matrix:
    """``count`` x ``count`` control points on [-1, 1]², row-major, ``[count², 2]``."""
    ticks = np.linspace(-1.0, 1.0, count)
    x, y = np.meshgrid(ticks, ticks)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def draw_warp(rng: np.random.Generator, grids: tuple[int, ...]) -> RandomWarp:
    """Draw control points per side from ``grids`` and move each point by up to half of 1 / n."""
    count = int(grids[rng.integers(len(grids))])
    lattice = control_lattice(count)
    moved = np.clip(lattice + rng.uniform(-0.5, 0.5, lattice.shape) / count, -1.0, 1.0)
    return RandomWarp(fit_thin_plate(lattice, moved), fit_thin_plate(moved, lattice))


def warp_picture(image: Pixels, warp: ThinPlate, *, published: bool = False) -> Pixels:
    """Draw ``image(warp(v))``, bilinear, black outside.

    Args:
        image: ``[H, W, 3]``.
        warp: From the new picture to ``image``.
        published: Read at a lattice that ends at the corners, while the picture's pixels are
            centred (fault T15).
    """
    height, width = image.shape[:2]
    if published:
        places = (warp(_lattice(height, width, published=True)) + 1.0) / 2.0
    else:
        rows, columns = -(-height // _MAP_STEP) + 3, -(-width // _MAP_STEP) + 3
        coarse_x = (np.arange(columns) - 1.0) * _MAP_STEP / width * 2.0 - 1.0
        coarse_y = (np.arange(rows) - 1.0) * _MAP_STEP / height * 2.0 - 1.0
        coarse = (warp(np.stack(np.meshgrid(coarse_x, coarse_y), axis=-1)) + 1.0) / 2.0
        places = _spread(coarse.astype(np.float32), height, width)
    maps = (places * (width, height) - 0.5).astype(np.float32)
    drawn: Pixels = cv2.remap(
        image, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return drawn


def _spread(coarse: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Interpolate a map known at corners of 8 x 8 blocks, from one block outside, to pixels."""
    rows, columns = coarse.shape[:2]
    # Cubic resizing takes coarse values as centres of blocks: half a block lies before the first.
    size = (columns * _MAP_STEP, rows * _MAP_STEP)
    dense = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    start = _MAP_STEP + _MAP_STEP // 2
    cut: npt.NDArray[np.float32] = dense[start : start + height, start : start + width]
    return cut


def _lattice(height: int, width: int, *, published: bool) -> Matrix:
    if published:
        x, y = np.linspace(-1.0, 1.0, width), np.linspace(-1.0, 1.0, height)
    else:
        x = (np.arange(width) + 0.5) * (2.0 / width) - 1.0
        y = (np.arange(height) + 0.5) * (2.0 / height) - 1.0
    return np.stack(np.meshgrid(x, y), axis=-1)


def warp_mask(mask: Grid, warp: ThinPlate, *, published: bool = False) -> Grid:
    """Warp a mask over cells ``[h, w]`` as :func:`warp_picture` does the picture.

    Correctly, cells outside the old picture repeat its edge when they are less than half a cell
    away; the published lattice makes the outermost ring fade instead.
    """
    height, width = mask.shape
    places = (warp(_lattice(height, width, published=published)) + 1.0) / 2.0
    if published:
        return sample_zero(mask, places)
    edge = np.array([width, height])
    kept = np.clip(places, 0.5 / edge, 1.0 - 0.5 / edge)
    within = ((places >= -1e-9) & (places <= 1.0 + 1e-9)).all(axis=-1)
    return sample_zero(mask, kept) * within


def warp_targets(
    target0: npt.NDArray[np.float32],
    target1: npt.NDArray[np.float32],
    warp: RandomWarp,
    *,
    published: bool = False,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Change the annotation of a pair ``[3, h, w]`` (x, y, mask) for a warped picture 1.

    Correctly, a cell of picture 0 whose match left picture 1 loses its mask; the published code
    keeps it, reads coordinates outside the grid as 0.5, and inverts by a second fit.
    """
    flow0, flow1 = (
        target[:2].transpose(1, 2, 0).astype(np.float64) for target in (target0, target1)
    )
    mask0, mask1 = target0[2].astype(np.float64), target1[2].astype(np.float64)
    centers = cell_centers((mask1.shape[0], mask1.shape[1])) * 2.0 - 1.0
    places = (warp.forward(centers) + 1.0) / 2.0
    new_mask1 = warp_mask(mask1, warp.forward, published=published)
    if published:
        new_flow1 = (sample_zero(flow1 * 2.0 - 1.0, places) + 1.0) / 2.0
        # The field of new places, read at the old targets.
        moved = warp.backward(centers)
        new_flow0 = (sample_zero(moved, flow0) + 1.0) / 2.0
    else:
        new_flow1 = sample_linear(flow1, places)
        # Matches outside picture 1 have no mask; only the others need the inverse.
        new_flow0 = flow0.copy()
        seen = inside(flow0) > 0
        found = (warp.forward.inverse(flow0[seen] * 2.0 - 1.0) + 1.0) / 2.0
        new_flow0[seen] = np.nan_to_num(found, nan=-1.0)
        mask0 = mask0 * inside(new_flow0)
    return _target(new_flow0, mask0), _target(new_flow1, new_mask1)


def _target(flow: Grid, mask: Grid) -> npt.NDArray[np.float32]:
    return np.concatenate([flow.transpose(2, 0, 1), mask[None]]).astype(np.float32)
