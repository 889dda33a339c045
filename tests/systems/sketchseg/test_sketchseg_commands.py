# SPDX-License-Identifier: Apache-2.0
"""Composed scenes are written and measured from the command line."""

import json

import pytest
import torch
import torch.nn.functional as F
from sketch_drawings import toy_library, write_ndjson

from patchword.cli.main import main
from patchword.systems.sketchseg.data import read_captioned, read_labelled
from patchword.systems.sketchseg.small import SmallSketchNet
from patchword.systems.sketchseg.small_encoder import SmallEncoder, save_small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("scenes")
    drawings = write_ndjson(top / "toy.ndjson")
    words = ["data", "sketchseg", str(drawings), "--train", "3", "--test", "2", "-q"]
    words += ["--min-objects", "2", "--max-objects", "3", "-o", str(top / "made")]
    assert main(words) == 0
    assert main(words) == 1  # the folder is in use
    return top / "made"


def test_both_parts_are_written(folder):
    assert len(read_captioned(folder / "train")) == 3
    assert len(list(read_labelled(folder / "test"))) == 2


def test_the_same_seed_gives_the_same_scenes(folder, tmp_path):
    words = ["data", "sketchseg", str(folder.parent / "toy.ndjson"), "--train", "0", "--test", "2"]
    words += ["--min-objects", "2", "--max-objects", "3", "-q", "-o", str(tmp_path / "again")]
    assert main(words) == 0
    name = "000000000002.npy"
    first = (folder / "test" / "vector_sketches" / name).read_bytes()
    assert first == (tmp_path / "again" / "test" / "vector_sketches" / name).read_bytes()
    assert not (tmp_path / "again" / "train").exists()


def test_measured_with_a_checkpoint(folder, tmp_path, capsys):
    torch.manual_seed(0)
    words = toy_library().words()
    vectors = F.normalize(torch.randn(len(words), 192), dim=1)
    encoder = SmallEncoder(SmallSketchNet(), dict(zip(words, vectors, strict=True)), ["{}"])
    path = save_small(encoder, tmp_path / "small.safetensors", {})
    command = ["evaluate", "sketchseg", "--data", str(folder / "test"), "--checkpoint", str(path)]
    results = {}
    for vocabulary in ("given", "full"):
        assert main([*command, "--vocabulary", vocabulary, "--json", "-q"]) == 0
        results[vocabulary] = json.loads(capsys.readouterr().out)["result"]["metrics"]
    assert results["given"]["sketches"] == 2
    # The true labels stay the winners among fewer rivals.
    assert results["full"]["pixel_accuracy"] <= results["given"]["pixel_accuracy"] <= 1
    assert main([*command, "--expect", "pixel_accuracy>=1.01", "-q"]) == 3


def test_refusals(folder, tmp_path, capsys):
    toy = str(folder.parent / "toy.ndjson")
    assert main(["data", "sketchseg", toy, "--train", "-1", "-o", str(tmp_path / "a")]) == 2
    assert "--train and --test must be at least 0" in capsys.readouterr().err
    assert main(["data", "sketchseg", toy, "--held-out", "1", "-o", str(tmp_path / "b")]) == 2
    assert main(["evaluate", "sketchseg", "--data", str(tmp_path)]) == 1
