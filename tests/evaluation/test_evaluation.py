# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.errors import DatasetError, OutputError
from patchword.evaluation import EvaluationReport, evaluate_locate, evaluate_match
from patchword.evaluation.match import visible_points
from patchword.geometry import from_index_coordinates, warp_points
from patchword.structures import CorrespondenceField, LocateResult, MatchResult

SIZE = (64, 96)


class KnowingMatcher:
    """Answers with a given map and given masks; ``shift`` in pixels spoils the field."""

    def __init__(self, homography: np.ndarray, masks: Any = None, shift: float = 0.0) -> None:
        self.homography, self.masks, self.shift = homography, masks, shift

    def match_dense(self, image0: Any, image1: Any) -> tuple[MatchResult, CorrespondenceField]:
        rows, columns = np.mgrid[8.0 : SIZE[0] : 16, 8.0 : SIZE[1] : 16]
        points = np.stack([columns, rows], axis=-1).astype(np.float32)
        moved = warp_points(self.homography, points.reshape(-1, 2)).reshape(points.shape)
        ones = np.ones(points.shape[:2], dtype=np.float32)
        field = CorrespondenceField(
            points, (moved + np.array([self.shift, 0.0])).astype(np.float32), ones, ones
        )
        blank = np.zeros(SIZE, dtype=np.float32)
        mask0, mask1 = self.masks if self.masks is not None else (blank, blank)
        none = np.zeros((0, 4), dtype=np.float32)
        result = MatchResult(mask0, mask1, none, none[:, 0], 0.5, image0, image1)
        return result, field


def _write_pair(folder: Path, record: dict[str, Any]) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(folder / name)
    entry = {"name": "one", "a": "a.png", "b": "b.png", **record}
    (folder / "index.json").write_text(json.dumps([entry]))


# A move by 20 and 4 whole pixels, between pixel indices.
MOVE = [[1.0, 0.0, 20.0], [0.0, 1.0, 4.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(("shift", "accuracy"), [(0.0, 1.0), (15.9, 1.0), (16.1, 0.0)])
def test_homography_accuracy_has_its_border_at_16_pixels(
    tmp_path: Path, shift: float, accuracy: float
) -> None:
    _write_pair(tmp_path, {"H_a_to_b": MOVE, "level": "hard"})
    knowing: Any = KnowingMatcher(from_index_coordinates(MOVE), shift=shift)
    report = evaluate_match(tmp_path, matcher=knowing)
    assert report.metrics["nn_accuracy"] == report.metrics["nn_accuracy_hard"] == accuracy


def test_visible_points_are_lattice_points_seen_in_both() -> None:
    points, truth = visible_points(from_index_coordinates(MOVE), SIZE, SIZE)
    # x: 8 to 72 of 8..88 stay below 96 after 20; y: all of 8..56 stay below 64 after 4.
    assert len(points) == 5 * 4
    assert np.allclose(truth - points, [20, 4])


def test_object_protocol_scores_masks_and_inner_points(tmp_path: Path) -> None:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[16:48, 16:48] = 255
    moved = np.roll(mask, (4, 20), axis=(0, 1))
    Image.fromarray(mask).save(tmp_path / "ma.png")
    Image.fromarray(moved).save(tmp_path / "mb.png")
    record = {"affine_a_to_b": MOVE[:2], "mask_a": "ma.png", "mask_b": "mb.png", "class": "disc"}
    _write_pair(tmp_path, record)
    homography = from_index_coordinates(MOVE)
    flat = np.full(SIZE, 0.5, dtype=np.float32)
    knowing: Any = KnowingMatcher(homography, ((mask / 255).astype(np.float32), flat))
    report = evaluate_match(tmp_path, matcher=knowing)
    assert report.per_item[0]["points"] == 4
    assert report.metrics["nn_accuracy"] == 1.0
    assert report.metrics["ap0"] == pytest.approx(1.0)
    # A flat mask has the share of object pixels as its precision everywhere.
    assert report.metrics["ap1"] == pytest.approx(32 * 32 / (SIZE[0] * SIZE[1]))
    assert report.metrics["ap"] == pytest.approx((1.0 + report.metrics["ap1"]) / 2)


class KnowingLocalizer:
    """Puts the heat where its picture is bright and ranks captions by a given table."""

    def __init__(self, table: list[list[float]]) -> None:
        self.table = torch.tensor(table)

    def extract(self, image: np.ndarray) -> Any:
        return type("Scene", (), {"image": image, "logits": torch.zeros(3)})()

    def locate(self, scene: Any, texts: list[str]) -> LocateResult:
        heat = scene.image[None, :, :, 0].astype(np.float32) / 255
        labels = np.zeros(heat.shape[1:], dtype=np.int64)
        return LocateResult(tuple(texts), heat, labels, np.ones(1, np.float32), scene.image)

    def caption_scores(self, gallery: list[Any], captions: list[str]) -> torch.Tensor:
        assert len(gallery) == len(captions) == len(self.table)
        return self.table


def test_locate_protocol_on_hand_made_answers(tmp_path: Path) -> None:
    bright = np.zeros((*SIZE, 3), dtype=np.uint8)
    bright[:16, :16] = 255
    for index in range(3):
        Image.fromarray(bright).save(tmp_path / f"{index}.png")
    right, wrong = bright[..., 0], 255 - bright[..., 0]
    Image.fromarray(right).save(tmp_path / "right.png")
    Image.fromarray(wrong).save(tmp_path / "wrong.png")
    records = [
        {"image": "0.png", "class": "x", "mask": "right.png", "caption": "first"},
        {"image": "1.png", "class": "x", "mask": "wrong.png", "caption": "second"},
        {"image": "2.png", "caption": "third"},
    ]
    (tmp_path / "index.json").write_text(json.dumps(records))
    table = [[0.9, 0.1, 0.1], [0.5, 0.4, 0.1], [0.5, 0.4, 0.3]]
    knowing: Any = KnowingLocalizer(table)
    report = evaluate_locate(tmp_path, localizer=knowing)
    assert report.metrics["pointing"] == 0.5
    share = 1 - 16 * 16 / (SIZE[0] * SIZE[1])
    assert report.metrics["ap"] == pytest.approx((1.0 + share) / 2)
    assert [item["rank"] for item in report.per_item] == [1, 2, 3]
    assert report.metrics["r1"] == pytest.approx(1 / 3)
    assert report.metrics["median_rank"] == 2.0


def test_report_is_saved_as_json_and_picture(tmp_path: Path) -> None:
    example = np.zeros((10, 20, 3), dtype=np.uint8)
    report = EvaluationReport({"ap": 0.5}, [{"name": "one", "ap": 0.5}], "words", (example,))
    written = report.save(tmp_path / "deep" / "er")
    content = json.loads(written["report"].read_text())
    assert content["metrics"] == {"ap": 0.5}
    with Image.open(written["examples"]) as sheet:
        assert sheet.mode == "RGB"
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == [
        "evaluation.json", "examples.png",
    ]  # fmt: skip


def test_unwritable_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = EvaluationReport({}, [], "words")
    with pytest.raises(OutputError, match="must be writable"):
        report.save(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must hold index.json"),
        ("{", "must be JSON"),
        ("{}", "must be a list of records"),
        ("[]", "must be a list of records"),
        ('[{"image": "x.jpg"}]', "must have"),
    ],
)
def test_folders_of_another_layout_are_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        evaluate_match(tmp_path)
    with pytest.raises(DatasetError, match=message):
        evaluate_locate(tmp_path)


def test_bad_matrix_is_refused(tmp_path: Path) -> None:
    _write_pair(tmp_path, {"H_a_to_b": MOVE[:2], "level": "easy"})
    knowing: Any = KnowingMatcher(np.eye(3))
    with pytest.raises(DatasetError, match=r"H_a_to_b of record one in .* must be 3 x 3"):
        evaluate_match(tmp_path, matcher=knowing)
