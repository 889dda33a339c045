# SPDX-License-Identifier: Apache-2.0
"""The tool that measures routes of attention: verdicts, table, and going on after a stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import routes as tool
from patchword import _library
from patchword.ops.attention import routes

native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")


@pytest.mark.parametrize(
    ("taken", "winner", "gain"),
    [
        ({"native": [1.0, 1.1, 1.2]}, "native", 1.0),
        ({"native": [1.0, 1.1, 1.2], "sdpa": [0.99, 1.0, 1.1]}, "native", 1.0),
        ({"native": [1.0, 1.1, 1.2], "sdpa": [0.5, 0.55, 2.0]}, "sdpa", 2.0),
        # The median alone is ahead: somebody else's work fell on our samples.
        ({"native": [1.0, 2.0, 2.0], "sdpa": [1.0, 1.0, 1.0]}, "native", 1.0),
        ({"native": [4.0], "sdpa": [2.0], "sdpa_math": [1.0]}, "sdpa_math", 4.0),
        ({"sdpa": [2.0], "sdpa_math": [1.0]}, "sdpa_math", float("inf")),
    ],
)
def test_a_kernel_is_ahead_only_beyond_the_noise(taken, winner, gain):
    assert tool.verdict(taken) == (winner, gain)


def test_more_problems_than_were_measured_take_the_route_of_fewer():
    small = tool.Shape("float32", "plain", "training", 8, 10, 10, 64)
    large = tool.Shape("float32", "plain", "training", 8, 1024, 1024, 64)
    lines = tool.rules({small: ("sdpa", 1.5), large: ("sdpa", 1.234)}, "cpu", tool.GRIDS["cpu"])
    assert [line["problems"] for line in lines] == [8, [8, 120]]
    assert lines[1]["gain"] == 1.23
    measured = set(tool.shapes("cpu", tool.GRIDS["cpu"], "plain"))
    assert tool.Shape("float32", "plain", "training", 120, 10, 10, 64) in measured
    assert tool.Shape("float32", "plain", "training", 120, 1024, 1024, 64) not in measured


@native
def test_a_run_replaces_its_own_entry_and_goes_on_after_a_stop(tmp_path: Path, monkeypatch, capsys):
    table, state = tmp_path / "routes.json", tmp_path / "state.jsonl"
    shutil.copy(routes.TABLE, table)
    before = routes.read_table(table)
    arguments = ["--quick", "--threads", "1", "--table", str(table), "--state", str(state)]
    assert tool.main(arguments) == 0
    entries = routes.read_table(table)
    level = {"cpu_level": _library.C.cpu_level()}
    assert entries[0].match == level
    assert entries[0].grid == ((8,), (10,), (10, 64), (32,))
    assert list(entries[1:]) == [e for e in before if e.match != level]
    capsys.readouterr()

    monkeypatch.setattr(tool, "measure", None)  # everything is known already
    assert tool.main(arguments) == 0
    assert routes.read_table(table)[0].cells == entries[0].cells

    lines = state.read_text(encoding="utf-8").splitlines()
    head = {**json.loads(lines[0]), "processor": "another"}
    state.write_text("\n".join([json.dumps(head), *lines[1:]]) + "\n", encoding="utf-8")
    assert tool.main(arguments) == 2
    assert "must be of this machine" in capsys.readouterr().err
