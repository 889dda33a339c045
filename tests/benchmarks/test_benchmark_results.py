# SPDX-License-Identifier: Apache-2.0
"""Committed results keep the schema, the docs follow from them, and faults are noticed."""

from __future__ import annotations

import copy
import importlib.util
import re

import pytest

from benchmarks import chart, result, roofline
from benchmarks.families import families
from benchmarks.provenance import ROOT
from benchmarks.scaling import scaling

SECONDS = {"samples": 30, "median": 2.0, "q1": 1.5, "q3": 2.5, "min": 1.0}


def _candidate(name, role, median=2.0):
    scale = median / 2.0
    seconds = {k: v if k == "samples" else v * scale for k, v in SECONDS.items()}
    empty = ("seconds_warm", "error", "tolerance", "wrong_elements", "near_ties", "peak_bytes")
    empty += ("result_bytes", "launches", "compile_seconds", "gbs", "gflops", "percent_of_ceiling")
    record = {"name": name, "role": role, "status": "ok", "reason": "", "note": ""}
    record["comparable"] = True
    return {**record, **dict.fromkeys(empty), "seconds": seconds, "calls_per_sample": 1}


@pytest.fixture
def record():
    candidates = [_candidate("patchword native", "ours"), _candidate("peer", "peer", 3.0)]
    target = {"against": [], "ratio": 2.0, "best_peer": "peer", "reached": 1.5, "met": False}
    texts = dict.fromkeys(("op", "title", "shape", "dtype", "layout", "formula", "note"), "x")
    row = {**texts, "id": "x.y", "kind": "speed", "device": "cpu", "threads": 1, "clock": "cpu"}
    row |= {"flops": 1.0, "moved_bytes": 1.0, "void": False, "candidates": candidates}
    row |= {"ratios": {"peer": 1.5}, "targets": [target], "memory_limit": None}
    facts = {"commit": "c" * 40, "dirty": False, "date": "2026-01-01T00:00:00+00:00"}
    facts |= {"cpu": "x", "cpu_flags": [], "logical_cpus": 2, "load_average": [0.0] * 3}
    facts |= {"load_average_after": [0.0] * 3, "versions": {"torch": "2"}, "patchword": {}}
    facts |= {"torch_cpu_capability": "AVX2"}
    probe = {"threads": 1, "copy_gbs": 1.0, "gflops": {"torch": 1.0}, "source": "torch"}
    full = {"schema": 1, "suite": "ops", "device": "cpu", "quick": False, "complete": True}
    full |= {"provenance": facts, "probes": [probe], "rows": [row]}
    return {**full, "losses": result.losses([row])}


@pytest.fixture(scope="module")
def render():
    path = ROOT / "scripts" / "render_benchmarks.py"
    spec = importlib.util.spec_from_file_location("render_benchmarks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_results_are_valid_complete_and_from_clean_trees():
    for path in result.committed():
        assert result.commit_faults(result.load(path)) == []


def test_the_page_follows_from_the_committed_results(render):
    assert render.main(["--check"]) == 0


def test_pages_about_cuda_say_whether_a_gpu_has_run_it():
    measured = any(result.load(path)["device"] == "cuda" for path in result.committed())
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "docs" / "benchmarks.md"]
    pages += [*ROOT.glob("docs/ops/*.md"), *ROOT.glob("kernels/*/README.md")]
    told = re.compile(r"not (yet )?(be |been )?run on a GPU|not run on a GPU yet")
    for page in pages:
        text = " ".join(page.read_text(encoding="utf-8").split())
        if "CUDA" in text:
            assert bool(told.search(text)) != measured, f"{page.relative_to(ROOT)}"


def test_a_good_record_has_no_fault(record):
    assert result.validate(record) == []
    assert result.commit_faults(record) == []


def test_faults_are_noticed(record):
    def broken(change):
        copied = copy.deepcopy(record)
        change(copied, copied["rows"][0], copied["rows"][0]["candidates"][0])
        return result.validate(copied)

    assert "provenance is missing" in broken(lambda full, *_: full.pop("provenance"))
    assert broken(lambda full, *_: full.update(schema=99))
    assert broken(lambda full, *_: full["provenance"].pop("commit"))
    assert broken(lambda full, *_: full["rows"].append(full["rows"][0]))
    assert broken(lambda full, *_: full.update(losses=[]))
    assert broken(lambda _, row, ours: row.update(void=True))
    assert broken(lambda _, row, ours: row.update(ratios={"peer": 99.0}))
    assert broken(lambda _, row, ours: ours.update(status="fine"))
    assert broken(lambda _, row, ours: ours.update(status="void", reason="wrong"))
    assert broken(lambda _, row, ours: ours["seconds"].update(q1=9.0))


def test_quick_partial_and_dirty_runs_are_not_committed(record):
    for change in ({"quick": True}, {"complete": False}):
        assert result.commit_faults({**record, **change})
    record["provenance"]["dirty"] = True
    assert result.commit_faults(record)


def test_losses_list_missed_targets_and_faster_peers_once(record):
    row = record["rows"][0]
    assert [loss["why"] for loss in result.losses([row])] == ["1.50x, target 2x"]
    row["ratios"]["other"] = 0.5
    assert len(result.losses([row])) == 2
    row["candidates"].append(_candidate("addition", "peer", 0.1) | {"comparable": False})
    row["ratios"]["addition"] = 0.05
    assert len(result.losses([row])) == 2
    row["memory_limit"] = {"ratio": 2.0, "reached": 2.5, "met": False}
    assert len(result.losses([row])) == 3


def test_page_and_chart_of_a_record(record, render, tmp_path):
    path = tmp_path / "0.0.1" / "ops--x--cpu.json"
    result.save(record, path)
    page = render.render([path])
    assert "### Where we lose" in page
    assert "1.50x, target 2x" in page
    assert "**missed**" in page
    chart.draw(record, tmp_path / "chart.png")
    roofline.draw(record, tmp_path / "roofline.png")
    for name in ("chart.png", "roofline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_partial_runs_go_to_the_scratch_folder():
    facts = {"patchword": {"version": "1.2.3"}, "machine": "box"}
    assert result.default_path(facts, "cpu", True).parent.name == "1.2.3"
    assert result.default_path(facts, "cpu", False).parent.name == "scratch"
    assert result.default_path(facts, "cpu", True).name == "ops--box--cpu.json"


def _at_two_threads(record, ours, peer):
    row = copy.deepcopy(record["rows"][0]) | {"threads": 2, "clock": "wall"}
    row["candidates"] = [
        _candidate("patchword native", "ours", ours),
        _candidate("peer", "peer", peer),
    ]
    return row


def test_scaling_compares_the_thread_counts_of_each_long_row(record, render):
    rows = [record["rows"][0], _at_two_threads(record, 1.0, 2.0)]
    (found,) = scaling(rows)
    assert (found["gain"], found["met"]) == (2.0, True)
    assert found["wanted"] == pytest.approx(1.7)
    assert (found["peer"], found["peer_gain"]) == ("peer", 1.5)
    (slow,) = scaling([rows[0], _at_two_threads(record, 1.3, 2.0)])
    assert not slow["met"]
    text = "\n".join(render.section({**record, "rows": rows}, "1", "x.png"))
    assert "| 2.00x of 2 | 1.7x | 1.50x peer |" in text


def test_scaling_leaves_out_short_rows_and_rows_without_both_thread_counts(record):
    short = copy.deepcopy(record["rows"][0])
    short["candidates"] = [_candidate("patchword native", "ours", 0.5e-3)]
    assert scaling([short, _at_two_threads(record, 1.0, 2.0)]) == []
    assert scaling(record["rows"]) == []


def test_families_take_the_fastest_comparable_peer_of_each_row(record):
    slow, fast = record["rows"][0], copy.deepcopy(record["rows"][0])
    fast |= {"id": "x.z", "ratios": {"peer": 6.0, "other": 24.0, "addition": 0.1}}
    fast["candidates"].append({**_candidate("addition", "peer", 0.1), "comparable": False})
    (line,) = families([slow, fast])
    assert line["mean"] == pytest.approx(3.0)
    assert (line["worst"], line["worst_row"]) == (1.5, "x.y")
    assert (line["rows"], line["targets"], line["met"]) == (2, 2, 0)
    assert families([slow | {"ratios": {}}]) == []
