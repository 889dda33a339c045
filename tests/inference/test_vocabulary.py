# SPDX-License-Identifier: Apache-2.0
"""Vectors of words are averaged over templates, computed once, and found again on disk."""

import pytest
import torch
import torch.nn.functional as F

from patchword.backbones.clip.config import TextConfig
from patchword.backbones.clip.text import TextTower
from patchword.errors import OptionError
from patchword.inference.vocabulary import VocabularyEncoder

TEMPLATES = ("a {}.", "one {} here.", "{}!")


def sequences(texts):
    """Letters as ids, between a start and an end id."""
    return [[1, *(2 + ord(c) % 60 for c in text), 63] for text in texts]


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return TextTower(TextConfig(64, 40, 64, 2, 1), 16).eval().requires_grad_(False)


def count_calls(tower, monkeypatch):
    calls = []
    original = tower.encode_sequences
    monkeypatch.setattr(
        tower, "encode_sequences", lambda given: (calls.append(len(given)), original(given))[1]
    )
    return calls


def test_mean_of_unit_vectors_scaled_again(tower):
    got = VocabularyEncoder(tower, sequences, TEMPLATES).encode(["cat", "dog"])
    for row, word in zip(got, ["cat", "dog"], strict=True):
        each = tower.encode_sequences(sequences([t.replace("{}", word) for t in TEMPLATES]))
        torch.testing.assert_close(row, F.normalize(F.normalize(each, dim=1).mean(0), dim=0))


def test_a_word_is_computed_once(tower, monkeypatch):
    calls = count_calls(tower, monkeypatch)
    encoder = VocabularyEncoder(tower, sequences, TEMPLATES)
    first = encoder.encode(["cat", "dog", "cat"])
    assert first[0].equal(first[2])
    again = encoder.encode(["dog", "bird"])
    assert calls == [6, 3]
    assert again[0].equal(first[1])
    assert encoder.encode([]).shape == (0, 16)


def test_the_folder_answers_other_processes_until_something_changes(tower, monkeypatch, tmp_path):
    calls = count_calls(tower, monkeypatch)
    words = ["cat", "dog"]
    first = VocabularyEncoder(tower, sequences, TEMPLATES, tmp_path).encode(words)
    assert VocabularyEncoder(tower, sequences, TEMPLATES, tmp_path).encode(words).equal(first)
    assert len(calls) == 1
    VocabularyEncoder(tower, sequences, TEMPLATES[:2], tmp_path).encode(words)
    VocabularyEncoder(tower, sequences, TEMPLATES, tmp_path).encode(["cat", "dogs"])
    assert len(calls) == 3
    tower.ln_final.bias[0] += 1
    changed = VocabularyEncoder(tower, sequences, TEMPLATES, tmp_path).encode(words)
    assert len(calls) == 4
    assert not changed.equal(first)


def test_a_damaged_file_is_made_again(tower, tmp_path, caplog):
    first = VocabularyEncoder(tower, sequences, TEMPLATES, tmp_path).encode(["cat"])
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"damaged")
    assert VocabularyEncoder(tower, sequences, TEMPLATES, tmp_path).encode(["cat"]).equal(first)
    assert "is damaged and made again" in caplog.text
    assert VocabularyEncoder(tower, sequences, TEMPLATES, tmp_path).encode(["cat"]).equal(first)


@pytest.mark.parametrize("templates", [(), ("a {}", "nothing")])
def test_templates_need_a_place(tower, templates):
    with pytest.raises(OptionError, match="must each hold"):
        VocabularyEncoder(tower, sequences, templates)
