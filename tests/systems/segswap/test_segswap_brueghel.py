# SPDX-License-Identifier: Apache-2.0
"""Detail retrieval on a tiny folder in the published layout, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from retrieval_fakes import ColourScorer

from patchword.errors import ConfigError, DatasetError
from patchword.systems.segswap.protocols.brueghel import (
    BrueghelOptions,
    evaluate_brueghel,
    read_queries,
    score_details,
)

SMALL = BrueghelOptions(image_size=64, query_size=16, chunk=2)
GREYS = {"a.png": 100, "b.png": 104, "c.png": 130, "d.png": 101}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for name, grey in GREYS.items():
        Image.fromarray(np.full((64, 64, 3), grey, dtype=np.uint8)).save(images / name)
    return images


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    # From a (100) the order is d (101), b (104), c (130); from c it is b, d, a.
    content = {
        "x": [{"query": ["a.png", [16, 16, 32, 32]], "gt": [["b.png", [0, 0, 64, 64]]]}],
        "y": [
            {
                "query": ["c.png", [0, 0, 64, 64]],
                "gt": [
                    ["b.png", [0, 0, 64, 64]],
                    ["a.png", [0, 0, 8, 8]],
                    ["a.png", [8, 8, 16, 16]],
                ],
            }
        ],
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    return path


def test_average_precisions_by_hand(folder: Path, labels: Path) -> None:
    report = evaluate_brueghel(ColourScorer(), folder, labels, SMALL)
    # x: b at rank 2, one true picture. y: b at rank 1 and a at rank 3, two true pictures.
    assert report.metrics["ap_x"] == pytest.approx(0.5)
    assert report.metrics["ap_y"] == pytest.approx((1 + 2 / 3) / 2)
    assert report.metrics["map_image_level"] == pytest.approx((0.5 + 5 / 6) / 2)


def test_published_rules_count_true_boxes(folder: Path, labels: Path) -> None:
    options = BrueghelOptions(image_size=64, query_size=16, compat=True)
    report = evaluate_brueghel(ColourScorer(), folder, labels, options)
    assert report.metrics["ap_y"] == pytest.approx((1 + 2 / 3) / 3)


def test_localised_needs_the_place(folder: Path, labels: Path) -> None:
    report = evaluate_brueghel(ColourScorer(), folder, labels, SMALL)
    items = {item["category"]: item for item in report.per_item}
    # x: cells 0 to 2 of 4 both ways, so the box is three quarters of b each way: IoU 9 / 16.
    assert items["x"]["ap_localised@0.3"] == pytest.approx(0.5)
    # y: the query became one cell, so the box is a quarter each way: IoU 1 / 16 with b, and with
    # the two true boxes in a 0 and 1 / 4 at most.
    assert items["y"]["ap_localised@0.3"] == 0


def test_rankings_in_the_published_layout(folder: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "coarse.json"
    evaluate_brueghel(ColourScorer(), folder, labels, SMALL, out_coarse=out)
    rows = json.loads(out.read_text())["x"][0]
    assert [row[4] for row in rows] == [3, 1, 2]
    assert [row[3] for row in rows] == [0, 1, 0]
    assert rows[0][2] == pytest.approx(1 - 1 / 255, abs=1e-4)
    assert all(len(row) == 5 for row in rows)


def test_a_stopped_run_goes_on(folder: Path, labels: Path, tmp_path: Path) -> None:
    queries, work, cache = read_queries(labels), tmp_path / "work", tmp_path / "cache"
    scorer = ColourScorer()

    class AfterOneChunk:
        def __bool__(self) -> bool:
            return (work / "chunk_00000.npz").exists()

    with pytest.raises(KeyboardInterrupt):
        score_details(scorer, folder, queries, SMALL, cache=cache, work=work, stop=AfterOneChunk())
    seen = scorer.encoded
    resumed = score_details(scorer, folder, queries, SMALL, cache=cache, work=work)
    assert scorer.encoded == seen + 2  # the second chunk; queries and the first come from disk
    fresh = score_details(ColourScorer(), folder, queries, SMALL)
    np.testing.assert_array_equal(resumed.scores, fresh.scores)


def test_work_of_other_settings_is_refused(folder: Path, labels: Path, tmp_path: Path) -> None:
    evaluate_brueghel(ColourScorer(), folder, labels, SMALL, work=tmp_path / "w")
    with pytest.raises(ConfigError, match=r"other settings \(different: scorer"):
        evaluate_brueghel(ColourScorer("other"), folder, labels, SMALL, work=tmp_path / "w")


def test_cache_knows_the_weights_and_survives_damage(
    folder: Path, labels: Path, tmp_path: Path
) -> None:
    cache, scorer = tmp_path / "cache", ColourScorer()
    first = evaluate_brueghel(scorer, folder, labels, SMALL, cache=cache)
    count = scorer.encoded
    next(cache.rglob("*.safetensors")).write_bytes(b"damaged")
    again = evaluate_brueghel(scorer, folder, labels, SMALL, cache=cache)
    assert scorer.encoded == count + 1
    assert again.metrics == first.metrics
    evaluate_brueghel(other := ColourScorer("other"), folder, labels, SMALL, cache=cache)
    assert other.encoded == count


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "must be a readable JSON file"),
        ("[]", "must map each category"),
        ('{"a": [{"query": ["a.png", [1, 2, 3]], "gt": []}]}', "must map each category"),
        ('{"a": [{"query": ["a.png", [1, 2, 3, 4]]}]}', "must map each category"),
        ("{}", "must hold a query"),
    ],
)
def test_bad_annotation_files(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=said):
        read_queries(path)


def test_annotation_of_a_missing_picture(folder: Path, labels: Path) -> None:
    (folder / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"1 are missing \(first: a.png\)"):
        evaluate_brueghel(ColourScorer(), folder, labels, SMALL)


def test_sliding_baseline_finds_a_pasted_patch(tmp_path: Path) -> None:
    from patchword.systems.segswap.protocols.brueghel import DetailQuery
    from patchword.systems.segswap.protocols.sliding import SlidingOptions, evaluate_sliding

    class CellColours(ColourScorer):
        def encode(self, image: Any, normalisation: str = "correct") -> Any:
            import torch

            height, width = (side // 16 for side in image.shape[:2])
            cells = np.asarray(image, np.float32).reshape(height, 16, width, 16, 3).mean((1, 3))
            maps = torch.from_numpy(cells).permute(2, 0, 1) + 1
            return torch.nn.functional.normalize(maps, dim=0)

    rng = np.random.default_rng(0)
    patch = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    pictures = {}
    for name, (row, column) in {"q.png": (8, 8), "t.png": (4, 10), "n.png": (None, None)}.items():
        grid = rng.integers(100, 140, (20, 20, 3), dtype=np.uint8)
        if row is not None:
            grid[row : row + 4, column : column + 4] = patch
        pictures[name] = grid
        Image.fromarray(np.kron(grid, np.ones((16, 16, 1), np.uint8))).save(tmp_path / name)
    query = DetailQuery("p", "q.png", (128, 128, 192, 192), (("t.png", (160, 64, 224, 128)),))
    options = SlidingOptions(scales=(20,), query_cells=4, margin=2)
    report = evaluate_sliding(CellColours(), tmp_path, [query], options)
    assert report.metrics["map_localised@0.3"] == 1.0
