# SPDX-License-Identifier: Apache-2.0
"""Where objects go: maps, masks, warps and blending against hand-computed values."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from patchword.errors import OptionError, ShapeError
from patchword.geometry import warp_points
from patchword.systems.segswap import blend
from patchword.systems.segswap.compose import TWO_OBJECT_LAYOUTS, crop_to_border
from patchword.systems.segswap.correspondence import (
    affine_flow,
    cell_centers,
    cycle_masks,
    grid_mask,
    sample_linear,
    sample_zero,
)
from patchword.systems.segswap.layers import (
    LayerDraw,
    RejectedSceneError,
    exact_layer,
    published_layer,
    published_rotation,
    rotation_matrix,
)
from patchword.systems.segswap.outlines import dilate_cross
from patchword.systems.segswap.recipe import PairRecipe, draw_scale, scale_probabilities
from patchword.systems.segswap.warp import (
    RandomWarp,
    control_lattice,
    draw_warp,
    fit_thin_plate,
    warp_mask,
    warp_picture,
    warp_targets,
)

GRID = (30, 30)


def test_scale_probabilities_are_the_published_ones() -> None:
    p = scale_probabilities()
    assert p.sum() == pytest.approx(1.0)
    assert (p[0], p[-1]) == (pytest.approx(0.150545, abs=1e-6), pytest.approx(0.061207, abs=1e-6))
    assert p @ np.linspace(0.2, 1, 10) == pytest.approx(0.527872, abs=1e-6)
    assert p @ np.linspace(0.5, 1, 10) == pytest.approx(0.704920, abs=1e-6)


def test_drawn_scales_have_those_frequencies() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_scale(rng, (0.2, 1.0)) for _ in range(4000)]
    # Four standard errors of the mean: 0.26 / sqrt(4000) each.
    assert np.mean(drawn) == pytest.approx(0.527872, abs=0.0165)
    assert len(set(drawn)) == 10


def test_identity_keeps_a_full_mask_and_centres() -> None:
    flow = affine_flow(np.eye(3), GRID, 480)
    np.testing.assert_allclose(flow, cell_centers(GRID), atol=1e-12)
    assert flow[2, 5].tolist() == pytest.approx([5.5 / 30, 2.5 / 30])
    mask0, mask1 = cycle_masks(np.ones(GRID), flow, flow)
    np.testing.assert_allclose(mask0, 1.0, atol=1e-12)
    np.testing.assert_allclose(mask1, 1.0, atol=1e-12)


def test_cycle_masks_of_a_shift_by_two_cells() -> None:
    matrix = np.eye(3)
    matrix[0, 2] = 32.0
    there, back = (affine_flow(m, GRID, 480) for m in (matrix, np.linalg.inv(matrix)))
    mask0, mask1 = cycle_masks(np.ones(GRID), there, back)
    # The last two columns leave picture 1; its first two have no origin.
    np.testing.assert_allclose(mask0, np.tile(np.arange(30) < 28, (30, 1)), atol=1e-9)
    np.testing.assert_allclose(mask1, np.tile(np.arange(30) >= 2, (30, 1)), atol=1e-9)


def test_sampling_equals_grid_sample() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 5))
    points = rng.uniform(-0.3, 1.3, (40, 2))
    expected = F.grid_sample(
        torch.from_numpy(values)[None, None],
        torch.from_numpy(points * 2 - 1)[None, None],
        align_corners=False,
    )[0, 0, 0]
    np.testing.assert_allclose(sample_zero(values, points), expected.numpy(), atol=1e-12)


def test_linear_sampling_continues_affine_maps_exactly() -> None:
    matrix = np.array([[0.7, 0.2, 30.0], [-0.1, 0.9, 15.0], [0, 0, 1.0]])
    flow = affine_flow(matrix, GRID, 480)
    points = np.random.default_rng(0).uniform(0.0, 1.0, (50, 2))
    expected = warp_points(matrix, points * 480) / 480
    np.testing.assert_allclose(sample_linear(flow, points), expected, atol=1e-12)


def test_grid_mask_is_the_bilinear_reduction() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (480, 480), dtype=np.uint8)
    expected = F.interpolate(
        torch.from_numpy(mask)[None, None].double() / 255,
        size=GRID,
        mode="bilinear",
        align_corners=False,
    )[0, 0]
    np.testing.assert_allclose(grid_mask(mask, GRID), expected.numpy(), atol=1e-12)


def test_rotation_matrix_and_the_published_mistake() -> None:
    expected = [[0.96593, 0.25882, 0], [-0.25882, 0.96593, 124.233]]
    np.testing.assert_allclose(rotation_matrix(15, (480, 480))[:2], expected, atol=1e-3)
    pixels, model = published_rotation(-15.0)
    assert pixels == pytest.approx(0.2618, abs=1e-4)
    assert np.deg2rad(model) == pytest.approx(-0.0045693, abs=1e-7)
    assert published_rotation(12.0) == (12.0, 12.0)
    # A turn to either side keeps a 40 x 60 picture at the origin of its enlarged canvas.
    for degrees in (20.0, -20.0):
        corners = warp_points(
            rotation_matrix(degrees, (40, 60)), [[0, 0], [60, 0], [0, 40], [60, 40]]
        )
        np.testing.assert_allclose(corners.min(axis=0), 0.0, atol=1e-9)


def spot_picture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grey square object with bright spots at known places."""
    image = np.full((480, 480, 3), 40, np.uint8)
    mask = np.zeros((480, 480), np.uint8)
    mask[140:340, 120:330] = 255
    spots = np.array([[180.5, 200.5], [270.5, 190.5], [200.5, 300.5]])
    for x, y in spots:
        cv2.circle(image, (int(x), int(y)), 7, (250, 250, 250), -1)
    return image, mask, spots


def found_spot(patch: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Centre of mass of the bright pixels around a point."""
    x0, y0 = np.maximum(np.round(near).astype(int) - 12, 0)
    part = np.clip(patch[y0 : y0 + 24, x0 : x0 + 24, 0].astype(float) - 60, 0, None)
    rows, columns = np.mgrid[0 : part.shape[0], 0 : part.shape[1]] + 0.5
    return np.array([(columns * part).sum(), (rows * part).sum()]) / part.sum() + [x0, y0]


@pytest.mark.parametrize("degrees", [0.0, 13.0, -13.0, 170.0])
def test_exact_layer_puts_pixels_where_its_matrix_says(degrees: float) -> None:
    image, mask, spots = spot_picture()
    layer = exact_layer(image, mask, LayerDraw(0.9, 0.8, degrees, 0.9), (480, 480))
    assert max(layer.mask.shape) in (432, 431)  # 0.9 of the room
    for spot in spots:
        place = warp_points(layer.matrix, [spot])[0]
        assert np.abs(found_spot(layer.patch, place) - place).max() < 0.3
    inner = warp_points(layer.matrix, [[225.0, 240.0]])[0].astype(int)
    assert layer.mask[inner[1], inner[0]] == 255


def test_published_layer_is_within_two_pixels_and_its_negative_angles_are_not() -> None:
    image, mask, spots = spot_picture()
    for degrees in (13.0, -13.0):
        draw = LayerDraw(0.9, 0.8, degrees, 0.9)
        layer = published_layer(image, mask, draw, (480, 480), wrong_angles=False)
        for spot in spots:
            place = warp_points(layer.matrix, [spot])[0]
            assert np.abs(found_spot(layer.patch, place) - place).max() < 2.5
    wrong = published_layer(image, mask, draw, (480, 480), wrong_angles=True)
    # Hardly turned at all: the patch keeps the object's upright rectangle.
    assert (wrong.mask[::40, ::40][1:-1, 1:-1] == 255).all()
    assert not (layer.mask[::40, ::40][1:-1, 1:-1] == 255).all()


def test_empty_object_is_rejected() -> None:
    empty = np.zeros((480, 480), np.uint8)
    image = np.zeros((480, 480, 3), np.uint8)
    draw = LayerDraw(1.0, 1.0, 0.0, 1.0)
    with pytest.raises(RejectedSceneError):
        exact_layer(image, empty, draw, (480, 480))
    with pytest.raises(RejectedSceneError):
        published_layer(image, empty, draw, (480, 480), wrong_angles=False)


def test_dilation_is_twenty_crosses() -> None:
    rng = np.random.default_rng(1)
    mask = np.zeros((90, 110), np.uint8)
    mask[rng.integers(0, 90, 6), rng.integers(0, 110, 6)] = 255
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    expected = cv2.dilate(mask, cross, iterations=20)
    np.testing.assert_array_equal(dilate_cross(mask, 20), expected)
    np.testing.assert_array_equal(dilate_cross(mask, 0), mask)


def test_border_crop_takes_the_narrowest_strip() -> None:
    image = np.arange(100 * 120 * 3, dtype=np.uint32).reshape(100, 120, 3).astype(np.uint8)
    mask = np.zeros((100, 120), np.uint8)
    mask[30:90, 25:80] = 255  # gaps: left 25, right 40, top 30, bottom 10
    cropped, cut = crop_to_border(image, mask)
    assert cut.shape == (90, 120)
    assert cut[-1].any()
    np.testing.assert_array_equal(cropped, image[:90])


def test_two_object_boxes_do_not_meet() -> None:
    assert len(set(TWO_OBJECT_LAYOUTS)) == 16
    for first, second in TWO_OBJECT_LAYOUTS:
        gap_x = max(first[0] - second[2], second[0] - first[2])
        gap_y = max(first[1] - second[3], second[1] - first[3])
        assert max(gap_x, gap_y) in (16, 32)


@pytest.mark.parametrize("size", [(61, 80), (60, 81), (121, 75)])
def test_blend_solves_what_opencv_solves(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)

    def smooth(height: int, width: int) -> np.ndarray:
        noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)

    patch, background = smooth(*size), smooth(150, 160)
    mask = np.zeros(size, np.uint8)
    cv2.ellipse(
        mask,
        (size[1] // 2, size[0] // 2),
        (size[1] // 2 - 4, size[0] // 2 - 3),
        20,
        0,
        360,
        255,
        -1,
    )
    ours = blend.paste(patch, mask, background, (11, 23), blend="poisson")
    theirs = blend.paste(patch, mask, background, (11, 23), blend="opencv")
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    assert np.abs(ours.astype(int) - background).max() > 20


def test_blend_of_a_constant_offset_is_the_background() -> None:
    rng = np.random.default_rng(0)
    background = rng.integers(60, 120, (60, 70, 3), dtype=np.uint8)
    patch = background[10:50, 15:60] + np.uint8(30)
    mask = np.full((40, 45), 255, np.uint8)
    result = blend.paste(patch, mask, background, (15, 10), blend="poisson")
    # Fractions are cut off, so a rounding error below a whole number costs one level.
    assert np.abs(result.astype(int) - background).max() <= 1


def test_feather_keeps_the_patch_inside_and_the_background_outside() -> None:
    patch = np.full((40, 40, 3), 200, np.uint8)
    background = np.full((80, 80, 3), 50, np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    mask[8:32, 8:32] = 255
    result = blend.paste(patch, mask, background, (20, 30), blend="feather")
    assert result[50, 40].tolist() == [200, 200, 200]
    assert result[31, 21].tolist() == [50, 50, 50]


def test_spline_without_displacement_is_the_identity() -> None:
    lattice = control_lattice(4)
    plate = fit_thin_plate(lattice, lattice)
    assert np.abs(plate.weights).max() < 1e-6
    np.testing.assert_allclose(plate.affine, [[0, 0], [1, 0], [0, 1]], atol=1e-6)
    ones = np.ones(GRID)
    np.testing.assert_allclose(warp_mask(ones, plate), 1.0, atol=1e-6)
    faded = warp_mask(ones, plate, published=True)
    np.testing.assert_allclose(faded[[0, 0, -1, -1], [0, -1, 0, -1]], 0.25, atol=1e-6)
    np.testing.assert_allclose(faded[0, 1:-1], 0.5, atol=1e-6)
    np.testing.assert_allclose(faded[1:-1, 1:-1], 1.0, atol=1e-6)
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    np.testing.assert_array_equal(warp_picture(image, plate), image)


def test_spline_takes_sources_to_targets_and_back() -> None:
    rng = np.random.default_rng(4)
    for _ in range(5):
        warp = draw_warp(rng, (4, 6)).forward
        lattice = control_lattice(round(len(warp.centers) ** 0.5))
        np.testing.assert_allclose(warp(lattice), warp.centers, atol=1e-5)
        points = rng.uniform(-0.95, 0.95, (200, 2))
        back = warp.inverse(warp(points))
        # Where a warp folds, two points have one image, and either may come back.
        assert np.isfinite(back).all()
        np.testing.assert_allclose(warp(back), warp(points), atol=1e-6)


def test_spline_of_mismatched_points_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"must both be \[K, 2\]"):
        fit_thin_plate(np.zeros((4, 2)), np.zeros((5, 2)))


def test_warped_picture_is_drawn_to_a_third_of_a_pixel() -> None:
    ramp_x, ramp_y = np.meshgrid(np.arange(160), np.arange(160))
    image = np.stack([ramp_x, ramp_y, ramp_x], axis=-1).astype(np.uint8)
    warp = draw_warp(np.random.default_rng(5), (6,)).forward
    drawn = warp_picture(image, warp).astype(float)
    rows, columns = np.mgrid[20:140:7, 20:140:7]
    points = np.stack([columns, rows], axis=-1) + 0.5
    places = (warp(points / 80.0 - 1.0) + 1.0) * 80.0 - 0.5
    inside = ((places > 1) & (places < 158)).all(axis=-1)
    error = np.abs(drawn[rows, columns, :2] - places)[inside]
    assert error.max() < 0.5 + 0.34  # half a grey level of rounding


def test_warped_targets_point_at_the_same_places() -> None:
    matrix = np.array([[0.5, 0.1, 120.0], [-0.1, 0.55, 140.0], [0, 0, 1.0]])
    flows = [affine_flow(m, GRID, 480) for m in (matrix, np.linalg.inv(matrix))]
    masks = cycle_masks(np.ones(GRID), *flows)
    target0, target1 = (
        np.concatenate([f.transpose(2, 0, 1), m[None]]).astype(np.float32)
        for f, m in zip(flows, masks, strict=True)
    )
    warp = draw_warp(np.random.default_rng(6), (4,))
    new0, new1 = warp_targets(target0, target1, warp)
    shown = new1[2] > 0.5
    assert shown.sum() > 100
    # A cell of the new picture 1 shows T(cell) of the old one, whose origin is affine.
    old_places = (warp.forward(cell_centers(GRID) * 2 - 1) + 1) / 2
    origin = warp_points(np.linalg.inv(matrix), old_places[shown] * 480) / 480
    np.testing.assert_allclose(new1[:2, shown].T, origin, atol=1e-5)
    # And picture 0 points where T leads back to its old target.
    kept = new0[2] > 0
    np.testing.assert_allclose(
        (warp.forward(new0[:2, kept].T * 2 - 1) + 1) / 2, target0[:2, kept].T, atol=1e-5
    )


def test_published_inverse_is_off_where_the_corrected_is_not() -> None:
    identity = affine_flow(np.eye(3), GRID, 480)
    target = np.concatenate([identity.transpose(2, 0, 1), np.ones((1, *GRID))]).astype(np.float32)
    warp: RandomWarp = draw_warp(np.random.default_rng(7), (4,))
    errors = {}
    for published in (False, True):
        new0, _ = warp_targets(target, target, warp, published=published)
        inner = (slice(None), slice(4, 26), slice(4, 26))
        again = (warp.forward(new0[:2][inner].transpose(1, 2, 0) * 2 - 1) + 1) / 2
        errors[published] = np.abs(again - target[:2][inner].transpose(1, 2, 0)).max() * 30
    assert errors[False] < 1e-3
    assert 0.1 < errors[True] < 2.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 100}, "multiple of 16"),
        ({"aspect_min": 0.0}, "aspect_min"),
        ({"angle_min": 20.0}, "angles"),
        ({"scale_one": (0.0, 1.0)}, "scale_one"),
        ({"dilation": -1}, "dilation"),
        ({"min_contrast": -1.0}, "min_contrast"),
        ({"tps_grids": ()}, "tps_grids"),
        ({"two_objects": 1.5}, "two_objects"),
        ({"compat": frozenset({"T99"})}, "T99"),
        ({"compat": frozenset({"T5"}), "angle_max": 120.0}, "-90, 90"),
    ],
)
def test_recipe_refuses(change: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        PairRecipe(**change)  # type: ignore[arg-type]
