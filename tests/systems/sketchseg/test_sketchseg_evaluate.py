# SPDX-License-Identifier: Apache-2.0
"""The protocol's numbers follow from a hand-made folder, with categories given or all of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from patchword.errors import DatasetError, OptionError
from patchword.systems.sketchseg.evaluate import evaluate_sketches


def line(row, left, right):
    """A horizontal stroke on the 256-unit canvas."""
    return [[left, row, 0], [right, row, 1]]


@pytest.fixture
def folder(tmp_path):
    """Two sketches of equal horizontal lines: dog, dog, cat; and cat alone."""
    records = {
        "a": ([(40, "dog"), (80, "dog"), (120, "cat")]),
        "b": ([(40, "cat")]),
    }
    for name in ("vector_sketches", "classes"):
        (tmp_path / name).mkdir()
    for key, strokes in records.items():
        points = [point for row, _ in strokes for point in line(row, 50, 100)]
        np.save(tmp_path / "vector_sketches" / f"{key}.npy", np.array(points, dtype=float))
        (tmp_path / "classes" / f"{key}.json").write_text(json.dumps([w for _, w in strokes]))
    names = ["blank_pixel", "cat", "dog", "owl"]
    (tmp_path / "all_classes.json").write_text(json.dumps(names))
    return tmp_path


class Rows:
    """Says which word each row of pixels shows; keeps what it was asked."""

    def __init__(self, words):
        self.words, self.asked = words, []

    def segment(self, sketch, texts):
        self.asked.append(tuple(texts))
        assert sketch.shape == (512, 512, 3)
        labels = np.full((512, 512), -1, np.int16)
        for row, word in self.words.items():
            if word in texts:
                labels[2 * row - 3 : 2 * row + 4] = list(texts).index(word)
        return SimpleNamespace(labels=labels)


def test_given_categories(folder):
    rows = Rows({40: "cat", 80: "dog", 120: "cat"})
    report = evaluate_sketches(folder, rows)
    assert rows.asked == [("cat", "dog"), ("cat",)]
    # a: one of two dogs is called cat; cat: 1 of 2 lines it is given, dog: 1 of 2.
    assert report.metrics == pytest.approx(
        {
            "pixel_accuracy": (2 / 3 + 1) / 2,
            "stroke_accuracy": (2 / 3 + 1) / 2,
            "miou_per_sketch": ((1 / 2 + 1 / 2) / 2 + 1) / 2,
            "pixel_accuracy_dataset": 3 / 4,
            "class_accuracy_dataset": (1 + 1 / 2) / 2,
            "miou_dataset": (2 / 3 + 1 / 2) / 2,
            "fwiou_dataset": (2 / 4) * (2 / 3) + (2 / 4) * (1 / 2),
            "sketches": 2,
        }
    )
    assert "given to the model" in report.protocol


def test_full_vocabulary(folder):
    rows = Rows({40: "owl", 80: "dog", 120: "cat"})
    report = evaluate_sketches(folder, rows, vocabulary="full", limit=1)
    assert rows.asked == [("cat", "dog", "owl")]
    # dog: 1 of 2 lines, cat right, owl only named.
    assert report.metrics["miou_per_sketch"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert report.metrics["class_accuracy_dataset"] == pytest.approx((1 + 1 / 2) / 2)
    assert "all classes" in report.protocol


def test_unassigned_ink_is_wrong(folder):
    report = evaluate_sketches(folder, Rows({}))
    assert report.metrics["pixel_accuracy"] == 0
    assert report.metrics["stroke_accuracy"] == 0
    assert report.metrics["miou_per_sketch"] == 0


def test_refusals(folder):
    with pytest.raises(OptionError, match='"given" or "full"'):
        evaluate_sketches(folder, Rows({}), vocabulary="oracle")
    with pytest.raises(OptionError, match="limit must be at least 1"):
        evaluate_sketches(folder, Rows({}), limit=0)
    (folder / "classes" / "b.json").write_text('["lion"]')
    with pytest.raises(DatasetError, match="must be in all_classes"):
        evaluate_sketches(folder, Rows({}))
