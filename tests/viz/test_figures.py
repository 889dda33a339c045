# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: sizes, colours and words that must be there, for any shape of input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeLocalizer, FakeLocateResult, FakeMatcher, FakeMatchResult

import patchword
from patchword import viz
from patchword.viz.canvas import fit, one_line
from patchword.viz.masks import overlay_labels, overlay_mask, resize_labels
from patchword.viz.matches import spread_matches
from patchword.viz.style import SHARED

SIZES = [(1, 1), (1, 400), (400, 1), (37, 91), (900, 1400)]


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def has_color(pixels: np.ndarray, color: Any) -> bool:
    return bool((pixels == np.asarray(color)).all(axis=-1).any())


@pytest.mark.parametrize("size", SIZES)
def test_match_overlay_of_any_size(size: tuple[int, int]) -> None:
    picture = viz.match_overlay(FakeMatcher().match(image(*size), image(50, 60)))
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert max(picture.shape) < 1700
    assert has_color(picture, SHARED)


def test_match_overlay_draws_lines_by_score() -> None:
    result = FakeMatcher().match(image(200, 200), image(200, 200))
    gap = viz.match_overlay(result)[:600, 575:585]
    colored = np.unique(gap[(gap.max(axis=2).astype(int) - gap.min(axis=2)) > 40], axis=0)
    assert len(colored) >= 5


def test_match_overlay_without_images_and_matches() -> None:
    blank = np.zeros((30, 40), np.float32)
    empty = FakeMatchResult(blank, blank, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0)
    assert viz.match_overlay(empty).shape[2] == 3
    assert len(viz.match_figure(empty).axes) == 2


def test_lines_are_spread_best_first() -> None:
    points = np.array([[10, 10], [10.5, 10], [50, 50], [90, 10]], np.float32)
    result = FakeMatchResult(
        np.zeros((100, 100), np.float32),
        np.zeros((100, 100), np.float32),
        np.concatenate([points, points], axis=1),
        np.array([0.5, 0.9, 0.2, 0.3], np.float32),
        0.5,
    )
    assert spread_matches(result, 10).tolist() == [1, 3, 2]
    assert spread_matches(result, 2).tolist() == [1, 3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 3, 30])
def test_locate_overlay_of_any_size(size: tuple[int, int], count: int) -> None:
    texts = [f"phrase {k}" for k in range(count)]
    picture = viz.locate_overlay(FakeLocalizer().locate(image(*size), texts))
    assert picture.dtype == np.uint8
    for color in viz.phrase_colors(texts)[: min(count, 24)]:
        assert has_color(picture, color)


def test_locate_overlay_survives_long_and_odd_phrases() -> None:
    texts = ["x" * 1000, "a\nb\tc", "\u732b", "\udcff", "<b>"]
    usual = viz.locate_overlay(FakeLocalizer().locate(image(60, 80), ["short"]))
    odd = viz.locate_overlay(FakeLocalizer().locate(image(60, 80), texts))
    assert odd.shape[1] < usual.shape[1] + 600


def test_figures_have_legend_titles_and_colour_bar() -> None:
    result = FakeLocalizer().locate(image(40, 50), ["a dog", "tree"])
    figure = viz.locate_figure(result)
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert words == ["a dog  0.90", "tree  0.10"]
    assert [ax.get_title() for ax in figure.axes[1:3]] == ["a dog", "tree"]
    assert figure.axes[-1].get_ylabel() == "response"
    figure.canvas.draw()
    match = viz.match_figure(FakeMatcher().match(image(40, 50), image(50, 40)))
    assert match.axes[-1].get_ylabel() == "match score"
    match.canvas.draw()


def test_mask_is_half_transparent_with_contour() -> None:
    ground = np.full((40, 40, 3), 100, np.uint8)
    mask = np.zeros((40, 40), np.float32)
    mask[10:30, 10:30] = 1
    picture = overlay_mask(ground, mask, (200, 0, 0))
    np.testing.assert_array_equal(picture[20, 20], [150, 50, 50])
    np.testing.assert_array_equal(picture[0, 0], [100, 100, 100])
    np.testing.assert_array_equal(picture[20, 10], [200, 0, 0])
    np.testing.assert_array_equal(ground, 100)


def test_labels_tint_their_regions_only() -> None:
    ground = np.full((40, 40, 3), 100, np.uint8)
    labels = np.full((40, 40), -1)
    labels[:, 20:] = 1
    picture = overlay_labels(ground, labels, np.array([[0, 0, 0], [0, 200, 0]], np.uint8))
    np.testing.assert_array_equal(picture[20, 30], [50, 150, 50])
    np.testing.assert_array_equal(picture[20, 5], [100, 100, 100])


def test_nearest_labels_keep_centres() -> None:
    labels = np.array([[0, 1], [2, 3]])
    np.testing.assert_array_equal(resize_labels(labels, (4, 4)), np.kron(labels, np.ones((2, 2))))
    np.testing.assert_array_equal(resize_labels(labels, (2, 2)), labels)


def test_phrase_colors_are_stable_and_distinct() -> None:
    texts = [f"class {k}" for k in range(200)]
    colors = viz.phrase_colors(texts)
    assert len({tuple(c) for c in colors.tolist()}) == 200
    np.testing.assert_array_equal(viz.phrase_colors(texts[::-1]), colors[::-1])
    np.testing.assert_array_equal(viz.phrase_colors(["dog"]), viz.phrase_colors(["dog"]))
    assert viz.phrase_colors([]).shape == (0, 3)


def test_heatmap_bytes_and_viridis_ends() -> None:
    heat = np.array([[0, 0.5, 1, 2, -1, np.nan]])
    np.testing.assert_array_equal(viz.heatmap_pixels(heat)[0], [0, 128, 255, 255, 0, 0])
    matplotlib = pytest.importorskip("matplotlib")
    ramp = matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3] * 255
    assert np.abs(viz.viridis(np.linspace(0, 1, 256)).astype(float) - ramp).max() < 3


def test_nothing_is_lost_in_tiny_words() -> None:
    assert one_line("a\n b\x00c  d") == "a b c d"
    assert one_line("x" * 100, 10) == "x" * 9 + "\u2026"
    assert fit((1, 10_000), (560, 760)) == (1, 760)


def test_overlays_need_no_matplotlib() -> None:
    code = (
        "import sys; from fakes import FakeMatcher; import numpy as np; from patchword import viz;"
        "viz.match_overlay(FakeMatcher().match(*[np.zeros((9, 9, 3), np.uint8)] * 2));"
        "sys.exit('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), check=False)
    assert done.returncode == 0


def environment() -> dict[str, str]:
    paths = [str(Path(__file__).parents[1]), str(Path(patchword.__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_empty_label_map() -> None:
    result = FakeLocateResult(
        ("a",), np.zeros((1, 8, 8), np.float32), np.full((8, 8), -1), np.zeros(1, np.float32)
    )
    assert viz.locate_overlay(result).size
