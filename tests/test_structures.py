# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from patchword.errors import ShapeError
from patchword.structures import CorrespondenceField, LocateResult, MatchResult, PatchFeatures


def _features(grid: tuple[int, int], image_size: tuple[int, int]) -> PatchFeatures:
    tokens = torch.arange(grid[0] * grid[1] * 2, dtype=torch.float32).reshape(1, -1, 2)
    return PatchFeatures(tokens, grid, 16.0, image_size)


def test_maps_are_row_major() -> None:
    features = _features((2, 3), (64, 96))
    maps = features.maps()
    assert maps.shape == (1, 2, 2, 3)
    assert torch.equal(maps[0, :, 1, 2], features.tokens[0, 1 * 3 + 2])


def test_scale_takes_input_pixels_to_picture_pixels() -> None:
    features = _features((2, 3), (64, 24))
    assert features.input_size == (32, 48)
    assert features.scale == (0.5, 2.0)


def test_grid_must_cover_tokens() -> None:
    with pytest.raises(ShapeError, match=r"tokens must have shape \[B, 8, D\] for grid \(2, 4\)"):
        PatchFeatures(torch.zeros(1, 6, 4), (2, 4), 16.0, (32, 64))


def test_field_reads_the_nearest_patch_and_keeps_the_offset() -> None:
    points0 = np.array([[[8, 8], [24, 8]]], dtype=np.float32)
    points1 = points0 + np.array([100, 50], dtype=np.float32)
    ones = np.ones((1, 2), dtype=np.float32)
    field = CorrespondenceField(points0, points1, ones, ones)
    assert field.at([[17.0, 3.0]]).tolist() == [[117.0, 53.0]]


@pytest.mark.parametrize("kind", [MatchResult, LocateResult, PatchFeatures, CorrespondenceField])
def test_records_are_frozen(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_pictures_are_left_out_of_the_printed_form() -> None:
    blank = np.zeros((2, 2), dtype=np.float32)
    picture = np.zeros((2, 2, 3), dtype=np.uint8)
    result = MatchResult(blank, blank, np.zeros((0, 4), np.float32), blank[0, :0], 0.5, picture)
    assert "image0" not in repr(result)
