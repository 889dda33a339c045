# SPDX-License-Identifier: Apache-2.0
"""The command line: what goes where, exit codes, and one JSON object when asked."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from PIL import Image

import patchword
from patchword.cli.main import COMMANDS, main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    for name, module in fakes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(["a.png", "b.png", "c.png"]):
        Image.new("RGB", (30, 20), (80 * index, 10, 10)).save(folder / name)
    return folder


def test_match_pair(run: Run, pictures: Path) -> None:
    code, out, err = run("match", pictures / "a.png", pictures / "b.png", "-o", "out")
    assert code == 0
    assert "matching score" in out
    assert err == ""
    names = {"mask0.png", "mask1.png", "overlay.png", "result.json", "run.json", ".lock"}
    assert {p.name for p in Path("out").iterdir()} == names


def test_match_pair_json(run: Run, pictures: Path) -> None:
    code, out, _ = run("match", pictures / "a.png", pictures / "b.png", "--json")
    answer = json.loads(out)
    assert code == 0
    assert list(answer) == ["schema_version", "command", "result", "warnings"]
    assert (answer["schema_version"], answer["command"]) == (1, "match")
    result = answer["result"]
    assert {"score", "matches", "match_scores", "shared0", "size0", "files"} <= set(result)
    assert Path(result["files"]["overlay"]).exists()


def test_flags_reach_the_matcher(run: Run, pictures: Path) -> None:
    run("match", pictures / "a.png", pictures / "b.png", "--device", "cpu", "--backbone", "xfeat")
    assert fakes.FakeMatcher.made[-1] == {"backbone": "xfeat", "device": "cpu"}


def test_backend_and_seed_hold_during_the_run(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from patchword.ops import _backends

    found: list[Any] = []
    monkeypatch.setattr(
        fakes.FakeMatcher,
        "on_score",
        staticmethod(lambda: found.append((_backends._forced, torch.initial_seed()))),
    )
    pair = (pictures / "a.png", pictures / "b.png")
    run("match", *pair, "--backend", "reference", "--seed", "7")
    assert found == [("reference", 7)]


def test_default_output_is_stable_and_apart(run: Run, pictures: Path) -> None:
    folders = []
    for other in ("b.png", "c.png", "b.png"):
        _, out, _ = run("match", pictures / "a.png", pictures / other, "--json")
        folders.append(json.loads(out)["result"]["output"])
    assert folders[0] == folders[2] != folders[1]
    assert folders[0].startswith("patchword_out/match-a-b-")


def test_gallery(run: Run, pictures: Path) -> None:
    arguments = ("match", pictures / "a.png", "--gallery", pictures, "--box", "2,3,10,12")
    code, out, _ = run(*arguments, "--top", 1, "-o", "out", "--json")
    result = json.loads(out)["result"]
    assert code == 0
    assert [hit["key"] for hit in result["hits"]] == ["b.png"]
    assert (result["done"], result["reused"], result["failed"]) == (2, 0, 0)
    code, out, _ = run(*arguments, "--top", 2, "-o", "out")
    assert code == 0
    assert out.splitlines()[1].split() == ["1", "0.895", "0.895", "b.png"]
    assert "0 pictures done, 2 reused" in out


def test_locate_folder_jsonl_streams_and_sums_up(run: Run, pictures: Path) -> None:
    (pictures / "bad.png").write_bytes(b"x")
    arguments = ("locate", pictures, "--text", "dog", "--text", "a cat", "-o", "out", "--jsonl")
    code, out, err = run(*arguments)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [line["key"] for line in lines[:-1]] == ["a.png", "b.png", "bad.png", "c.png"]
    assert {line["status"] for line in lines[:-1]} == {"ok", "failed"}
    assert lines[-1]["summary"]["failed"] == 1
    assert all(line["schema_version"] == 1 for line in lines)
    assert "1 file could not be read" in err
    assert "bad.png" in err
    _, again, _ = run(*arguments)
    assert again.splitlines()[:2] == out.splitlines()[:2]


def test_locate_one(run: Run, pictures: Path) -> None:
    code, out, _ = run("locate", pictures / "a.png", "--text", "a dog", "-o", "out")
    assert code == 0
    assert "a dog" in out
    assert Path("out/heatmap_00_a-dog.png").exists()


def test_evaluate_and_expectations(run: Run, tmp_path: Path) -> None:
    data = ("evaluate", "match", "--data", tmp_path)
    code, out, _ = run(*data, "--expect", "ap>=0.45", "--expect", "nn_easy > 0.8")
    assert code == 0
    assert "met: ap >= 0.45" in out
    code, out, _ = run(*data, "--expect", "ap>=0.55", "--json")
    assert code == 3
    assert json.loads(out)["result"]["expectations"][0]["met"] is False
    code, _, err = run(*data, "--expect", "iou>=0.5")
    assert code == 2
    assert "there is no metric 'iou' here, there are: ap, nn_easy." in err
    code, _, err = run(*data, "--expect", "ap=>0.5")
    assert code == 2
    assert 'must read like "ap>=0.45"' in err
    assert run("evaluate", "locate", "--data", tmp_path, "--expect", "pointing>=0.7")[0] == 0


def test_env_and_ops(run: Run) -> None:
    code, out, _ = run("env", "--json")
    found = json.loads(out)["result"]
    assert code == 0
    assert {"python", "packages", "native", "threads", "cuda_devices", "ops"} <= set(found)
    code, out, _ = run("env")
    assert code == 0
    assert found["packages"]["torch"] in out
    ops = list(json.loads(run("ops", "list", "--json")[1])["result"]["ops"])
    assert ops
    code, out, _ = run("ops", "explain", ops[0])
    assert code == 0
    assert ops[0] in out
    code, _, err = run("ops", "explain", "nothing")
    assert code == 2
    assert f"there is no op 'nothing', there are: {ops[0]}" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example(run: Run, name: str) -> None:
    code, out, _ = run(*name.split(), "--help")
    assert code == 0
    assert out.rstrip().splitlines()[-1].strip() == COMMANDS[name].example


def test_examples_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    for name, command in COMMANDS.items():
        seen: list[str] = []
        monkeypatch.setattr(command, "run", lambda self, called, seen=seen: seen.append(called))
        with pytest.raises(AttributeError):
            main_raw(shlex.split(command.example)[1:])
        assert seen == [name]


def main_raw(words: list[str]) -> Any:
    """Run as main does, without its guard against unexpected errors."""
    from patchword.cli.main import _parse

    name, flags = _parse(words)
    assert flags is not None
    return flags.run(name).code


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "usage: patchword COMMAND"),
        (("paint",), "there is no command 'paint'; known are: match"),
        (("ops", "paint"), "known are: ops list, ops explain"),
        (("ops",), "ops explain"),
        (("match",), "PICTURE"),
        (("match", "a.png"), "give either a second picture or --gallery"),
        (("match", "a.png", "b.png", "--gallery", "c"), "give either a second picture or"),
        (("match", "a.png", "b.png", "--box", "1,2,3"), "--box must be four numbers"),
        (("match", "a.png", "b.png", "--json", "--jsonl"), "exclude each other"),
        (("match", "a.png", "b.png", "--top", "0"), "--top must be at least 1"),
        (("match", "a.png", "b.png", "--num-workers", "-1"), "--num-workers must be"),
        (("match", "a.png", "b.png", "--max-megapixels", "900"), "--max-megapixels must be"),
        (("match", "a.png", "b.png", "--backend", "magic"), "magic"),
        (("locate", "a.png"), "text"),
    ],
)
def test_usage_errors(run: Run, words: tuple[str, ...], text: str) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert text in err
    assert "Traceback" not in err


def test_unknown_device(run: Run, pictures: Path) -> None:
    pair = ("match", pictures / "a.png", pictures / "b.png")
    code, _, err = run(*pair, "--device", "tpu")
    assert (code, "must be auto, cpu, cuda" in err) == (2, True)
    code, _, err = run(*pair, "--device", "cuda:99")
    assert (code, "CUDA devices that torch can use" in err) == (2, True)


def test_dry_run_writes_nothing(run: Run, pictures: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for words in (
        ("match", pictures / "a.png", pictures / "b.png"),
        ("match", pictures / "a.png", "--gallery", pictures),
        ("locate", pictures, "--text", "x"),
        ("locate", pictures / "a.png", "--text", "x"),
        ("evaluate", "match", "--data", pictures),
    ):
        code, out, _ = run(*words, "--dry-run", "--json")
        assert code == 0
        assert json.loads(out)["result"]["dry_run"] is True
    assert sorted(tmp_path.rglob("*")) == before


def test_unexpected_error_is_one_line_unless_verbose(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(fakes.FakeMatcher, "on_score", staticmethod(broken))
    words = ("match", pictures / "a.png", pictures / "b.png")
    code, out, err = run(*words, "--json")
    assert code == 1
    assert err == "patchword: unexpected ZeroDivisionError: by zero (--verbose shows where)\n"
    answer = json.loads(out)
    assert answer["result"] is None
    assert answer["error"]["type"] == "ZeroDivisionError"
    assert "Traceback" in run(*words, "--verbose")[2]


def test_warnings_are_in_the_json_and_on_stderr(run: Run, pictures: Path) -> None:
    frames = [Image.new("RGB", (9, 9), (v, 0, 0)) for v in (0, 200)]
    frames[0].save(pictures / "a.gif", save_all=True, append_images=frames[1:])
    words = ("match", pictures / "a.gif", pictures / "b.png", "--json")
    _, out, err = run(*words)
    assert "several frames" in json.loads(out)["warnings"][0]
    assert "several frames" in " ".join(err.split())
    _, out, err = run(*words, "--quiet")
    assert "several frames" in json.loads(out)["warnings"][0]
    assert err == ""


def test_logging_is_left_as_found(run: Run, pictures: Path) -> None:
    logger = logging.getLogger("patchword")
    before = (list(logger.handlers), logger.level)
    run("match", pictures / "a.png", pictures / "b.png", "-v")
    assert (logger.handlers, logger.level) == before


_PROCESS = """
import sys, time
sys.path[:0] = [{tests!r}, {package!r}]
import fakes
fakes.install()
class Slow(fakes.FakeLocalizer):
    def locate(self, image, texts):
        time.sleep(0.05)
        return super().locate(image, texts)
sys.modules["patchword.localization"].Localizer = Slow
from patchword.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{index:02d}.png")
    tests, package = Path(__file__).parents[1], Path(patchword.__file__).parents[1]
    code = _PROCESS.format(tests=str(tests), package=str(package))
    words = [sys.executable, "-c", code, "locate", "photos", "--text", "x", "-o", "out", "--jsonl"]
    process = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_the_same_command_continues(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "photos").mkdir()
    count = 30
    for index in range(count):
        pixels = np.full((8, 8, 3), index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index:02d}.png")
    tests, package = Path(__file__).parents[1], Path(patchword.__file__).parents[1]
    code = _PROCESS.format(tests=str(tests), package=str(package))
    words = [sys.executable, "-c", code, "locate", "photos", "--text", "x", "-o", "out", "--json"]
    process = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / "out" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    result = json.loads(out)["result"]
    assert process.returncode == 130
    assert result["interrupted"]
    assert 3 <= result["done"] < count
    assert "Traceback" not in err
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    result_again = json.loads(again.stdout)["result"]
    assert result_again["reused"] == result["done"]
    assert result_again["done"] == count - result["done"]
