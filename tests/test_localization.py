# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from patchword.backbones.imagenet_words import class_names
from patchword.errors import DatasetError, OptionError
from patchword.localization import Localizer, SceneFeatures
from patchword.structures import LocateResult

DUCK = Path(str(files("patchword") / "assets" / "demo" / "scene.jpg"))


@pytest.fixture(scope="module")
def localizer() -> Localizer:
    return Localizer()


@pytest.fixture(scope="module")
def scene(localizer: Localizer) -> SceneFeatures:
    return localizer.extract(DUCK)


def test_phrase_weights_name_the_right_classes(localizer: Localizer) -> None:
    phrases = localizer.encode_texts(["a goldfish", "a hammer"])
    assert torch.allclose(phrases.weights.sum(dim=1), torch.ones(2), atol=1e-5)
    assert [class_names()[i] for i in phrases.weights.argmax(dim=1)] == ["goldfish", "hammer"]


def test_a_duck_is_found_and_a_train_is_not(localizer: Localizer, scene: SceneFeatures) -> None:
    result = localizer.locate(scene, ["a duck", "a steam train"])
    assert isinstance(result, LocateResult)
    height, width = scene.image.shape[:2]
    assert result.heatmaps.shape == (2, height, width)
    assert result.heatmaps.dtype == np.float32
    assert result.labels.dtype == np.int64
    # The bird sits in the middle of the picture; its corners show water and grass.
    assert result.labels[height // 2, width // 2] == 0
    for row, column in ((5, 5), (5, -5), (-5, 5), (-5, -5)):
        assert result.labels[row, column] == -1
    assert result.scores[0] > 0.9
    assert result.scores[1] < 0.3
    assert not (result.labels == 1).any()


def test_labels_are_the_best_phrase_above_the_threshold(
    localizer: Localizer, scene: SceneFeatures
) -> None:
    result = localizer.locate(scene, ["a duck", "a goose"])
    best = result.heatmaps.argmax(axis=0)
    expected = np.where(result.heatmaps.max(axis=0) >= 0.5, best, -1)
    assert (result.labels == expected).all()


def test_phrases_do_not_disturb_each_other(localizer: Localizer, scene: SceneFeatures) -> None:
    alone = localizer.locate(scene, ["a duck"])
    together = localizer.locate(scene, ["a lawn mower", "a duck"])
    assert np.allclose(alone.heatmaps[0], together.heatmaps[1], atol=1e-5)


def test_two_runs_are_equal_bit_for_bit(localizer: Localizer) -> None:
    first, second = (localizer.locate(DUCK, ["a duck"]) for _ in range(2))
    assert np.array_equal(first.heatmaps, second.heatmaps)
    assert np.array_equal(first.scores, second.scores)


@pytest.mark.parametrize("size", [(1, 1), (9, 300)])
def test_odd_sizes_come_back_in_their_own_size(localizer: Localizer, size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 120, dtype=np.uint8)
    result = localizer.locate(picture, ["a duck"])
    assert result.heatmaps.shape == (1, *size)
    assert np.isfinite(result.heatmaps).all()


def test_caption_ranks_its_own_picture_first(localizer: Localizer, scene: SceneFeatures) -> None:
    tower = localizer.extract(DUCK.parent / "pair0.jpg")
    scores = localizer.caption_scores(
        [scene, tower.logits], ["a white bird by the water", "a tall stone tower"]
    )
    assert scores.argmax(dim=1).tolist() == [0, 1]
    assert scores.abs().max() <= 1.0


def test_bad_requests_are_refused(localizer: Localizer, scene: SceneFeatures) -> None:
    with pytest.raises(OptionError, match="texts must hold at least one phrase"):
        localizer.locate(scene, [])
    with pytest.raises(OptionError, match="text must not be empty"):
        localizer.locate(scene, ["a duck", " "])
    with pytest.raises(OptionError, match="scenes must hold at least one picture"):
        localizer.caption_scores([], ["a duck"])
    with pytest.raises(DatasetError, match=r"gone\.jpg"):
        localizer.locate("gone.jpg", ["a duck"])
