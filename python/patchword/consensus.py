# SPDX-License-Identifier: Apache-2.0
"""Spatial agreement: which matches move together under one affine map or homography.

Works on points only; pictures and features are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchword.geometry import Matrix, warp_points

_MIN_MATCHES = 6


@dataclass(frozen=True)
class ConsensusOptions:
    """How maps are proposed.

    Attributes:
        samples: Triples of neighbouring matches that are tried.
        neighbors: A triple is a match and two of its so many nearest matches.
        tolerance: Distance in pixels at which a match stops to support a map.
        min_scale: Smallest singular value of the map's linear part.
        max_scale: Largest singular value.
        max_stretch: Largest ratio of the two.
    """

    samples: int = 1500
    neighbors: int = 24
    tolerance: float = 16.0
    min_scale: float = 0.1
    max_scale: float = 6.0
    max_stretch: float = 4.0


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A map from frame 0 to frame 1 and the support that proposed it.

    Attributes:
        homography: 3 x 3, points of frame 0 to frame 1.
        support: Sum of weights of the agreeing matches.
    """

    homography: Matrix
    support: float


def propose_affine_maps(
    points0: Matrix,
    points1: Matrix,
    weights: Matrix,
    *,
    count: int,
    options: ConsensusOptions,
    generator: np.random.Generator,
) -> list[Hypothesis]:
    """Find up to ``count`` affine maps, each supported by other matches.

    Triples of neighbouring matches propose maps, as an object covers a connected part of a
    picture; every match votes with ``weight * (1 - r^2 / t^2)``; the winner is fitted by
    iteratively reweighted least squares, its matches are taken away, and the search goes on.

    Args:
        points0: ``[M, 2]`` in frame 0.
        points1: ``[M, 2]`` in frame 1.
        weights: ``[M]`` not negative.
        count: Largest number of maps.
        options: See :class:`ConsensusOptions`.
        generator: Source of the triples; the same state gives the same maps.
    """
    found: list[Hypothesis] = []
    while len(found) < count and len(points0) >= _MIN_MATCHES:
        best = _best_affine(points0, points1, weights, options, generator)
        if best is None:
            break
        wide = 1.5 * options.tolerance
        affine = fit_affine(points0, points1, weights, best.homography, tolerance=wide)
        found.append(Hypothesis(affine, best.support))
        residual = ((warp_points(affine, points0) - points1) ** 2).sum(axis=1)
        rest = residual >= wide**2
        points0, points1, weights = points0[rest], points1[rest], weights[rest]
    return found


def _best_affine(
    points0: Matrix,
    points1: Matrix,
    weights: Matrix,
    options: ConsensusOptions,
    generator: np.random.Generator,
) -> Hypothesis | None:
    """Draw triples and return the map with the largest vote, or None when none is plausible."""
    total = len(points0)
    nearest = min(total - 1, options.neighbors)
    distance = ((points0[:, None] - points0[None]) ** 2).sum(axis=-1)
    order = np.argsort(distance, axis=1, kind="stable")
    seeds = generator.integers(0, total, options.samples)
    steps = generator.integers(1, nearest + 1, (options.samples, 2))
    triples = np.stack([seeds, order[seeds, steps[:, 0]], order[seeds, steps[:, 1]]], axis=1)
    corners = np.concatenate([points0[triples], np.ones((options.samples, 3, 1))], axis=2)
    # Twice the area of the triangle: slivers fix no map.
    wide = np.abs(np.linalg.det(corners)) > options.tolerance**2
    triples, corners = triples[wide], corners[wide]
    if len(triples) == 0:
        return None
    maps = np.linalg.solve(corners, points1[triples])  # [S, 3, 2]
    maps = maps[_is_plausible(maps, options)]
    if len(maps) == 0:
        return None
    lifted = np.concatenate([points0, np.ones((total, 1))], axis=1)
    residual = ((lifted @ maps - points1) ** 2).sum(axis=-1)  # [S, M]
    votes = (np.clip(1.0 - residual / options.tolerance**2, 0.0, None) * weights).sum(axis=1)
    winner = int(votes.argmax())
    return Hypothesis(np.vstack([maps[winner].T, [0.0, 0.0, 1.0]]), float(votes[winner]))


def _is_plausible(maps: Matrix, options: ConsensusOptions) -> npt.NDArray[np.bool_]:
    """Keep maps ``[S, 3, 2]`` that mirror nothing and neither shrink nor stretch too much."""
    a, b, c, d = maps[:, 0, 0], maps[:, 1, 0], maps[:, 0, 1], maps[:, 1, 1]
    determinant = a * d - b * c
    # Singular values of a 2 x 2 matrix from its squared norm and its determinant.
    square = a * a + b * b + c * c + d * d
    root = np.sqrt(np.maximum(square**2 - 4 * determinant**2, 0.0))
    largest = np.sqrt((square + root) / 2)
    smallest = np.abs(determinant) / np.maximum(largest, 1e-12)
    plausible: npt.NDArray[np.bool_] = (
        (determinant > 0)
        & (largest < options.max_scale)
        & (smallest > options.min_scale)
        & (largest < options.max_stretch * smallest)
    )
    return plausible


def is_sound(homography: Matrix) -> bool:
    """Whether a map is finite, mirrors nothing and squeezes no plane to a line.

    A fit to matches in one row answers with such a squeeze.
    """
    if not np.isfinite(homography).all():
        return False
    linear = float(np.linalg.det(homography[:2, :2]))
    return linear > 1e-4 and float(np.linalg.det(homography)) > 1e-4


def _robust_weights(
    points0: Matrix, points1: Matrix, weights: Matrix, homography: Matrix, tolerance: float
) -> Matrix:
    residual = ((warp_points(homography, points0) - points1) ** 2).sum(axis=1)
    votes = np.clip(1.0 - np.nan_to_num(residual, nan=np.inf) / tolerance**2, 0.0, None)
    robust: Matrix = weights * votes
    return robust


def fit_affine(
    points0: Matrix,
    points1: Matrix,
    weights: Matrix,
    start: Matrix,
    *,
    tolerance: float,
    iterations: int = 5,
) -> Matrix:
    """Fit an affine map (3 x 3) to the matches near ``start`` by reweighted least squares."""
    homography = start
    lifted = np.concatenate([points0, np.ones((len(points0), 1))], axis=1)
    for _ in range(iterations):
        robust = _robust_weights(points0, points1, weights, homography, tolerance)
        if (robust > 0).sum() < 4:
            break
        root = np.sqrt(robust)[:, None]
        solution = np.linalg.lstsq(lifted * root, points1 * root, rcond=None)[0]
        homography = np.vstack([solution.T, [0.0, 0.0, 1.0]])
    return homography


def fit_homography(
    points0: Matrix,
    points1: Matrix,
    weights: Matrix,
    start: Matrix,
    *,
    tolerance: float,
    iterations: int = 5,
    stiffness: float = 0.02,
) -> Matrix:
    """Fit a homography to the matches near ``start`` by reweighted linear least squares.

    Points are centred and scaled first (Hartley 1997). ``stiffness`` pulls the two perspective
    terms to zero, so that few or noisy matches give nearly an affine map. Fewer than 12 agreeing
    matches leave ``start`` as it is.
    """
    homography = start
    for _ in range(iterations):
        robust = _robust_weights(points0, points1, weights, homography, tolerance)
        used = robust > 0
        if used.sum() < 12:
            break
        to_unit0, to_unit1 = _normalizer(points0[used]), _normalizer(points1[used])
        x, y = warp_points(to_unit0, points0).T
        u, v = warp_points(to_unit1, points1).T
        one, zero = np.ones_like(x), np.zeros_like(x)
        rows_u = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=1)
        rows_v = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=1)
        rows = np.concatenate([rows_u, rows_v])
        doubled = np.concatenate([robust, robust])
        normal = rows.T @ (rows * doubled[:, None])
        normal[[6, 7], [6, 7]] += stiffness * robust.sum()
        try:
            solution = np.linalg.solve(normal, rows.T @ (np.concatenate([u, v]) * doubled))
        except np.linalg.LinAlgError:
            break
        unit = np.append(solution, 1.0).reshape(3, 3)
        homography = np.linalg.inv(to_unit1) @ unit @ to_unit0
        homography /= homography[2, 2]
    return homography


def _normalizer(points: Matrix) -> Matrix:
    """Map that centres points and gives them unit spread."""
    center = points.mean(axis=0)
    spread = max(float(points.std()), 1e-9)
    return np.array(
        [
            [1 / spread, 0.0, -center[0] / spread],
            [0.0, 1 / spread, -center[1] / spread],
            [0, 0, 1.0],
        ]
    )
