# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchword.errors import OptionError, ShapeError
from patchword.geometry import (
    check_box,
    denormalize_points,
    from_index_coordinates,
    local_scale,
    normalize_points,
    patch_centers,
    patch_index,
    rotation_canvas,
    scale_matrix,
    warp_image,
    warp_points,
)


def test_patch_centers_follow_the_convention() -> None:
    assert patch_centers((2, 3), 16).tolist() == [
        [8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24],
    ]  # fmt: skip


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1.0, 7.0, 16.0]))
def test_patch_index_inverts_patch_centers(height: int, width: int, stride: float) -> None:
    index = patch_index(patch_centers((height, width), stride), (height, width), stride)
    assert index.tolist() == list(range(height * width))


def test_patch_index_is_minus_one_outside() -> None:
    points = [[-0.1, 5.0], [5.0, -0.1], [32.0, 5.0], [5.0, 16.0], [31.9, 15.9]]
    assert patch_index(points, (1, 2), 16.0).tolist() == [-1, -1, -1, -1, 1]


def test_normalized_points_span_the_picture_and_return() -> None:
    points = torch.tensor([[0.0, 0.0], [10.0, 4.0], [5.0, 2.0]])
    unit = normalize_points(points, (4, 10))
    assert unit.tolist() == [[-1, -1], [1, 1], [0, 0]]
    assert torch.allclose(denormalize_points(unit, (4, 10)), points)


def test_index_homography_moves_by_half_a_pixel() -> None:
    # Doubling indices sends the centre of pixel 3, at 3.5, to the centre of pixel 6, at 6.5.
    moved = warp_points(from_index_coordinates(scale_matrix(2.0, 2.0)), [[3.5, 3.5]])
    assert np.allclose(moved, [[6.5, 6.5]])


def test_points_at_infinity_are_nan() -> None:
    homography = np.array([[1.0, 0, 0], [0, 1, 0], [0.1, 0, 0]])
    assert np.isnan(warp_points(homography, [[0.0, 5.0]])).all()


def test_local_scale_is_the_root_of_the_area_change() -> None:
    homography = np.array([[1.2, 0.1, 5.0], [-0.2, 0.9, 3.0], [1e-3, -5e-4, 1.0]])
    corner = np.array([20.0, 30.0])
    step = 1e-4
    ends = warp_points(homography, corner + step * np.array([[0, 0], [1, 0], [0, 1]]))
    area = abs(np.linalg.det((ends[1:] - ends[0]) / step))
    assert local_scale(homography, [corner])[0] == pytest.approx(np.sqrt(area), rel=1e-4)


@pytest.mark.parametrize("degrees", [0.0, 45.0, 90.0, 180.0, -135.0])
def test_rotation_canvas_holds_every_corner(degrees: float) -> None:
    matrix, size = rotation_canvas((30, 50), degrees, 16)
    corners = warp_points(np.linalg.inv(matrix), [[0, 0], [50, 0], [0, 30], [50, 30]])
    assert (corners >= -1e-6).all()
    assert (corners <= np.array(size[::-1]) + 1e-6).all()
    assert size[0] % 16 == 0
    assert size[1] % 16 == 0


def test_warp_image_by_whole_pixels_is_a_shift() -> None:
    pixels = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    shift = np.array([[1.0, 0, 2.0], [0, 1.0, 3.0], [0, 0, 1.0]])
    drawn, inside = warp_image(pixels, shift, (8, 10), fill=0.25)
    assert torch.allclose(drawn[..., :5, :8], pixels[..., 3:, 2:], atol=1e-5)
    assert (drawn[..., 5:, :] == 0.25).all()
    assert inside[0, 0].sum() == 5 * 8


def test_warp_image_averages_when_it_shrinks() -> None:
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1.0
    drawn, _ = warp_image(stripes, scale_matrix(8.0, 8.0), (8, 8), fill=0.0)
    assert (drawn - 0.5).abs().max() < 0.06


def test_check_box_cuts_to_the_picture() -> None:
    assert check_box((-5, 2, 30, 99), (20, 25)) == (0.0, 2.0, 25.0, 20.0)


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (9, 5, 5, 9), (30, 0, 40, 9), (0, 0, float("nan"), 1)]
)
def test_check_box_refuses_boxes_without_a_pixel(box: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="box must overlap the picture of 25 x 20 pixels"):
        check_box(box, (20, 25))


def test_check_box_refuses_other_shapes() -> None:
    with pytest.raises(ShapeError, match="got 3 numbers"):
        check_box((1, 2, 3), (20, 25))
