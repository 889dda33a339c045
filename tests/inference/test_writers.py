# SPDX-License-Identifier: Apache-2.0
"""What one result leaves on disk can be read back exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeLocalizer, FakeLocateResult, FakeMatcher, FakeMatchResult
from PIL import Image

from patchword.errors import OutputError
from patchword.inference.writers import save_locate, save_match

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_match_files(tmp_path: Path) -> None:
    result = FakeMatcher().match(IMAGE, IMAGE[:20])
    written = save_match(result, tmp_path / "out", extra={"input0": "a.jpg"})
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "mask0.png",
        "mask1.png",
        "overlay.png",
        "result.json",
    }
    mask1 = pixels(written["mask1"])
    assert mask1.shape == (20, 40)
    assert np.unique(mask1).tolist() == [64]
    record = json.loads(written["result"].read_text())
    assert record["input0"] == "a.jpg"
    assert record["size1"] == [20, 40]
    assert record["shared0"] == pytest.approx(0.75)
    np.testing.assert_allclose(record["matches"], result.matches, atol=0.005)
    np.testing.assert_allclose(record["match_scores"], result.match_scores, atol=1e-5)


def test_match_without_matches_or_images(tmp_path: Path) -> None:
    blank = np.zeros((5, 7), np.float32)
    result = FakeMatchResult(blank, blank, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0)
    record = json.loads(save_match(result, tmp_path)["result"].read_text())
    assert record["matches"] == []


def test_locate_files(tmp_path: Path) -> None:
    texts = ["a red car", "../../x", "\u732b"]
    result = FakeLocalizer().locate(IMAGE, texts)
    written = save_locate(result, tmp_path, thumbnail=True)
    assert written["heatmap_1"].name == "heatmap_01_x.png"
    assert {p.parent for p in written.values()} == {tmp_path}
    heat = pixels(written["heatmap_0"])
    np.testing.assert_array_equal(heat, np.rint(result.heatmaps[0] * 255))
    labels = pixels(written["labels"])
    np.testing.assert_array_equal(labels, result.labels + 1)
    assert max(pixels(written["thumb"]).shape) <= 420
    record = json.loads(written["result"].read_text())
    assert [p["text"] for p in record["phrases"]] == texts
    assert record["phrases"][2]["peak"] == [2.5, 0.5]
    assert record["phrases"][2]["share"] == pytest.approx(1 / 40)


def test_labels_beyond_a_byte(tmp_path: Path) -> None:
    count = 300
    labels = np.arange(count).reshape(1, count)
    heatmaps = np.zeros((count, 1, count), np.float32)
    texts = tuple(f"class {k}" for k in range(count))
    result = FakeLocateResult(texts, heatmaps, labels, np.zeros(count, np.float32))
    written = save_locate(result, tmp_path)
    np.testing.assert_array_equal(pixels(written["labels"])[0], labels[0] + 1)


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_match(FakeMatcher().match(IMAGE, IMAGE), tmp_path / "file" / "out")
