# SPDX-License-Identifier: Apache-2.0
"""Composed scenes written like FS-COCO are read back; broken folders are named."""

import json

import numpy as np
import pytest
from sketch_drawings import toy_library

from patchword.data.io import read_image
from patchword.errors import DatasetError
from patchword.systems.sketchseg.compose import compose_scene, scene_generator
from patchword.systems.sketchseg.data import (
    join_strokes,
    read_all_classes,
    read_captioned,
    read_labelled,
    split_strokes,
    write_captioned,
    write_labelled,
)


def scenes(count):
    return [compose_scene(toy_library(), scene_generator(0, index)) for index in range(count)]


@pytest.fixture
def test_folder(tmp_path):
    write_labelled(tmp_path / "test", iter(scenes(2)), toy_library().words())
    return tmp_path / "test"


def test_test_records_come_back(test_folder):
    read = list(read_labelled(test_folder))
    assert len(read) == 2
    for record, scene in zip(read, scenes(2), strict=True):
        assert record.labels == scene.labels
        assert tuple(record.categories()) == scene.classes()
        for one, other in zip(record.strokes, scene.strokes, strict=True):
            np.testing.assert_array_equal(one, other)
    assert read_all_classes(test_folder) == list(toy_library().words())
    picture = read_image(test_folder / "images" / "000000000001.png")
    assert picture.shape == (512, 512, 3)
    assert set(np.unique(picture)) == {0, 255}


def test_training_records_come_back(tmp_path):
    assert write_captioned(tmp_path, iter(scenes(3)), per_participant=2) == 3
    records = read_captioned(tmp_path)
    assert [one.key for one in records] == ["1/000000000001", "1/000000000002", "2/000000000003"]
    assert [one.caption.strip() for one in records] == [one.caption for one in scenes(3)]


def test_pairs_are_made_by_name_not_by_position(tmp_path):
    write_captioned(tmp_path, iter(scenes(3)))
    (tmp_path / "text" / "1" / "000000000000.txt").write_text("a stray caption")
    (tmp_path / "sketches" / "1" / "notes.md").write_text("no picture")
    assert [one.caption.strip() for one in read_captioned(tmp_path)] == [
        one.caption for one in scenes(3)
    ]
    (tmp_path / "text" / "1" / "000000000002.txt").unlink()
    with pytest.raises(DatasetError, match=r"000000000002\.txt must be readable text"):
        read_captioned(tmp_path)


def test_the_last_stroke_counts_without_a_pen_lift():
    points = np.array([[0, 0, 0], [1, 1, 1], [2, 2, 0], [3, 3, 0]], dtype=float)
    assert [len(part) for part in split_strokes(points)] == [2, 2]
    assert [len(part) for part in split_strokes(points, compat=True)] == [2]
    points[3, 2] = 2
    assert [len(part) for part in split_strokes(points)] == [2, 2]
    strokes = [np.float32([[0, 0], [1, 1]]), np.float32([[5, 5]])]
    for one, other in zip(split_strokes(join_strokes(strokes)), strokes, strict=True):
        np.testing.assert_array_equal(one, other)


def test_unequal_counts_are_refused_unless_compatible(test_folder):
    path = test_folder / "classes" / "000000000001.json"
    labels = json.loads(path.read_text())
    path.write_text(json.dumps(labels[:-1]))
    with pytest.raises(DatasetError, match=f"got {len(labels)} strokes and {len(labels) - 1}"):
        list(read_labelled(test_folder))
    assert len(next(read_labelled(test_folder, compat=True)).strokes) == len(labels) - 1


def test_broken_files_are_named(test_folder, tmp_path):
    (test_folder / "vector_sketches" / "000000000002.npy").write_bytes(b"not numpy")
    with pytest.raises(DatasetError, match=r"000000000002\.npy must hold finite numbers"):
        list(read_labelled(test_folder))
    (test_folder / "all_classes.json").write_text('["cat", "dog"]')
    with pytest.raises(DatasetError, match="blank_pixel first"):
        read_all_classes(test_folder)
    (test_folder / "all_classes.json").write_text("{")
    with pytest.raises(DatasetError, match="must be a JSON list of names"):
        read_all_classes(test_folder)
    with pytest.raises(DatasetError, match="must hold a folder sketches"):
        read_captioned(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"must hold vector_sketches/\*\.npy"):
        list(read_labelled(tmp_path))
