# SPDX-License-Identifier: Apache-2.0
"""Files of segmented sketches say exactly what was found, for one sketch and for folders."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sketch_models import FakeEncoder, published, sketch, twelve_blocks

from patchword.cli.main import main
from patchword.data.io import read_image
from patchword.data.sketches import read_sketch
from patchword.systems.sketchseg import inference
from patchword.systems.sketchseg.convert import load_model
from patchword.systems.sketchseg.encoder import SegmentOptions
from patchword.systems.sketchseg.inference import SketchSegmenter
from patchword.systems.sketchseg.output import save_sketch, segment_folder, sketch_summary


def segmented(texts, threshold=None):
    options = SegmentOptions(threshold=threshold)
    return SketchSegmenter(FakeEncoder(), options).segment(sketch(), texts)


def test_labels_are_exact_and_coloured_as_in_the_legend(tmp_path):
    result = segmented(["left", "right"], 0.8)
    files = save_sketch(result, tmp_path, isolate=(0.5, 0.9))
    stored = Image.open(files["labels"])
    values = np.asarray(stored)
    assert (values == np.where(result.ink & (result.labels < 0), 255, result.labels + 1)).all()
    assert set(np.unique(values)) == {0, 1, 2, 255}
    record = json.loads(files["result"].read_text())
    palette = np.asarray(stored.getpalette()).reshape(-1, 3)
    coloured = np.asarray(Image.open(files["coloured"]))
    assert coloured.shape == sketch().shape
    assert (coloured[~result.ink] == 255).all()
    assert (coloured[values == 255] == 0).all()
    for k, one in enumerate(record["categories"]):
        assert palette[k + 1].tolist() == one["color"]
        assert (coloured[values == k + 1] == one["color"]).all()
        assert one["pixels"] == (values == k + 1).sum()
    assert record["unassigned"] + sum(c["pixels"] for c in record["categories"]) == record["ink"]
    assert np.load(files["maps"]).shape == (2, 7, 7)
    height, width = read_image(files["isolated_1"]).shape[:2]
    assert width > height
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*record["files"].values(), "result.json"]
    )


def test_many_categories_are_all_visible_and_stored_in_16_bits(tmp_path):
    result = segmented([f"word {i}" for i in range(300)])
    summary = sketch_summary(result)
    colors = {tuple(one["color"]) for one in summary["categories"]}
    assert len(colors) == 300
    assert not colors & {(0, 0, 0), (255, 255, 255)}
    stored = np.asarray(Image.open(save_sketch(result, tmp_path)["labels"]))
    assert stored.dtype == np.uint16
    assert (stored == result.labels + 1).all()


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "in"
    (top / "sub").mkdir(parents=True)
    Image.fromarray(sketch()).save(top / "a.png")
    Image.fromarray(sketch(80, 70)).save(top / "sub" / "b.png")
    Image.new("L", (20, 20), 255).save(top / "blank.png")
    (top / "c.svg").write_text('<svg viewBox="0 0 9 9"><path d="M1 1L8 8"/></svg>')
    (top / "d.ndjson").write_text('{"drawing": [[[0, 9], [0, 9]]]}')
    (top / "e.ndjson").write_text("{")
    return top


def test_a_folder_of_pictures_and_drawings_continues_after_failures(folder, tmp_path):
    encoder = FakeEncoder()
    options = {"read": read_sketch, "settings": {"a": 1}}
    output = tmp_path / "out"
    run = segment_folder(SketchSegmenter(encoder), folder, ["x", "y"], output, **options)
    assert (run.summary.done, run.summary.failed) == (4, 2)
    assert dict(run.summary.failures).keys() == {"blank.png", "e.ndjson"}
    assert "blank picture" in dict(run.summary.failures)["blank.png"]
    assert (output / "items" / "sub" / "b.png" / "labels.png").is_file()
    assert "c.svg" in run.index.read_text()
    again = segment_folder(SketchSegmenter(encoder), folder, ["x", "y"], output, **options)
    assert (again.summary.done, again.summary.reused) == (0, 4)
    assert encoder.encoded == 4


@pytest.fixture
def fake_load(monkeypatch):
    asked = []

    def load(checkpoint=None, **options):
        asked.append((checkpoint, options))
        return SketchSegmenter(FakeEncoder())

    monkeypatch.setattr(inference, "load", load)
    return asked


def run(capsys, *words):
    code = main(["locate", "--model", "sketch", "--device", "cpu", *map(str, words)])
    return code, capsys.readouterr()


def test_the_command_on_one_sketch(folder, tmp_path, capsys, fake_load):
    code, said = run(
        capsys, folder / "a.png", "--text", "left", "--text", "right", "-o", tmp_path / "o",
        "--threshold", "0.7", "--isolate", "0.5", "--isolate", "0.8", "--compat", "--json",
        "--norm", "channel", "--text-cache", tmp_path / "cache",
    )  # fmt: skip
    assert code == 0, said.err
    result = json.loads(said.out)["result"]
    assert [one["text"] for one in result["categories"]] == ["left", "right"]
    assert result["options"]["ink"] == "red_zero"
    assert result["options"]["mode"] == "bilinear"
    assert result["unassigned"] > 0
    assert (tmp_path / "o" / "isolated_01_right.png").is_file()
    ((checkpoint, options),) = fake_load
    assert checkpoint is None
    assert options["norm"] == "channel"
    assert options["text_cache"] == tmp_path / "cache"


def test_the_command_on_a_folder(folder, tmp_path, capsys, fake_load):
    code, said = run(capsys, folder, "--text", "x", "-o", tmp_path / "o", "--jsonl")
    assert code == 1
    *records, last = (json.loads(line) for line in said.out.splitlines())
    assert {record["key"]: record["status"] for record in records} == {
        "a.png": "ok",
        "blank.png": "failed",
        "c.svg": "ok",
        "d.ndjson": "ok",
        "e.ndjson": "failed",
        "sub/b.png": "ok",
    }
    assert last["summary"]["done"] == 4
    assert "blank picture" in said.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--text", "a", "--text", "A"), 2, "categories must differ"),
        (("--text", "a", "--checkpoint", "none.pth"), 1, "checkpoint must be a file"),
        (("--text", "a", "--thickness", "0"), 2, "--thickness must be at least 1"),
        (("--text", "a", "--record", "-1"), 2, "--record at least 0"),
    ],
)
def test_bad_flags_end_in_one_sentence(folder, tmp_path, capsys, words, code, message):
    got, said = run(capsys, folder / "a.png", "-o", tmp_path / "o", *words)
    assert got == code
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_flags_of_sketches_need_the_model(folder, capsys):
    assert main(["locate", str(folder / "a.png"), "--text", "a", "--isolate", "0.5"]) == 2
    assert "--isolate needs --model sketch" in capsys.readouterr().err


def test_converting_the_published_checkpoint(tmp_path, capsys):
    state = {f"module.{name}": tensor for name, tensor in published(twelve_blocks()).items()}
    torch.save(state, tmp_path / "published.pth")
    target = tmp_path / "out.safetensors"
    code = main(["convert", "sketchseg", str(tmp_path / "published.pth"), str(target), "--json"])
    result = json.loads(capsys.readouterr().out)["result"]
    assert code == 0
    assert result["tensors"] + len(result["ignored"]) == 407
    # An adapter of the text tower, two clones of the layer, an alias, the scale of the logits.
    assert len(result["ignored"]) == 50 + 2 * 16 + 4 + 1
    assert load_model(target).prompts.shape == (1, 3, 64)
