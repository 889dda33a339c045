# SPDX-License-Identifier: Apache-2.0
"""Rows that exist on CUDA alone, and the harness's CUDA branch, on a stand-in for the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import cuda_stand_in
import pytest
import torch

from benchmarks import cuda_timing, measure, result
from benchmarks.common import Plan
from benchmarks.gpu import attention, matching
from benchmarks.peers import attention as attention_peers
from benchmarks.provenance import ROOT
from benchmarks.registry import suite_rows

PROBE = {"threads": 1, "copy_gbs": 10.0, "ceiling_gflops": 50.0}
ROWS = suite_rows("gpu")


@pytest.fixture
def session(monkeypatch):
    cuda_stand_in.install(monkeypatch)
    monkeypatch.setattr(measure, "count_launches", lambda run: 3)
    monkeypatch.setattr(measure, "make_plan", lambda seconds, quick: Plan(2, 1, False))
    threads = torch.get_num_threads()
    yield measure.Session("cuda", ["reference"], quick=True, place="cpu", threads=threads)
    torch.set_num_threads(threads)


def _small(row):
    """The row with small inputs and without the peers that a compiler takes long for."""
    peers = tuple(peer for peer in row.peers if not peer.compiled)
    known = {peer.name for peer in peers}
    targets = tuple(t for t in row.targets if not t.against or set(t.against) & known)
    return replace(row, inputs=lambda small: row.inputs(True), peers=peers, targets=targets)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_every_row_runs_and_every_peer_passes_or_says_why_not(row, session):
    row = _small(row)
    candidates = measure.measure_row(row, session)
    record = result.row_record(row, candidates, 1, "cuda", PROBE)
    ours, *peers = record["candidates"]
    assert ours["status"] == "ok", ours["reason"]
    assert ours["enqueue_seconds"] > 0
    assert (ours["peak_bytes"], ours["launches"]) == (4000, 3)
    assert ours["seconds_warm"]["samples"] == ours["seconds"]["samples"]
    for peer in peers:
        assert peer["status"] != "void", f"{peer['name']}: {peer['reason']}"
        assert bool(peer["seconds"]) == (peer["status"] in result.USABLE)
        assert peer["seconds"] or peer["reason"]
    assert any(peer["seconds"] for peer in peers)
    assert len(record["targets"]) == len(row.targets)
    json.dumps(record, allow_nan=False)


def test_gates_refuse_what_is_a_little_wrong():
    ragged = attention.ragged_inputs("float32", True)
    gate = attention.RaggedGate(ragged)
    right = attention.ours_ragged(ragged, "reference")()
    assert gate(right, "full").within
    assert gate(attention_peers.padded_sides(ragged)(), "full").within
    assert not gate((right[0] * 1.0001, right[1]), "full").within
    assert not gate((right[0], right[1].flip(0)), "full").within

    sets = matching.match_inputs(96, 16, torch.float32, True)
    gate = matching.DualSoftmaxGate(sets)
    function, arguments = matching.dual_softmax(sets)
    matches, values = function(*arguments)
    assert gate((matches, values), "full").within
    assert not gate((matches, values + 1e-3), "full").within
    assert not gate((matches.roll(1), values), "full").within

    half = matching.match_inputs(96, 16, torch.bfloat16, True)
    gate = matching.match_gate(half)
    scores = half["descriptors0"].double() @ half["descriptors1"].double().T
    forward, backward = scores.argmax(1), scores.argmax(0)
    right = torch.where(backward[forward] == torch.arange(len(forward)), forward, -1)
    assert gate(right, "full").within
    rounded = gate(right, matching.ROUNDED)
    assert not rounded.within  # marked as loose, whatever luck it had
    assert rounded.error < 2 * rounded.tolerance
    wrong = right.clone()
    wrong[(right >= 0).nonzero()[0]] = -1
    assert not gate(wrong, "full").within


def test_a_call_is_covered_for_as_long_as_the_host_needs(monkeypatch):
    cuda_stand_in.install(monkeypatch)
    timer = cuda_timing.CudaTimer("cpu")
    fills = []
    monkeypatch.setattr(timer, "_flush", fills.append)
    monkeypatch.setattr(timer, "_fill_s", 1e-5)
    timer.cold(lambda: None, 1e-6)
    timer.cold(lambda: None, 1e-3)
    timer.cold(lambda: None, 10.0)
    assert fills[0] >= 1
    assert 150 <= fills[1] <= 160
    assert fills[2] == pytest.approx(cuda_timing.COVER_LIMIT_S / 1e-5, abs=1)


def test_out_of_memory_costs_one_peer_its_time(session):
    row = _small(ROWS[-1])
    broken = replace(row.peers[0], name="too large", build=_exhaust)
    late = replace(row.peers[0], name="later", build=_exhaust_later)
    row = replace(row, peers=(*row.peers, broken, late))
    candidates = measure.measure_row(row, session)
    states = {candidate.name: candidate for candidate in candidates}
    assert states["too large"].status == "not available"
    assert "CUDA out of memory" in states["too large"].reason
    assert states["later"].status == "not available"
    assert candidates[0].summary
    assert states[row.peers[0].name].summary


def _exhaust(inputs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def _exhaust_later(inputs):
    calls = []

    def run():
        calls.append(1)
        if len(calls) > 1:
            _exhaust(inputs)

    return run


def test_ours_that_fails_when_timed_voids_the_row(session):
    row = _small(ROWS[-1])
    right = row.ours

    def breaks_later(inputs, backend):
        first = [right(inputs, backend)()]
        return first.pop

    candidates = measure.measure_row(replace(row, ours=breaks_later), session)
    assert {candidate.status for candidate in candidates} <= {"void", "not available"}
    assert all(candidate.summary is None for candidate in candidates)


def test_refused_backend_gives_torchs_reason():
    inputs = attention.attention_inputs((1, 1, 8, 16), "float32", False, True)
    with pytest.raises(Exception, match="CUDNN_ATTENTION refuses") as caught:
        partial(attention_peers.forced, backend="CUDNN_ATTENTION")(inputs)
    assert type(caught.value).__name__ == "NotAvailable"


SERIAL = """
from functools import partial
from benchmarks.gpu.sequences import recurrence_inputs
from benchmarks.ops.sru import sru_gate
from benchmarks.peers.serial_sru import serial

inputs = recurrence_inputs(75, 128, 2400, True)
print(sru_gate(False, inputs)(serial(inputs)(), "full").within)
"""


def test_the_serial_recurrence_is_right_in_tritons_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SERIAL],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    if "only 0-dimensional arrays" in done.stderr:
        pytest.skip("this version of Triton's interpreter does not work with this NumPy")
    assert done.stdout.strip() == "True", done.stderr[-3000:]
