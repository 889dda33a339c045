# SPDX-License-Identifier: Apache-2.0
"""The weights that ship, and the matcher that joins them with training-free correspondences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import Image, similarity_map, textured, warped

import patchword
from patchword.errors import CheckpointError, OptionError
from patchword.matching import Matcher
from patchword.metrics import average_precision
from patchword.nn.checkpoint import read_weights
from patchword.systems.segswap import joint
from patchword.systems.segswap.checkpoint import default_weights, load_network
from patchword.systems.segswap.config import PreprocessConfig
from patchword.systems.segswap.inference import Segswap
from patchword.systems.segswap.joint import JointMatcher, create_matcher


def pasted() -> tuple[Image, Image, np.ndarray]:
    """Two pictures that share a textured square, and where it lies in the first."""
    first, second, thing = (textured(256, 256, seed) for seed in (1, 2, 3))
    mask = np.zeros((256, 256), dtype=bool)
    mask[40:150, 60:170] = True
    there = similarity_map(20.0, 1.1, (115.0, 95.0), (140.0, 150.0))
    moved = warped(np.where(mask[..., None], thing, 0).astype(np.uint8), there, (256, 256))
    cover = warped(np.repeat(mask[..., None] * 255, 3, axis=2).astype(np.uint8), there, (256, 256))
    left = np.where(mask[..., None], thing, first // 2 + 60).astype(np.uint8)
    right = np.where(cover > 127, moved, second // 2 + 60).astype(np.uint8)
    return left, right, mask


@pytest.fixture(scope="module")
def matcher() -> JointMatcher:
    small = PreprocessConfig(resize="fit", size=(256, 256))
    return JointMatcher(Segswap(load_network(), preprocess=small))


def test_the_weights_that_ship_are_small_and_say_what_they_are() -> None:
    path = default_weights()
    assert path.stat().st_size < 10_000_000
    tensors, header = read_weights(path, system="segswap")
    assert header["config"]["backbone"] == joint.TRAINED_BACKBONE
    assert header["config"]["preprocess"]["size"]
    assert header["licence"] == "Apache-2.0"
    assert {str(one.dtype) for one in tensors.values()} == {"torch.float16"}
    assert isinstance(patchword.load("segswap"), Segswap)


def test_masks_are_trained_and_correspondences_training_free(matcher: JointMatcher) -> None:
    left, right, mask = pasted()
    result, field = matcher.match_dense(left, right)
    plain = Matcher(matcher.backbone)
    free, free_field = plain.match_dense(left, right)
    np.testing.assert_array_equal(field.points1, free_field.points1)
    assert average_precision(result.mask0, mask) > 0.8
    assert average_precision(result.mask0, mask) > average_precision(free.mask0, mask)
    assert result.mask0.shape == left.shape[:2]
    assert {tuple(row) for row in result.matches} <= {tuple(row) for row in free.matches}
    assert result.score == matcher.pair_score(left, right)


def test_pictures_that_share_score_above_others(matcher: JointMatcher) -> None:
    left, right, _ = pasted()
    other = textured(256, 256, 9)
    assert matcher.pair_score(left, right) > matcher.pair_score(left, other) + 0.2


def test_a_box_is_answered_training_free(matcher: JointMatcher) -> None:
    left, right, _ = pasted()
    box = (60, 40, 170, 150)
    ours, theirs = (one.match(left, right, box) for one in (matcher, Matcher(matcher.backbone)))
    np.testing.assert_array_equal(ours.mask0, theirs.mask0)
    assert ours.score == theirs.score


def test_the_network_alone_needs_no_maps(
    matcher: JointMatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right, mask = pasted()
    fast = JointMatcher(matcher.system, proven_maps=False)
    monkeypatch.setattr(Matcher, "match_dense", lambda *_: pytest.fail("searched for maps"))
    assert average_precision(fast.match(left, right).mask0, mask) > 0.8


def test_models_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(joint, "JointMatcher", lambda **options: made.append(options))
    create_matcher("auto")
    create_matcher("segswap")
    assert [one["proven_maps"] for one in made] == [True, False]
    assert type(create_matcher("training-free")) is Matcher
    with pytest.raises(OptionError, match="model must be one of auto, segswap, training-free"):
        create_matcher("best")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"must have weights for its backbone, got 'xfeat'"):
        create_matcher("segswap", backbone="xfeat")


def test_without_weights_auto_is_training_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none() -> Path:
        raise CheckpointError("load: segswap must come with its default weights, got none.")

    monkeypatch.setattr(joint, "default_weights", none)
    assert type(create_matcher("auto")) is Matcher
    with pytest.raises(OptionError, match="must have weights"):
        create_matcher("segswap")
