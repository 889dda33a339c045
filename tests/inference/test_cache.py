# SPDX-License-Identifier: Apache-2.0
"""Stored descriptors are bit-equal, never stale, and a damaged file costs nothing but time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeMatcher
from PIL import Image

from patchword.errors import DatasetError
from patchword.inference.cache import FeatureCache
from patchword.inference.gallery import rank_gallery
from patchword.structures import PatchFeatures


def features(seed: int = 0) -> PatchFeatures:
    tokens = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(seed))
    return PatchFeatures(tokens, (2, 3), 16.0, (33, 47))


class TokenMatcher(FakeMatcher):
    """Describes a picture by its mean colour, as one patch."""

    extracted = 0

    def extract(self, image: np.ndarray) -> PatchFeatures:
        TokenMatcher.extracted += 1
        tokens = torch.from_numpy(image.mean(axis=(0, 1))).reshape(1, 1, 3)
        return PatchFeatures(tokens, (1, 1), 16, image.shape[:2], image=image)

    def score(self, a: PatchFeatures, b: PatchFeatures, *, box0: object = None) -> float:
        return float(1 - (a.tokens - b.tokens).abs().mean() / 255)

    def match(self, a: PatchFeatures, b: np.ndarray, *, box0: object = None) -> object:
        return FakeMatcher().match(a.image, b)


def picture(path: Path, value: int) -> Path:
    Image.new("RGB", (9, 7), (value, 0, 0)).save(path)
    return path


def test_round_trip_is_exact(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", "net 512")
    key = cache.key(picture(tmp_path / "a.png", 3))
    assert cache.get(key) is None
    strided = dataclasses.replace(features(), tokens=features().tokens.mT.contiguous().mT)
    stored = cache.put(key, strided)
    found = cache.get(key)
    assert found is not None
    assert found.tokens.stride() == stored.tokens.stride()
    assert torch.equal(found.tokens, stored.tokens)
    assert torch.equal(found.tokens, features().tokens)
    assert (found.grid, found.stride, found.image_size) == ((2, 3), 16.0, (33, 47))


def test_other_bytes_or_network_is_another_key(tmp_path: Path) -> None:
    one, two = FeatureCache(tmp_path, "net 512"), FeatureCache(tmp_path, "net 256")
    path = picture(tmp_path / "a.png", 3)
    keys = {one.key(path), two.key(path)}
    keys.add(one.key(picture(tmp_path / "a.png", 4)))
    assert len(keys) == 3
    assert one.key(picture(tmp_path / "b.png", 4)) in keys


def test_file_of_another_network_is_not_used(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "net 256").put("abc", features())
    assert FeatureCache(tmp_path, "net 512").get("abc") is None


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"text"])
def test_damaged_file_counts_as_none(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path, "net")
    cache.put("abc", features())
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    for broken in (content, whole[: len(whole) // 2]):
        file.write_bytes(broken)
        assert cache.get("abc") is None
    assert "damaged" in caplog.text


def test_missing_picture(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        FeatureCache(tmp_path, "net").key(tmp_path / "none.png")


def test_second_query_describes_only_itself(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for value in (10, 90, 200):
        picture(tmp_path / "photos" / f"{value}.png", value)
    cache = FeatureCache(tmp_path / "cache", "colour")
    scores = []
    for index, (query, kept) in enumerate([(100, None), (100, cache), (100, cache), (20, cache)]):
        before = TokenMatcher.extracted
        run = rank_gallery(
            TokenMatcher(),
            picture(tmp_path / "query.png", query),
            tmp_path / "photos",
            tmp_path / f"out{index}",
            settings={},
            cache=kept,
        )
        scores.append([(hit["key"], hit["quick_score"]) for hit in run.hits])
        assert TokenMatcher.extracted - before == (4 if index < 2 else 1)
    assert scores[0] == scores[1] == scores[2] != scores[3]
