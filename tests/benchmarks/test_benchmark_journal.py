# SPDX-License-Identifier: Apache-2.0
"""A stopped run leaves its rows, names what is missing, and goes on where it ended."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial

import cuda_stand_in
import pytest
import torch

from benchmarks import compare, measure, result, run
from benchmarks.ops.sample_features import ROWS as SAMPLING
from benchmarks.provenance import ROOT

PROBE = {"threads": 1, "copy_gbs": 10.0, "gflops": {"torch": 50.0}, "ceiling_gflops": 50.0}
PROBE["source"] = "torch"


class Killed(BaseException):
    """What ends a process in the middle of a row."""


def _plain(inputs, backend):
    return partial(torch.add, inputs["features"], 1)


def _row(name, ours=_plain):
    row = replace(SAMPLING[0], id=name, ours=ours, gate=_no_gate, targets=())
    return replace(row, inputs=lambda small: {"features": torch.zeros(2)}, peers=())


def _no_gate(inputs):
    return lambda output, part: None


def _breaks(error, inputs, backend):
    raise error


@pytest.fixture
def suite(monkeypatch, tmp_path):
    """Run ``main`` over rows of the test's own on a stand-in device."""
    seen = cuda_stand_in.install(monkeypatch)
    seen.folder = tmp_path
    monkeypatch.setattr(measure, "count_launches", lambda run: 1)
    monkeypatch.setattr(run, "require_cuda", lambda: None)
    monkeypatch.setattr(run, "is_alive", lambda: seen.alive)
    monkeypatch.setattr(run.probes, "probe_cuda", lambda: dict(PROBE))
    monkeypatch.setattr(run, "Session", partial(measure.Session, place="cpu"))
    facts = {"commit": "c", "dirty": False, "machine": "gpu", "patchword": {"version": "0"}}
    facts |= dict.fromkeys(("date", "cpu", "cpu_flags", "versions", "load_average"), "x")
    monkeypatch.setattr(run.provenance, "collect", lambda device: dict(facts))
    before = torch.get_num_threads()

    def main(rows, *options):
        monkeypatch.setattr(run, "suite_rows", lambda name: rows)
        fixed = ["--suite", "gpu", "--device", "cuda", "--quick", "--folder", str(tmp_path)]
        return run.main([*fixed, *options])

    seen.main = main
    yield seen
    torch.set_num_threads(before)


def _load(suite):
    (path,) = suite.folder.glob("*.json")
    return result.load(path)


def test_a_killed_run_leaves_its_rows_and_goes_on_after_the_one_that_killed_it(suite):
    rows = [_row("a"), _row("b", partial(_breaks, Killed())), _row("c")]
    with pytest.raises(Killed):
        suite.main(rows)
    left = _load(suite)
    assert [row["id"] for row in left["rows"]] == ["a"]
    assert left["unmeasured"] == ["b, 1 thread(s)", "c, 1 thread(s)"]
    assert left["running"] == ["b", 1]
    assert not left["complete"]
    assert any("was stopped" in fault for fault in result.commit_faults(left))
    assert any("2 rows are missing" in line for line in compare.warnings(left, left))

    assert suite.main(rows, "--resume") == 1  # a row of ours is void
    whole = _load(suite)
    assert [row["id"] for row in whole["rows"]] == ["a", "b", "c"]
    assert whole["rows"][0] == left["rows"][0]
    assert whole["rows"][1]["void"]
    assert "earlier try" in whole["rows"][1]["candidates"][0]["reason"]
    assert whole["rows"][2]["candidates"][0]["seconds"]
    assert whole["unmeasured"] == []
    assert whole["running"] is None


def test_a_row_that_fails_does_not_stop_the_others(suite):
    broken = replace(_row("a"), inputs=partial(_breaks, RuntimeError("no room"), backend=""))
    assert suite.main([broken, _row("b")]) == 1
    first, second = _load(suite)["rows"]
    assert first["candidates"][0]["reason"] == "raised RuntimeError: no room"
    assert second["candidates"][0]["seconds"]


def test_a_lost_device_ends_the_process_and_the_next_one_goes_on(suite, capsys):
    def ruins(inputs, backend):
        suite.alive = False
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    rows = [_row("a", ruins), _row("b")]
    assert suite.main(rows) == 3
    assert "a left the device unusable" in capsys.readouterr().err
    suite.alive = True
    assert suite.main(rows, "--resume") == 1
    states = [row["candidates"][0]["status"] for row in _load(suite)["rows"]]
    assert states == ["void", "ok"]


def test_no_row_begins_after_the_time_is_up(suite):
    assert suite.main([_row("a"), _row("b")], "--seconds", "0") == 3
    left = _load(suite)
    assert (left["rows"], len(left["unmeasured"])) == ([], 2)
    assert suite.main([_row("a"), _row("b")], "--resume") == 0


def test_resuming_needs_the_same_commit(suite, monkeypatch, capsys):
    assert suite.main([_row("a")], "--seconds", "0") == 3
    facts = run.provenance.collect("cuda")
    monkeypatch.setattr(run.provenance, "collect", lambda device: facts | {"commit": "d"})
    assert suite.main([_row("a")], "--resume") == 2
    assert "needs the file's commit c, got d" in capsys.readouterr().err


def test_an_unfinished_run_leaves_committed_results_alone(suite, monkeypatch, tmp_path):
    monkeypatch.setattr(result, "RESULTS", tmp_path / "results")
    options = run.parse(["--suite", "gpu", "--device", "cuda"])
    options.threads = [1]
    facts = run.provenance.collect("cuda")
    journal = run.Journal(options, "gpu", facts, [("a", 1)])
    journal.write()
    assert [p.parent.name for p in tmp_path.glob("results/*/*")] == ["scratch"]
    journal.rows.append({"id": "a", "threads": 1, "void": False, "targets": [], "kind": "speed"})
    journal.rows[0] |= {"memory_limit": None, "candidates": [], "ratios": {}}
    journal.rows[0] |= dict.fromkeys(("title", "shape", "dtype", "device"), "x")
    journal.write()
    assert [p.parent.name for p in tmp_path.glob("results/*/*")] == ["0"]


@pytest.fixture(scope="module")
def gpu_summary():
    path = ROOT / "scripts" / "gpu_summary.py"
    spec = importlib.util.spec_from_file_location("gpu_summary", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_summary"] = module
    spec.loader.exec_module(module)
    return module


JUNIT = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">
<testcase classname="tests.ops.test_x" name="test_cuda[a]"><failure
 message="AssertionError: 3 wrong&#10;more"/></testcase>
<testcase classname="tests.ops.test_x" name="test_b"/></testsuite></testsuites>"""


def test_the_summary_names_what_failed_and_fits(gpu_summary, suite, tmp_path):
    work = tmp_path / "work"
    for name in ("tests", "sanitizer", "results"):
        (work / name).mkdir(parents=True)
    (work / "build.log").write_text("[1/2] fine\nx.cu(3): error: no\nptxas info: spill stores\n")
    (work / "tests" / "test_x.log").write_text("...")
    (work / "tests" / "test_x.xml").write_text(JUNIT)
    (work / "tests" / "test_hang.log").write_text("tests/ops/test_hang.py::test_y \nTimeout!\n")
    said = "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 1 error\n"
    (work / "sanitizer" / "memcheck-test_x.log").write_text(said)
    (work / "sanitizer" / "memcheck-test_x.xml").write_text(JUNIT.replace("failures", "x"))
    kernel = {"kernel": "big<float>", "arch": "sm_90a", "registers": 255, "stack_bytes": 64}
    kernel |= {"local_bytes": 0, "tensor_cores": True}
    (work / "resources.json").write_text(json.dumps([kernel]))
    suite.main([_row("a"), _row("gpu.b", partial(_breaks, RuntimeError("bad launch")))])
    (path,) = tmp_path.glob("*.json")
    path.rename(work / "results" / "gpu--x--cuda.json")

    text = gpu_summary.summary(work, ["== build: ok, 1 s"])
    for line in (
        "== build: ok, 1 s",
        "x.cu(3): error: no",
        "1 kernels, at most 255 registers, 1 with tensor cores, 1 with stack",
        "tests: 3 tests, 1 failures, 0 errors, 1 skipped",
        "test_x test_x::test_cuda[a]: AssertionError: 3 wrong",
        "test_hang: no report; at the end of its log:",
        "Invalid __global__ write of size 4 bytes",
        "benchmarks, suite gpu: 2 rows, 0 missing",
        "b: VOID: raised RuntimeError: bad launch",
    ):
        assert line in text, text
    assert len(gpu_summary.summary(work, ["long " * 50] * 1000)) < 12_000
