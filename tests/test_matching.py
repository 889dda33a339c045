# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import similarity_map, textured, warped
from PIL import Image

from patchword.errors import DatasetError, OptionError
from patchword.geometry import patch_centers, warp_points
from patchword.matching import Matcher
from patchword.structures import MatchResult, PatchFeatures

SIZE = (192, 224)


@pytest.fixture(scope="module")
def matcher() -> Iterator[Matcher]:
    threads = torch.get_num_threads()
    yield Matcher()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base() -> np.ndarray:
    return textured(*SIZE, seed=3)


@pytest.mark.parametrize("degrees", [0.0, 20.0, 140.0])
def test_field_follows_a_known_turn(matcher: Matcher, base: np.ndarray, degrees: float) -> None:
    truth = similarity_map(degrees, 0.95, (112, 96), (104, 100))
    field = matcher.correspond(base, warped(base, truth, SIZE))
    points = patch_centers((12, 14), 16)
    places = warp_points(truth, points)
    visible = ((places >= 8) & (places < np.array(SIZE[::-1]) - 8)).all(axis=1)
    errors = np.linalg.norm(field.at(points) - places, axis=1)[visible]
    assert visible.sum() > 80
    assert (errors <= 16).mean() >= 0.95
    assert np.median(errors) < 4.0


def test_pasted_object_is_the_shared_region(matcher: Matcher) -> None:
    """Two unlike backgrounds share one disc, turned and smaller in the second."""
    size = (256, 256)
    source = textured(160, 160, seed=7)
    back0, back1 = textured(*size, seed=11), textured(*size, seed=12)
    rows, columns = np.mgrid[0:160, 0:160]
    disc = (np.hypot(rows - 79.5, columns - 79.5) < 70).astype(np.uint8)[..., None]
    pictures, masks = [], []
    for back, degrees, scale, center in (
        (back0, 0.0, 0.9, (90, 96)),
        (back1, 35.0, 0.75, (160, 150)),
    ):
        place = similarity_map(degrees, scale, (80, 80), center)
        inside = warped(np.repeat(disc * 255, 3, axis=2), place, size)[..., :1] > 191
        # The fill outside a warped picture is grey, so the disc is cut by its own warped mask.
        grid = warp_points(np.linalg.inv(place), patch_centers(size))
        within = (np.hypot(*(grid - 80).T) < 70).reshape(*size, 1)
        pictures.append(np.where(within, warped(source, place, size), back))
        masks.append((within & inside)[..., 0])
    result = matcher.match(*pictures)
    for mask, truth in ((result.mask0, masks[0]), (result.mask1, masks[1])):
        assert mask[truth].mean() > 0.5
        assert mask[~truth].mean() < 0.2
    assert result.score > 0.5


def test_result_keeps_the_promises_of_its_type(matcher: Matcher, base: np.ndarray) -> None:
    other = textured(100, 300, seed=5)
    result = matcher.match(base, other)
    assert isinstance(result, MatchResult)
    assert result.mask0.shape == SIZE
    assert result.mask1.shape == (100, 300)
    for mask in (result.mask0, result.mask1):
        assert mask.dtype == np.float32
        assert mask.min() >= 0.0
        assert mask.max() <= 1.0
    assert result.matches.dtype == result.match_scores.dtype == np.float32
    assert result.matches.shape == (len(result.match_scores), 4)
    assert (np.diff(result.match_scores) <= 0).all()
    assert ((result.matches >= 0) & (result.matches <= [*SIZE[::-1], 300, 100])).all()
    assert 0.0 <= result.score <= 1.0
    assert np.array_equal(result.image0, base)


def test_same_pictures_score_above_unlike_ones(matcher: Matcher, base: np.ndarray) -> None:
    same = matcher.match(base, base)
    unlike = matcher.match(base, textured(*SIZE, seed=90))
    assert same.score > 0.9
    # Both are noise of one kind and so alike in style; below one half means "rather not".
    assert unlike.score < 0.5


def test_two_runs_are_equal_bit_for_bit(matcher: Matcher, base: np.ndarray) -> None:
    other = warped(base, similarity_map(30, 0.9, (112, 96), (112, 96)), SIZE)
    first, second = matcher.match(base, other), matcher.match(base, other)
    assert np.array_equal(first.mask0, second.mask0)
    assert np.array_equal(first.matches, second.matches)
    assert first.score == second.score


def test_box_limits_masks_and_matches(matcher: Matcher, base: np.ndarray) -> None:
    box = (40.0, 30.0, 130.0, 120.0)
    result = matcher.match(base, base, box)
    assert result.mask0.shape == SIZE
    outside = result.mask0.copy()
    outside[14:136, 24:146] = 0.0
    assert outside.max() == 0.0
    assert result.mask0[45:105, 55:115].mean() > 0.5
    x, y = result.matches[:, 0], result.matches[:, 1]
    assert ((x >= 40) & (x <= 130) & (y >= 30) & (y <= 120)).all()
    assert np.median(np.linalg.norm(result.matches[:, :2] - result.matches[:, 2:], axis=1)) < 8


def test_gallery_score_prefers_the_picture_that_holds_the_query(
    matcher: Matcher, base: np.ndarray
) -> None:
    query = matcher.extract(base)
    turned = warped(base, similarity_map(10, 0.95, (112, 96), (112, 96)), SIZE)
    gallery = [matcher.extract(one) for one in (textured(*SIZE, seed=30), turned)]
    scores = matcher.score(query, gallery)
    assert scores.shape == (2,)
    assert scores[1] > scores[0] + 0.05
    assert matcher.score(query, gallery[1]) == pytest.approx(float(scores[1]))
    assert matcher.score(query, gallery[1], box0=(30, 30, 90, 90)) > 0


def test_every_kind_of_picture_gives_the_same_features(
    matcher: Matcher, base: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(base).save(path)
    tensor = torch.from_numpy(base).permute(2, 0, 1)
    expected = matcher.extract(base).tokens
    kinds = (
        path,
        str(path),
        Image.open(path),
        base / np.float32(255),
        tensor,
        tensor.float() / 255,
    )
    for kind in kinds:
        assert torch.equal(matcher.extract(kind).tokens, expected)


@pytest.mark.parametrize("size", [(1, 1), (5, 400), (700, 30)])
def test_odd_sizes_come_back_in_their_own_size(matcher: Matcher, size: tuple[int, int]) -> None:
    result = matcher.match(textured(*size, seed=1), textured(64, 64, seed=2))
    assert result.mask0.shape == size


def test_a_plain_picture_shares_nothing_with_a_textured_one(matcher: Matcher) -> None:
    plain = np.full((128, 128, 3), 90, dtype=np.uint8)
    result = matcher.match(plain, textured(128, 128, seed=4))
    assert np.isfinite(result.mask0).all()
    assert result.score < 0.5


def test_box_outside_is_refused(matcher: Matcher, base: np.ndarray) -> None:
    with pytest.raises(OptionError, match="box must overlap the picture of 224 x 192 pixels"):
        matcher.match(base, base, (300, 10, 400, 50))


def test_missing_file_is_named(matcher: Matcher, base: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.jpg"):
        matcher.match(base, tmp_path / "gone.jpg")


def test_features_without_their_picture_are_refused(matcher: Matcher, base: np.ndarray) -> None:
    bare = PatchFeatures(torch.zeros(1, 4, 304), (2, 2), 16.0, (32, 32))
    with pytest.raises(OptionError, match="features must carry their picture"):
        matcher.match(bare, base)
