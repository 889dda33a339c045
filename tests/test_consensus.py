# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from pictures import similarity_map

from patchword.consensus import (
    ConsensusOptions,
    fit_affine,
    fit_homography,
    is_sound,
    propose_affine_maps,
)
from patchword.geometry import patch_centers, warp_points


def _scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A 5 x 5 object under a known map among 120 matches that agree on nothing."""
    generator = np.random.default_rng(seed)
    truth = similarity_map(30.0, 0.8, (100, 100), (300, 200))
    own = patch_centers((5, 5), 16) + 60
    stray0, stray1 = generator.uniform(0, 480, (2, 120, 2))
    points0 = np.concatenate([own, stray0])
    points1 = np.concatenate([warp_points(truth, own) + generator.normal(0, 2, own.shape), stray1])
    return points0, points1, truth


def test_small_object_is_found_among_strays() -> None:
    points0, points1, truth = _scene(0)
    found = propose_affine_maps(
        points0, points1, np.ones(len(points0)),
        count=1, options=ConsensusOptions(), generator=np.random.default_rng(1),
    )  # fmt: skip
    errors = np.linalg.norm(
        warp_points(found[0].homography, points0[:25]) - warp_points(truth, points0[:25]), axis=1
    )
    assert errors.max() < 4.0


def test_same_generator_state_gives_the_same_maps() -> None:
    points0, points1, _ = _scene(3)
    runs = [
        propose_affine_maps(
            points0, points1, np.ones(len(points0)),
            count=2, options=ConsensusOptions(), generator=np.random.default_rng(5),
        )
        for _ in range(2)
    ]  # fmt: skip
    for one, other in zip(*runs, strict=True):
        assert np.array_equal(one.homography, other.homography)


def test_mirrored_and_wild_maps_are_never_proposed() -> None:
    own = patch_centers((6, 6), 16)
    for turn in (np.diag([-1.0, 1.0]), np.diag([9.0, 9.0]), np.diag([2.0, 0.2])):
        found = propose_affine_maps(
            own, own @ turn, np.ones(len(own)),
            count=1, options=ConsensusOptions(tolerance=4.0), generator=np.random.default_rng(0),
        )  # fmt: skip
        if found:
            linear = found[0].homography[:2, :2]
            assert not np.allclose(linear, turn.T, atol=0.1)


def test_too_few_matches_propose_nothing() -> None:
    points = patch_centers((1, 5), 16)
    options, generator = ConsensusOptions(), np.random.default_rng(0)
    weights = np.ones(5)
    assert (
        propose_affine_maps(points, points, weights, count=3, options=options, generator=generator)
        == []
    )


def test_matches_in_one_place_propose_nothing() -> None:
    points = np.zeros((20, 2))
    options, generator = ConsensusOptions(), np.random.default_rng(0)
    weights = np.ones(20)
    assert (
        propose_affine_maps(points, points, weights, count=1, options=options, generator=generator)
        == []
    )


def test_squeezing_mirroring_and_infinite_maps_are_unsound() -> None:
    assert is_sound(similarity_map(130.0, 0.2, (0, 0), (5, 5)))
    assert not is_sound(np.diag([1.0, 0.0, 1.0]))
    assert not is_sound(np.diag([-1.0, 1.0, 1.0]))
    assert not is_sound(np.full((3, 3), np.nan))


def test_fits_recover_exact_maps_despite_outliers() -> None:
    points0 = patch_centers((8, 8), 32)
    truth = np.array([[1.1, 0.1, 20.0], [-0.05, 0.95, 10.0], [2e-4, -1e-4, 1.0]])
    points1 = warp_points(truth, points0)
    points1[::9] += 300.0
    weights = np.ones(len(points0))
    start = fit_affine(points0, points1, weights, np.eye(3), tolerance=120.0)
    found = fit_homography(
        points0, points1, weights, start, tolerance=60.0, stiffness=0.0, iterations=20
    )
    assert np.abs(warp_points(found, points0) - warp_points(truth, points0)).max() < 1e-6


def test_homography_fit_keeps_its_start_without_support() -> None:
    points = patch_centers((2, 4), 16)
    start = np.eye(3)
    assert fit_homography(points, points + 1, np.ones(8), start, tolerance=8.0) is start
