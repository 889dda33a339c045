# SPDX-License-Identifier: Apache-2.0
"""Scenes follow from their number alone, stay on the canvas and know each stroke's class."""

import numpy as np
import pytest
from sketch_drawings import toy_library

from patchword.data.strokes import Drawing
from patchword.errors import DatasetError, OptionError
from patchword.systems.sketchseg.captions import caption_categories
from patchword.systems.sketchseg.compose import (
    CANVAS,
    DrawingLibrary,
    JitterConfig,
    SceneConfig,
    compose_scene,
    jitter_strokes,
    scene_generator,
)

STRONG = JitterConfig(
    rotation=30, stretch=0.4, shear=0.2, flip=0.5, warp=0.05, stroke=0.05, drop=0.5
)


def scene(index, config=None):
    return compose_scene(toy_library(), scene_generator(3, index), config)


def test_a_scene_follows_from_its_number():
    first, again, other = scene(5), scene(5), scene(6)
    assert first.caption == again.caption
    assert all(np.array_equal(a, b) for a, b in zip(first.strokes, again.strokes, strict=True))
    assert len(first.strokes) != len(other.strokes) or not all(
        np.array_equal(a, b) for a, b in zip(first.strokes, other.strokes, strict=True)
    )


@pytest.mark.parametrize("jitter", [JitterConfig(), STRONG])
def test_strokes_are_labelled_and_on_the_canvas(jitter):
    config = SceneConfig(min_objects=2, max_objects=5, jitter=jitter)
    counts = set()
    for index in range(40):
        one = scene(index, config)
        assert len(one.strokes) == len(one.labels) == len(one.objects)
        assert len(set(one.objects)) == len(one.classes())
        counts.add(len(one.classes()))
        points = np.concatenate(one.strokes)
        assert points.min() >= 0
        assert points.max() <= CANVAS
    assert counts == {2, 3, 4, 5}


def test_boxes_overlap_no_more_than_allowed():
    config = SceneConfig(min_objects=5, max_objects=5, max_overlap=0.0)
    for index in range(10):
        one = scene(index, config)
        boxes = []
        for number in range(5):
            mine = [s for s, o in zip(one.strokes, one.objects, strict=True) if o == number]
            points = np.concatenate(mine)
            boxes.append((*points.min(axis=0), *points.max(axis=0)))
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
                assert apart


def test_the_caption_names_the_objects():
    one = scene(2)
    for word in one.classes():
        assert word in one.caption
    assert set(caption_categories(one.caption, max_classes=9)) >= set(one.classes())
    assert len(one.caption.split()) >= 5


def test_no_jitter_keeps_proportions():
    strokes = [np.float32([[0, 0], [40, 10]]), np.float32([[5, 20], [7, 20]])]
    moved = jitter_strokes(strokes, np.random.default_rng(0), JitterConfig())
    offset = moved[0][0] - strokes[0][0]
    for old, new in zip(strokes, moved, strict=True):
        np.testing.assert_allclose(new, old + offset, atol=1e-5)


def test_drop_takes_one_stroke():
    strokes = [np.float32([[i, 0], [i, 9]]) for i in range(5)]
    counts = {
        len(jitter_strokes(strokes, np.random.default_rng(seed), JitterConfig(drop=1.0)))
        for seed in range(5)
    }
    assert counts == {4}


def test_split_holds_out_the_last_by_key():
    drawings = [Drawing("cat", (np.float32([[0, 0]]),), key) for key in "edcba"]
    first, last = DrawingLibrary.collect(drawings).split(0.4)
    assert [one.key for one in first.drawings["cat"]] == ["a", "b", "c"]
    assert [one.key for one in last.drawings["cat"]] == ["d", "e"]


def test_refusals(tmp_path):
    with pytest.raises(OptionError, match="min_objects must be in"):
        SceneConfig(min_objects=4, max_objects=3)
    with pytest.raises(OptionError, match="min_side must be in"):
        SceneConfig(min_side=0.6, max_side=0.5)
    with pytest.raises(OptionError, match="at least 9 classes, got 6"):
        scene(0, SceneConfig(min_objects=9, max_objects=9))
    empty = tmp_path / "empty.ndjson"
    empty.write_text("")
    with pytest.raises(DatasetError, match="must hold drawings, got none"):
        DrawingLibrary.read(empty)
