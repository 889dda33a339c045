# SPDX-License-Identifier: Apache-2.0
"""The harness voids wrong kernels, names what is missing, and sees native memory."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import run, worker
from benchmarks.common import NotAvailable
from benchmarks.measure import Session, measure_row
from benchmarks.memory import MemoryTemplate
from benchmarks.ops.correspondence import descriptors, match_gate
from benchmarks.peers import blas, eager
from benchmarks.registry import (
    EACH_ALONE,
    SUITES,
    Peer,
    Row,
    Target,
    all_rows,
    select_rows,
    suite_rows,
)
from benchmarks.result import losses, row_record

PROBE = {"copy_gbs": 10.0, "ceiling_gflops": 50.0}
BYTES = 64 << 20


def _right(inputs, backend):
    return eager.eager(eager.mutual, inputs)


def _wrong(inputs, backend):
    def run():
        matches = eager.eager(eager.mutual, inputs)()
        matches[0] = (matches[0] + 1) % 4
        return matches

    return run


def _raises(inputs, backend):
    raise RuntimeError("no such luck")


def _absent(inputs, backend):
    raise NotAvailable("not built")


def _wrong_peer(inputs):
    return _wrong(inputs, "")


EAGER = (Peer("torch eager", partial(eager.eager, eager.mutual)),)


def _row(ours, peers=EAGER):
    return Row(
        id="test.mutual",
        op="test",
        title="test",
        shape="64 x 64 x 8",
        dtype="float32",
        layout="contiguous",
        inputs=lambda small: descriptors(64, 8, small),
        gate=match_gate,
        ours=ours,
        peers=peers,
        targets=(Target((), 1e9),),
        flops=1.0,
    )


@pytest.fixture
def session():
    threads = torch.get_num_threads()
    yield Session("cpu", ["native"], quick=True)
    torch.set_num_threads(threads)


@pytest.fixture
def importable(monkeypatch):
    """Let helper processes import the candidates that this file defines."""
    known = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(known))


def _measure(row, session):
    return row_record(row, measure_row(row, session), 1, "cpu", PROBE)


def test_a_right_kernel_is_timed_beside_its_peers(session):
    record = _measure(_row(_right), session)
    assert [c["status"] for c in record["candidates"]] == ["ok", "ok"]
    assert all(c["seconds"]["samples"] >= 2 for c in record["candidates"])
    assert set(record["ratios"]) == {"torch eager"}
    assert losses([record])[0]["peer"] == "torch eager"


@pytest.mark.parametrize("ours", [_wrong, _raises])
def test_a_wrong_kernel_voids_the_row_and_no_time_is_kept(session, ours):
    record = _measure(_row(ours), session)
    assert record["void"]
    assert all(c["seconds"] is None and c["reason"] for c in record["candidates"])
    assert record["ratios"] == {}
    assert record["targets"][0]["met"] is None
    assert losses([record])


def test_a_missing_kernel_leaves_the_peers_their_times(session):
    record = _measure(_row(_absent), session)
    ours, peer = record["candidates"]
    assert (ours["status"], ours["reason"]) == ("not available", "not built")
    assert peer["seconds"]
    assert not record["void"]


def test_a_wrong_peer_loses_its_time_alone(session):
    record = _measure(_row(_right, (Peer("wrong", _wrong_peer),)), session)
    ours, peer = record["candidates"]
    assert ours["seconds"]
    assert (peer["status"], peer["seconds"]) == ("void", None)
    assert record["ratios"] == {}


def test_a_missing_helper_process_is_a_reason_not_a_crash(session):
    session.workers = {"blas-skylakex": "CPU has no AVX-512"}
    peers = (Peer("NumPy, SkylakeX", blas.numpy_mutual, where="blas-skylakex"),)
    peer = _measure(_row(_right, peers), session)["candidates"][1]
    assert (peer["status"], peer["reason"]) == ("not available", "CPU has no AVX-512")


def test_core_type_needs_the_flags(monkeypatch):
    monkeypatch.setattr(worker, "cpu_flags", lambda: {"avx2"})
    with pytest.raises(NotAvailable, match="AVX-512"):
        worker.BlasWorker(1, worker.SKYLAKEX)


@pytest.mark.usefixtures("importable")
def test_helper_process_runs_candidates_and_reports_missing_ones():
    client = worker.BlasWorker(1)
    try:
        inputs = {name: value.numpy() for name, value in descriptors(32, 8, True).items()}
        client.load("numpy", blas.numpy_mutual, inputs)
        assert (client.output("numpy") == blas.numpy_mutual(inputs)()).all()
        assert client.measure("numpy", 2, True).wall > 0
        with pytest.raises(NotAvailable, match="not here"):
            client.load("absent", _absent_array, inputs)
        with pytest.raises(RuntimeError, match="KeyError"):
            client.output("never loaded")
    finally:
        client.close()


def _absent_array(inputs):
    raise NotAvailable("not here")


def _transient(inputs):
    def run():
        scratch = torch.empty(inputs["bytes"], dtype=torch.uint8).fill_(1)
        return scratch[: inputs["bytes"] // 4].clone()

    return run


@pytest.mark.usefixtures("importable")
def test_memory_counts_native_scratch_and_the_result():
    template = MemoryTemplate(1)
    try:
        peak, kept = template.measure(_transient, {"bytes": 1024}, {"bytes": BYTES})
        assert 1.2 * BYTES < peak < 1.4 * BYTES
        assert kept == BYTES // 4
        with pytest.raises(NotAvailable, match="out of memory"):
            template.measure(_transient, None, {"bytes": 1 << 50})
        with pytest.raises(RuntimeError, match="KeyError"):
            template.measure(_transient, None, {})
        peak, _ = template.measure(_transient, {"bytes": 1024}, {"bytes": 1024})
        assert peak < 0.1 * BYTES
    finally:
        template.close()


def test_rows_have_unique_names_and_reachable_targets():
    rows = all_rows()
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        names = {peer.name for peer in row.peers}
        assert len(names) == len(row.peers)
        assert all(set(peer.devices) & set(row.devices) for peer in row.peers)
        for target in row.targets:
            known = names | ({EACH_ALONE} if row.kind == "sharing" else set())
            assert set(target.against) <= known


def test_unknown_selection_is_refused():
    assert {row.op for row in select_rows(["sample_features"], [])} == {"sample_features"}
    with pytest.raises(ValueError, match="--op must be one of"):
        select_rows(["nothing"], [])


def test_suites_hold_every_row_once(capsys):
    ids = [row.id for row in all_rows()]
    assert len(ids) == len(set(ids))
    assert ids == [row.id for suite in SUITES for row in suite_rows(suite)]
    assert run.main(["--suite", "refinement", "--list"]) == 0
    assert "pamr.21_masks" in capsys.readouterr().out
    assert run.main(["--json", "x.json"]) == 2
    assert "must go with one --suite" in capsys.readouterr().err
