# SPDX-License-Identifier: Apache-2.0
"""Thin-plate-spline warps of the second picture of a pair, with its mask and correspondences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
_INVERSE_REACH = 1.2
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
        bent = _kernel(_squared(flat, self.centers)) @ self.weights
        mapped: Matrix = (self.affine[0] + flat @ self.affine[1:] + bent).reshape(wanted.shape)
        return mapped

    def inverse(self, points: npt.ArrayLike, *, steps: int = 12) -> Matrix:
        """Find what maps to points ``[..., 2]``, by Newton's method from those points.

        Returns:
            ``[..., 2]``; NaN where nothing was found in or close to [-1, 1]².
        """
        wanted = np.asarray(points, dtype=np.float64)
        flat = wanted.reshape(-1, 2)
        found = np.clip(flat, -_INVERSE_REACH, _INVERSE_REACH)
        for _ in range(steps):
            value, slope = self._with_slope(found)
            miss = flat - value
            if float(np.abs(miss).max(initial=0.0)) < _INVERSE_TOLERANCE:
                break
            determinant = slope[:, 0, 0] * slope[:, 1, 1] - slope[:, 0, 1] * slope[:, 1, 0]
            determinant = np.where(np.abs(determinant) < _EPSILON, _EPSILON, determinant)
            step_x = miss[:, 0] * slope[:, 1, 1] - miss[:, 1] * slope[:, 1, 0]
            step_y = miss[:, 1] * slope[:, 0, 0] - miss[:, 0] * slope[:, 0, 1]
            step = np.stack([step_x, step_y], axis=-1) / determinant[:, None]
            found = np.clip(found + step, -_INVERSE_REACH, _INVERSE_REACH)
        lost = np.abs(flat - self(found)).max(axis=-1, keepdims=True) > _INVERSE_ACCEPTED
        solved: Matrix = np.where(lost, np.nan, found).reshape(wanted.shape)
        return solved

    def _with_slope(self, points: Matrix) -> tuple[Matrix, Matrix]:
        """Values ``[n, 2]`` and derivatives ``[n, input, output]`` at points ``[n, 2]``."""
        squared = _squared(points, self.centers)
        logs = np.log(squared + _EPSILON)
        value = self.affine[0] + points @ self.affine[1:] + (0.5 * squared * logs) @ self.weights
        # The kernel's gradient is rate * (point - centre).
        rate = logs + squared / (squared + _EPSILON)
        pulled = rate @ self.weights
        slope = np.empty((len(points), 2, 2))
        for axis in (0, 1):
            pushed = rate @ (self.centers[:, axis : axis + 1] * self.weights)
            slope[:, axis] = self.affine[1 + axis] + points[:, axis : axis + 1] * pulled - pushed
        return value, slope


def _squared(points: Matrix, centers: Matrix) -> Matrix:
    """Squared distances ``[n, K]``."""
    x = points[:, :1] - centers[:, 0]
    y = points[:, 1:] - centers[:, 1]
    distances: Matrix = x * x + y * y
    return distances


def _kernel(squared: Matrix) -> Matrix:
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
    system[:count, :count] = _kernel(_squared(src, dst))
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
    extent = np.array([width, height]) / 2.0
    if published:
        maps = (warp(_lattice(height, width, published=True)) + 1.0) * extent - 0.5
    else:
        ticks_y, spread_y = _knots(height)
        ticks_x, spread_x = _knots(width)
        coarse = (warp(np.stack(np.meshgrid(ticks_x, ticks_y), axis=-1)) + 1.0) * extent - 0.5
        maps = np.stack([spread_y @ coarse[..., axis] @ spread_x.T for axis in (0, 1)], axis=-1)
    drawn: Pixels = cv2.remap(
        image,
        maps.astype(np.float32),
        None,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return drawn


@lru_cache(maxsize=16)
def _knots(side: int) -> tuple[Matrix, Matrix]:
    """Knots every few pixels, and cubic interpolation from them to the centres of all pixels.

    Returns:
        Positions of the knots in [-1, 1] and a little beyond, ``[n]``, and weights ``[side, n]``.
    """
    count = -(-side // _MAP_STEP) + 3
    place = (np.arange(side) + 0.5) / _MAP_STEP + 1.0
    first = np.floor(place).astype(np.int64) - 1
    t = place - first
    # Lagrange's cubic through knots 0, 1, 2, 3 at t in [1, 2].
    weights = [
        -(t - 1) * (t - 2) * (t - 3) / 6,
        t * (t - 2) * (t - 3) / 2,
        -t * (t - 1) * (t - 3) / 2,
        t * (t - 1) * (t - 2) / 6,
    ]
    spread = np.zeros((side, count))
    for k, weight in enumerate(weights):
        spread[np.arange(side), first + k] = weight
    knots = np.arange(-1, count - 1, dtype=np.float64) * (_MAP_STEP * 2.0 / side) - 1.0
    return knots.astype(np.float64), spread


def _lattice(height: int, width: int, *, published: bool) -> Matrix:
    x, y = (_ticks(count, published=published) for count in (width, height))
    return np.stack(np.meshgrid(x, y), axis=-1)


def _ticks(count: int, *, published: bool) -> Matrix:
    if published:
        return np.asarray(np.linspace(-1.0, 1.0, count))
    ticks = np.arange(0.5, count, dtype=np.float64) * (2.0 / count) - 1.0
    return ticks.astype(np.float64)


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
