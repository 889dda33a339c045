# SPDX-License-Identifier: Apache-2.0
"""Stroke records are read or refused in one sentence, and rendered where their points say."""

import gzip
import json

import numpy as np
import pytest

from patchword.data.strokes import bounds, fit_strokes, read_ndjson, render_strokes
from patchword.errors import DatasetError, OptionError, ShapeError

RECORD = {"word": "sun", "key_id": "7", "drawing": [[[0, 10], [0, 20]], [[5], [5], [0]]]}


def write(path, lines):
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.ndjson", "a.ndjson.gz"])
def test_reads_simplified_and_raw_records(tmp_path, name):
    path = write(tmp_path / name, [json.dumps(RECORD), "", json.dumps({"drawing": []})])
    first, second = read_ndjson(path)
    assert (first.word, first.key) == ("sun", "7")
    assert [stroke.tolist() for stroke in first.strokes] == [[[0, 0], [10, 20]], [[5, 5]]]
    assert (second.word, second.strokes) == ("", ())


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("{", "Expecting property name"),
        ("[]", 'object with a list "drawing"'),
        ('{"drawing": 3}', 'object with a list "drawing"'),
        ('{"drawing": [[1, 2]]}', "as many x as y"),
        ('{"drawing": [[[1]]]}', r"stroke 0 must be \[\[x"),
        ('{"drawing": [[["a"], [1]]]}', "numbers only"),
        ('{"drawing": [[[1, 2], [1]]]}', "as many x as y, got 2 and 1"),
        ('{"drawing": [[[NaN], [1]]]}', "finite"),
        ("[" * 100_000, "line 2"),
    ],
)
def test_malformed_lines_name_line_and_rule(tmp_path, line, rule):
    path = write(tmp_path / "bad.ndjson", [json.dumps(RECORD), line])
    with pytest.raises(DatasetError, match=rule) as caught:
        list(read_ndjson(path))
    assert caught.value.record == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"\x1f\x8b\x08broken"])
def test_unreadable_files_are_dataset_errors(tmp_path, content):
    path = tmp_path / ("x.ndjson.gz" if content and content[0] == 0x1F else "x.ndjson")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match="must be readable text"):
        list(read_ndjson(path))


def test_fit_touches_two_sides_and_keeps_proportions():
    stroke = np.float32([[0, 0], [4, 2]])
    (fitted,) = fit_strokes([stroke], (10, 10, 30, 30))
    assert fitted.tolist() == [[10, 15], [30, 25]]
    (dot,) = fit_strokes([np.float32([[7, 7]])], (10, 10, 30, 30))
    assert dot.tolist() == [[20, 20]]
    assert bounds([]) == (0, 0, 0, 0)


def test_render_follows_the_pixel_convention():
    ink = render_strokes([np.float32([[0.5, 2.5], [3.5, 2.5]])], (4, 6), 1)
    assert np.argwhere(ink).tolist() == [[2, 0], [2, 1], [2, 2], [2, 3]]
    assert set(np.unique(ink)) == {0, 255}


def test_dots_far_points_and_empty_drawings_render():
    assert render_strokes([np.float32([[5.5, 5.5]])], (11, 11), 3)[5, 5] == 255
    wide = render_strokes([np.float32([[-1e9, 5.5], [1e9, 5.5]])], (11, 11), 1)
    assert (wide[5] == 255).all()
    assert wide.sum() == 255 * 11
    assert render_strokes([], (3, 4)).shape == (3, 4)
    soft = render_strokes([np.float32([[2, 2], [9, 8]])], (11, 11), 2, antialias=True)
    assert len(np.unique(soft)) > 2


def test_bad_arguments():
    with pytest.raises(OptionError, match="thickness must be positive"):
        render_strokes([], (4, 4), 0)
    with pytest.raises(ShapeError, match=r"must be \[n, 2\]"):
        render_strokes([np.zeros(3, np.float32)], (4, 4))
