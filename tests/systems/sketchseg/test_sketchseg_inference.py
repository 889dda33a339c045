# SPDX-License-Identifier: Apache-2.0
"""Ink is labelled at the sketch's own size; what is no sketch is refused in one sentence."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sketch_models import FakeEncoder, sketch, tiny_model

from patchword.errors import CheckpointError, DatasetError, OptionError
from patchword.systems.sketchseg.clip_encoder import ClipSketchEncoder
from patchword.systems.sketchseg.convert import save_model
from patchword.systems.sketchseg.encoder import SegmentOptions
from patchword.systems.sketchseg.inference import MAX_CATEGORIES, SketchSegmenter, load
from patchword.systems.sketchseg.ink import check_sketch, ink_mask
from patchword.systems.sketchseg.prompts import TEMPLATES
from patchword.systems.sketchseg.scores import minmax, scores_at


def test_templates_are_85_and_distinct():
    assert len(set(TEMPLATES)) == len(TEMPLATES) == 85
    assert all(template.endswith(".") and template.count("{}") == 1 for template in TEMPLATES)
    assert sum("in the scene." in template for template in TEMPLATES) == 5


def test_template_lengths():
    tokenizer = pytest.importorskip("patchword.backbones.clip.tokenizer")
    pytest.importorskip("regex")
    encode = tokenizer.ClipTokenizer().sequences
    for word, shortest, longest in (("", 5, 11), ("giraffe", 6, 12), ("teddy bear", 7, 13)):
        lengths = [len(ids) for ids in encode([t.format(word) for t in TEMPLATES])]
        assert (min(lengths), max(lengths)) == (shortest, longest)
    assert encode([t.format("grass ") for t in TEMPLATES]) == encode(
        [t.format("grass") for t in TEMPLATES]
    )


def test_labels_on_ink_only_at_the_sketchs_size():
    result = SketchSegmenter(FakeEncoder()).segment(sketch(), ["left", "right"])
    assert result.labels.shape == result.ink.shape == (120, 200)
    assert (result.labels[~result.ink] == -1).all()
    assert result.ink.sum() == 3 * 180 + 40 * 3
    assert (result.labels[21, 10:95] == 0).all()
    assert (result.labels[21, 105:190] == 1).all()


def test_one_category_takes_all_ink_and_a_threshold_frees_exactly_the_rest():
    full = SketchSegmenter(FakeEncoder()).segment(sketch(), ["only"])
    assert (full.labels[full.ink] == 0).all()
    options = SegmentOptions(threshold=0.6, mode="bilinear")
    cut = SketchSegmenter(FakeEncoder(), options).segment(sketch(), ["only"])
    assert ((cut.labels == -1) == ~(cut.ink & (cut.scores >= 0.6))).all()
    assert 0 < (cut.labels == 0).sum() < cut.ink.sum()


def test_a_category_is_isolated_at_several_thresholds():
    result = SketchSegmenter(FakeEncoder()).segment(sketch(), ["left", "right"])
    shares = [result.isolate(1, threshold).sum() for threshold in (0.1, 0.5, 0.9)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[2] > 0
    assert not result.isolate(1, 0.5)[:, :80].any()


def test_heat_maps_are_the_scores_on_ink():
    segmenter = SketchSegmenter(FakeEncoder())
    result = segmenter.segment(sketch(), ["left", "right"])
    located = segmenter.locate(sketch(), ["left", "right"])
    assert (located.labels == result.labels).all()
    assert (located.heatmaps[:, ~result.ink] == 0).all()
    assert (located.heatmaps[:, result.ink] > 0).all()
    np.testing.assert_allclose(located.heatmaps[1], result.category_scores(1), atol=1e-5)
    np.testing.assert_allclose(located.scores, located.heatmaps.max(axis=(1, 2)))


def test_a_sketch_is_encoded_once_for_any_words():
    encoder = FakeEncoder()
    segmenter = SketchSegmenter(encoder)
    one = segmenter.extract(sketch())
    first = segmenter.segment(one, ["a", "b"])
    second = segmenter.segment(one, segmenter.encode_texts(["c", "d", "e"]))
    assert encoder.encoded == 1
    assert first.texts == ("a", "b")
    assert second.maps.shape == (3, 7, 7)


def test_many_sketches_are_labelled_in_order():
    segmenter = SketchSegmenter(FakeEncoder())
    sketches = [sketch(60 + i, 80) for i in range(6)]
    results = list(segmenter.segment_each(sketches, ["a", "b"]))
    assert [one.labels.shape[0] for one in results] == [60 + i for i in range(6)]
    assert (results[5].labels == segmenter.segment(sketches[5], ["a", "b"]).labels).all()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(33, 50), (5, 4), (7, 7)])
def test_scores_equal_interpolation(mode, size):
    maps = torch.rand(3, 7, 9)
    large = F.interpolate(maps[None], size, mode=mode, align_corners=False)[0]
    if mode == "bicubic":
        flat = maps.flatten(1)
        large = large.clamp(flat.amin(1).view(3, 1, 1), flat.amax(1).view(3, 1, 1))
    pixels = torch.arange(size[0] * size[1])
    for category in range(3):
        got = scores_at(maps, size, pixels, torch.tensor([category]), mode)
        torch.testing.assert_close(got.view(size), large[category], atol=2e-5, rtol=0)
    best = large.argmax(0).flatten()
    got = scores_at(maps, size, pixels, best, mode)
    torch.testing.assert_close(got, large.amax(0).flatten(), atol=2e-5, rtol=0)
    assert scores_at(maps, size, pixels[:0], best[:0], mode).shape == (0,)


def test_published_values_of_stretched_patches():
    patches = minmax(torch.arange(4.0)[:, None]).T.view(1, 2, 2)
    grid = torch.arange(16)
    rows = scores_at(patches, (4, 4), grid, torch.tensor([0]), "bilinear").view(4, 4)
    expected = [
        [0, 0.0833, 0.25, 0.3333],
        [0.1667, 0.25, 0.4167, 0.5],
        [0.5, 0.5833, 0.75, 0.8333],
        [0.6667, 0.75, 0.9167, 1],
    ]
    torch.testing.assert_close(rows, torch.tensor(expected), atol=1e-4, rtol=0)
    cubic = scores_at(patches, (4, 4), grid, torch.tensor([0]), "bicubic")
    # Uncut, the corners would be -0.1055 and 1.1055.
    assert (cubic[0], cubic[-1]) == (0, 1)
    ramp = minmax(torch.arange(196.0)[:, None]).T.view(1, 14, 14)
    places = torch.tensor([0, 511 * 512 + 511, 256 * 512 + 256, 100 * 512 + 300])
    got = scores_at(ramp, (512, 512), places, torch.tensor([0]), "bilinear")
    torch.testing.assert_close(got, torch.tensor([0, 1, 0.5011, 0.2010]), atol=1e-4, rtol=0)
    hot = torch.zeros(1, 14, 14)
    hot[0, 6, 6] = 1
    spot = scores_at(hot, (512, 512), torch.arange(512 * 512), torch.tensor([0]), "bilinear")
    assert (spot > 0).sum() == 5329
    assert spot.max().item() == pytest.approx(0.9883, abs=1e-4)


def test_constant_scores_give_no_nan():
    assert minmax(torch.full((196, 3), 2.5)).equal(torch.zeros(196, 3))


def test_ink_rules():
    grey = np.array([[[0] * 3, [1] * 3, [127] * 3, [128] * 3, [254] * 3, [255] * 3]], np.uint8)
    assert ink_mask(grey).tolist() == [[True, True, True, False, False, False]]
    assert ink_mask(grey, level=2).tolist() == [[True, True, False, False, False, False]]
    assert ink_mask(grey, "red_zero").tolist() == [[True] + [False] * 5]
    assert ink_mask(grey, "not_white").tolist() == [[True] * 5 + [False]]
    with pytest.raises(OptionError, match="rule must be"):
        ink_mask(grey, "blue")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "categories must be 1 to 2000, got 0"),
        ([str(i) for i in range(10_000)], "categories must be 1 to 2000, got 10000"),
        (["tree", "Tree "], "categories must differ, got 'Tree' twice"),
        (["tree", " "], "a category must have a name"),
    ],
)
def test_bad_category_lists(texts, message):
    with pytest.raises(OptionError, match=message):
        SketchSegmenter(FakeEncoder()).segment(sketch(), texts)
    assert MAX_CATEGORIES == 2000


def photo():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((50, 60, 3), 255, np.uint8), "dark strokes, got a blank picture"),
        (np.zeros((50, 60, 3), np.uint8), "on light paper, got a picture with 0 % of light"),
        (photo(), "for a photograph use the default model"),
        (255 - sketch(), "Invert white lines on black"),
    ],
)
def test_what_is_no_sketch_is_refused(image, message):
    segmenter = SketchSegmenter(FakeEncoder())
    with pytest.raises(DatasetError, match=message):
        segmenter.segment(image, ["tree"])
    anyway = SketchSegmenter(FakeEncoder(), any_picture=True).segment(image, ["tree"])
    assert (anyway.labels[anyway.ink] == 0).all()


def test_transparent_and_odd_pictures_are_sketches_too():
    rgba = np.zeros((*sketch().shape[:2], 4), np.uint8)
    rgba[..., 3] = 255 - sketch()[..., 0]
    segmenter = SketchSegmenter(FakeEncoder())
    expected = segmenter.segment(sketch(), ["a", "b"]).labels
    assert (segmenter.segment(Image.fromarray(rgba), ["a", "b"]).labels == expected).all()
    one_bit = Image.fromarray(sketch()).convert("1", dither=Image.Dither.NONE)
    assert (segmenter.segment(one_bit, ["a", "b"]).labels == expected).all()
    dense = sketch()
    dense[::3] = 0
    check_sketch(dense, ink_mask(dense))


def letters(texts):
    return [[1, *(2 + ord(c) % 60 for c in text[:60]), 49407] for text in texts]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("norm", ["tokens", "sign", "channel"])
def test_published_scores_step_by_step(model, norm):
    """The whole way against the published one in plain torch, adapter and copies included."""
    words = ["sun", "tree", "giraffe"]
    templates = TEMPLATES[:4]
    encoder = ClipSketchEncoder(model, norm=norm, templates=templates, sequences=letters)
    options = SegmentOptions(mode="bilinear")
    result = SketchSegmenter(encoder, options).segment(sketch(224, 224), words)

    def text_vector(word):
        rows = model.text.encode_sequences(letters([t.format(word) for t in templates]))
        return F.normalize(F.normalize(rows, dim=1).mean(0), dim=0)

    text = torch.stack([text_vector(word) for word in words]) - text_vector("")
    pixels = torch.from_numpy(sketch(224, 224)).permute(2, 0, 1)[None] / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    features = model.encode_image((pixels - mean) / std, text, plain=True)
    if norm == "sign":
        features = (features[None] / features[None].norm(dim=1, keepdim=True))[0]
    else:
        features = features / features.norm(dim=1 if norm == "tokens" else 2, keepdim=True)
    scores = (features[0] @ text.T)[4:]
    scores = (scores - scores.amin(0)) / (scores.amax(0) - scores.amin(0))
    large = F.interpolate(scores.T.reshape(1, 3, 14, 14), (224, 224), mode="bilinear")[0]
    ink = sketch(224, 224)[..., 0] < 128
    np.testing.assert_allclose(result.maps, scores.T.reshape(3, 14, 14), atol=2e-4)
    agree = result.labels[ink] == large.argmax(0).numpy()[ink]
    # The sign of a value near zero may differ between the two forms of the adapter.
    assert agree.mean() > (0.98 if norm == "sign" else 0.999)
    np.testing.assert_allclose(result.scores[ink], large.amax(0).numpy()[ink], atol=1e-3)


def test_redundancy_may_stay_and_words_are_checked(model):
    plain = ClipSketchEncoder(model, templates=["{}."], sequences=letters, remove_redundant=False)
    torch.testing.assert_close(plain.encode_text(["a", "b"]).norm(dim=1), torch.ones(2))
    with pytest.raises(OptionError, match="must have a name"):
        plain.encode_text([" "])


def test_encoding_does_not_depend_on_the_batch(model):
    encoder = ClipSketchEncoder(model, sequences=letters)
    images = [sketch(100 + 10 * i, 150) for i in range(6)]
    together = encoder.encode_images(images)
    for image, features in zip(images, together, strict=True):
        (alone,) = encoder.encode_images([image])
        torch.testing.assert_close(alone.patches, features.patches, atol=1e-5, rtol=1e-4)
    assert encoder.encode_images([]) == []


def peak_memory():
    """Largest resident size in MB since the counter was last reset, and reset it."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def test_a_large_sketch_with_150_words_takes_little_memory():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak of resident memory cannot be reset here")
    segmenter = SketchSegmenter(FakeEncoder((14, 14)), SegmentOptions(mode="bilinear"))
    large = np.full((4096, 4096, 3), 255, np.uint8)
    large[::20] = 0
    words = [str(i) for i in range(150)]
    one = segmenter.extract(large)
    segmenter.segment(segmenter.extract(sketch()), words)
    peak_memory()
    before = peak_memory()
    result = segmenter.segment(one, words)
    # Maps at this size would be 10 GB.
    assert peak_memory() - before < 200
    assert (result.labels[result.ink] >= 0).all()


def test_load_reads_checkpoints_and_refuses_others(model, tmp_path):
    pytest.importorskip("regex")
    path = save_model(model, tmp_path / "model.safetensors")
    segmenter = load(path, norm="channel", text_cache=tmp_path / "texts")
    assert segmenter.options.scores == "cosine"
    result = replace(segmenter.segment(sketch(), ["sun"]), texts=("moon",))
    assert result.labels.dtype == np.int16
    with pytest.raises(CheckpointError, match="must be a file, got"):
        load(tmp_path / "none.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="must be of the sketch network"):
        load(tmp_path / "other.pth")
