# SPDX-License-Identifier: Apache-2.0
"""The old side of a comparison, measured at a commit: a small repository stands for the project."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import base, compare
from benchmarks.result import SCHEMA_VERSION, ratios

# Writes what it was asked for. The times say which commit ran.
RUN = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("--device", "--json"): parser.add_argument(name)
parser.add_argument("--threads", nargs="+", type=int)
parser.add_argument("--row", action="append")
for name in ("--list", "--quick"): parser.add_argument(name, action="store_true")
options = parser.parse_args()
if options.list:
    print("op.kept  A row, 3 x 4, float32\\nop.gone  Another")
else:
    built = float(pathlib.Path("built").read_text())
    record = json.loads(RECORD)
    row = record["rows"][0]
    row["candidates"][0]["seconds"].update(dict.fromkeys(("min", "q1", "median", "q3"), built))
    record["rows"] = [
        {**row, "id": name, "threads": n} for name in options.row for n in options.threads
    ]
    record["quick"] = options.quick
    pathlib.Path(options.json).write_text(json.dumps(record))
"""


def _git(folder: Path, *arguments: str) -> None:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


def _record(seconds: float, *rows: str) -> dict[str, Any]:
    times = dict.fromkeys(("min", "q1", "median", "q3"), seconds)
    ours = {
        "name": "patchword native",
        "role": "ours",
        "status": "ok",
        "comparable": True,
        "reason": "",
        "seconds": {**times, "samples": 5},
    }
    words = dict.fromkeys(("title", "shape", "dtype"), "any")
    row = {**words, "kind": "speed", "device": "cpu", "candidates": [ours], "void": False}
    row |= {"targets": [], "memory_limit": None}
    row["ratios"] = ratios("speed", [ours])
    facts = ("commit", "dirty", "date", "cpu", "cpu_flags", "versions", "load_average")
    return {
        "schema": SCHEMA_VERSION,
        "suite": "selection",
        "device": "cpu",
        "quick": True,
        "complete": True,
        "unmeasured": [],
        "losses": [],
        "thread_counts": [1, 2],
        "provenance": dict.fromkeys(facts, "the same"),
        "probes": [],
        "rows": [{"id": name, "threads": n, **row} for name in rows for n in (1, 2)],
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two commits: the first builds something that takes 4 s, the second does not build."""
    folder = tmp_path / "project"
    (folder / "benchmarks").mkdir(parents=True)
    (folder / "scripts").mkdir()
    run = f"RECORD = '''{json.dumps(_record(9.0, 'any'))}'''\n{RUN}"
    (folder / "benchmarks" / "run.py").write_text(run, encoding="utf-8")
    build = folder / "scripts" / "dev_build.sh"
    build.write_text("#!/bin/sh\necho 4.0 > built\n", encoding="utf-8")
    build.chmod(0o755)
    _git(folder, "init", "-q", "-b", "main")
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "first")
    _git(folder, "tag", "first")
    build.write_text("#!/bin/sh\necho no compiler >&2\nexit 1\n", encoding="utf-8")
    _git(folder, "commit", "-q", "-a", "-m", "second")
    build.write_text("#!/bin/sh\necho 1.0 > built\n", encoding="utf-8")  # not committed
    return folder


def test_rows_are_measured_at_the_commit_and_nothing_is_left(project: Path) -> None:
    old = base.measure_at("first", _record(1.0, "op.kept", "op.new"), project)
    measured = [(row["id"], row["threads"]) for row in old["rows"]]
    assert measured == [("op.kept", 1), ("op.kept", 2)]
    assert {row["candidates"][0]["seconds"]["median"] for row in old["rows"]} == {4.0}
    assert old["quick"]
    listed = ["git", "worktree", "list"]
    left = subprocess.run(listed, cwd=project, check=True, capture_output=True, text=True)
    assert len(left.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("commit", "rows", "sentence"),
    [
        ("nowhere", ["op.kept"], "there is no commit nowhere"),
        ("main", ["op.kept"], r"main does not build \(no compiler\)"),
        ("first", ["op.new"], "first has none of the rows"),
    ],
)
def test_what_cannot_be_measured_is_said(
    project: Path, commit: str, rows: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        base.measure_at(commit, _record(1.0, *rows), project)


def test_the_command_prints_the_change(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    new = tmp_path / "new.json"
    new.write_text(json.dumps(_record(1.0, "op.kept")), encoding="utf-8")
    at = lambda commit, record: base.measure_at(commit, record, project)  # noqa: E731
    monkeypatch.setattr(compare, "measure_at", at)
    assert compare.main([str(new), "--base", "first"]) == 0
    assert "2 faster" in capsys.readouterr().out
    assert compare.main([str(new), "--base", "nowhere"]) == 2
    assert "there is no commit nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main([str(new)])
