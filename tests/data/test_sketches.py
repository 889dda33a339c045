# SPDX-License-Identifier: Apache-2.0
"""Vector drawings are rendered where their coordinates say, or refused in one sentence."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from patchword.data.sketches import is_vector, read_sketch
from patchword.data.svg import read_svg
from patchword.data.svg_path import path_strokes
from patchword.errors import DatasetError, OptionError


def svg(inside, head='viewBox="0 0 100 50"'):
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}>{inside}</svg>'


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("M1 2L3,4 5 6", [[(1, 2), (3, 4), (5, 6)]]),
        ("m1 2 2 2l2 2", [[(1, 2), (3, 4), (5, 6)]]),
        ("M0 0H5V7h-2v-1", [[(0, 0), (5, 0), (5, 7), (3, 7), (3, 6)]]),
        ("M0,0 L1,0 1,1 Z", [[(0, 0), (1, 0), (1, 1), (0, 0)]]),
        ("M0 0L1 0ZL5 5", [[(0, 0), (1, 0), (0, 0)], [(0, 0), (5, 5)]]),
        ("M1 1M2-3.5.5.5", [[(1, 1)], [(2, -3.5), (0.5, 0.5)]]),
        ("", []),
    ],
)
def test_straight_commands(path, expected):
    got = path_strokes(path)
    assert [[tuple(point) for point in stroke.tolist()] for stroke in got] == expected


def test_curves_pass_where_their_formulas_say():
    (cubic,) = path_strokes("M0 0C0 10 10 10 10 0")
    assert cubic[8].tolist() == [5, 7.5]
    assert cubic[-1].tolist() == [10, 0]
    (smooth,) = path_strokes("M0 0C0 10 10 10 10 0S20-10 20 0")
    assert smooth[24].tolist() == [15, -7.5]
    (quadratic,) = path_strokes("M0 0q5 10 10 0t10 0")
    assert quadratic[8].tolist() == [5, 5]
    assert quadratic[24].tolist() == [15, -5]


@pytest.mark.parametrize(("large", "sweep"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_arcs_are_on_the_circle_and_on_the_right_side(large, sweep):
    (arc,) = path_strokes(f"M10 0A10 10 0 {large}{sweep} 0 10")
    centre = (0, 0) if large != sweep else (10, 10)
    radii = np.hypot(*(arc - centre).T)
    np.testing.assert_allclose(radii, 10, atol=1e-9)
    length = np.hypot(*np.diff(arc, axis=0).T).sum()
    assert length == pytest.approx(math.pi * 10 * (1.5 if large else 0.5), rel=0.01)
    (x0, y0), (x1, y1) = arc[:2] - centre
    assert (x0 * y1 - y0 * x1 > 0) == bool(sweep)


def test_too_small_arcs_grow_and_flat_ones_are_lines():
    (grown,) = path_strokes("M0 0A1 1 0 0 1 10 0")
    np.testing.assert_allclose(np.hypot(*(grown - (5, 0)).T), 5, atol=1e-9)
    (line,) = path_strokes("M0 0A0 5 0 0 1 10 0")
    assert line.tolist() == [[0, 0], [10, 0]]


def test_shapes_and_transforms(tmp_path):
    path = tmp_path / "a.svg"
    path.write_text(
        svg(
            '<defs><path d="M0 0L9 9"/></defs><g transform="translate(10 20) scale(2)">'
            '<line x1="0" y1="0" x2="5px" y2="0"/></g><rect x="1" y="2" width="3" height="4"/>'
            '<polygon points="0,0 4,0 4,4"/><polyline points="0 0 1 1"/>'
            '<circle cx="5" cy="5" r="5" transform="rotate(90 5 5)"/><text>no</text>'
            '<path display="none" d="M0 0L9 9"/>'
            '<path d="M0 0L1 0" transform="matrix(0 1 -1 0 3 4)"/>'
        )
    )
    strokes, frame = read_svg(path)
    assert frame == (0, 0, 100, 50)
    assert strokes[0].tolist() == [[10, 20], [20, 20]]
    assert strokes[1].tolist() == [[1, 2], [4, 2], [4, 6], [1, 6], [1, 2]]
    assert strokes[2].tolist() == [[0, 0], [4, 0], [4, 4], [0, 0]]
    np.testing.assert_allclose(np.hypot(*(strokes[4] - 5).T), 5, atol=1e-5)
    np.testing.assert_allclose(strokes[4][0], [5, 10], atol=1e-5)
    np.testing.assert_allclose(strokes[5], [[3, 4], [3, 5]], atol=1e-6)
    assert len(strokes) == 6


def test_drawings_become_pictures_of_their_proportions(tmp_path):
    (tmp_path / "a.svg").write_text(svg('<line x1="0" y1="25" x2="100" y2="25"/>'))
    image = read_sketch(tmp_path / "a.svg", thickness=1)
    assert image.shape == (256, 512, 3)
    assert set(np.flatnonzero((image[..., 0] == 0).any(axis=1))) <= {127, 128}
    lines = [json.dumps({"drawing": [[[0, w], [0, 10]]]}) for w in (10, 40)]
    (tmp_path / "a.ndjson").write_text("\n".join(lines))
    assert read_sketch(tmp_path / "a.ndjson").shape == (512, 512, 3)
    assert read_sketch(tmp_path / "a.ndjson", record=1).shape[0] < 200
    with pytest.raises(DatasetError, match="must hold record 2, got fewer"):
        read_sketch(tmp_path / "a.ndjson", record=2)
    with pytest.raises(OptionError, match="record must be at least 0"):
        read_sketch(tmp_path / "a.ndjson", record=-1)
    Image.new("L", (4, 3), 255).save(tmp_path / "a.png")
    assert read_sketch(tmp_path / "a.png").shape == (3, 4, 3)
    assert is_vector("X.SVG")
    assert is_vector("a.ndjson.gz")
    assert not is_vector("a.png")
    assert not is_vector(np.zeros(3))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<svg", "unclosed token|no element"),
        ("<html/>", "its root is 'html'"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><svg/>', "it declares entities"),
        (svg('<path d="L1 1"/>'), "does not start with M"),
        (svg('<path d="M1 1 L3"/>'), "command L has 1 numbers"),
        (svg('<path d="M1 one"/>'), "a path holds|numbers"),
        (svg('<path d="M0 0A1 1 0 2 0 1 1"/>'), "an arc holds"),
        (svg('<g transform="rotate()"/>'), "wrong count of numbers"),
        (svg('<line x2="1e999"/>'), "not finite"),
        (svg("<g>" * 200 + "</g>" * 200), "nest too deep"),
    ],
)
def test_malformed_drawings_are_refused_in_one_sentence(tmp_path, text, reason):
    path = tmp_path / "bad.svg"
    path.write_text(text)
    with pytest.raises(DatasetError, match=reason) as caught:
        read_sketch(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="must be an SVG drawing, got: No such file"):
        read_sketch(tmp_path / "none.svg")
