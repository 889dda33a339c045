# SPDX-License-Identifier: Apache-2.0
"""Measures one row: builds every candidate, gates it, and takes its samples in turn."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks.common import (
    SLOW_S,
    NotAvailable,
    Run,
    Sample,
    Summary,
    make_plan,
    set_threads,
    summarize,
    time_call,
)
from benchmarks.cuda_timing import CudaTimer, count_launches, peak_of_call, release
from benchmarks.memory import MemoryTemplate
from benchmarks.registry import Gate, Inputs, Peer, Row, Verdict
from benchmarks.worker import SKYLAKEX, BlasWorker

logger = logging.getLogger("benchmarks")

PEER_SLACK = 1000.0
"""A peer may miss our accuracy contract by this factor and keep its time, marked; half-precision
compositions do. Beyond it, its result counts as wrong."""
SETTLE_S = 0.25
"""Pause after a sample in a helper process, whose idle BLAS threads spin for a while: with 0.03 s
the candidate that follows found one of two cores busy (median twice its minimum)."""
ORACLE_THREADS = os.cpu_count() or 1

Status = Literal["ok", "loose", "void", "not available"]


@dataclass
class Candidate:
    """One way to a row's result, and what was found out about it."""

    name: str
    role: Literal["ours", "variant", "peer"]
    build: Callable[[Inputs], Run]
    part: str = "full"
    where: str = "process"
    compiled: bool = False
    note: str = ""
    status: Status = "ok"
    reason: str = ""
    measure: Callable[[int, bool], Sample] | None = None
    verdict: Verdict | None = None
    first_call: float | None = None
    summary: Summary | None = None
    warm: Summary | None = None
    loops: int = 1
    enqueue: float | None = None
    run: Run | None = None
    memory: tuple[int, int] | None = None
    launches: int | None = None

    def drop(self, status: Status, reason: str) -> None:
        """Take the candidate out of the timing."""
        self.status, self.reason, self.measure, self.run = status, reason, None, None
        self.summary = self.warm = None


def judge(candidate: Candidate, verdict: Verdict | None) -> None:
    """Set the candidate's status from its verdict: ours must keep the contract."""
    candidate.verdict = verdict
    if verdict is None or verdict.within:
        return
    detail = (
        f"error {verdict.error:.1e} over {verdict.tolerance:.1e}, "
        f"{verdict.mismatches} wrong elements"
    )
    if math.isinf(verdict.error):
        detail = f"the result has the wrong shape or is not finite, {verdict.mismatches} elements"
    near = verdict.mismatches == 0 and verdict.error <= PEER_SLACK * verdict.tolerance
    if candidate.role == "peer" and near:
        candidate.status, candidate.reason = "loose", detail
        return
    candidate.drop("void", detail)


def interleave(counts: Sequence[int]) -> list[int]:
    """Return the order in which candidates are sampled: in turn, short counts spread evenly."""
    rounds, order = max(counts, default=0), []
    for turn in range(rounds):
        due = [
            index
            for index, count in enumerate(counts)
            if (turn + 1) * count // rounds > turn * count // rounds
        ]
        shift = turn % max(1, len(due))
        order += due[shift:] + due[:shift]
    return order


def to_numpy(inputs: Inputs) -> Inputs:
    """Return inputs with tensors as arrays, for processes that do not import torch."""
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in inputs.items()}


def to_device(inputs: Inputs, device: str) -> Inputs:
    """Return inputs with tensors on ``device``; a key ``device`` follows."""
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    return {**moved, "device": device}


@dataclass
class Session:
    """What rows share: the device, our backends, helper processes and gates.

    ``place`` is where tensors go; tests run the logic for ``device`` "cuda" with a place of "cpu".
    """

    device: str
    backends: Sequence[str]
    quick: bool = False
    place: str = ""
    threads: int = 1
    timer: CudaTimer | None = None
    workers: dict[str, BlasWorker | str] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    template: MemoryTemplate | None = None

    def __post_init__(self) -> None:
        """Without a place of its own, tensors go to the device."""
        self.place = self.place or self.device

    def start(self, threads: int, memory: bool) -> None:
        """Set the thread count everywhere and start fresh helper processes."""
        self.close()
        self.threads = threads
        set_threads(threads)
        if self.device != "cpu":
            self.timer = CudaTimer(self.place)
            return
        for where, core_type in (("blas", None), ("blas-skylakex", SKYLAKEX)):
            try:
                self.workers[where] = BlasWorker(threads, core_type)
            except NotAvailable as missing:
                self.workers[where] = str(missing)
        if memory:
            self.template = MemoryTemplate(threads)

    def close(self) -> None:
        """End the helper processes."""
        for worker in self.workers.values():
            if isinstance(worker, BlasWorker):
                worker.close()
        self.workers = {}
        if self.template:
            self.template.close()
            self.template = None

    def candidates(self, row: Row) -> list[Candidate]:
        """Return ours and the peers of a row that exist for the session's device."""
        found = [
            Candidate(f"patchword {backend}", "ours", partial(row.ours, backend=backend))
            for backend in self.backends[:1]
        ]
        variants = [(backend, row.ours, backend) for backend in self.backends[1:]]
        variants += [
            (f"{self.backends[0]}, {name}", build, self.backends[0]) for name, build in row.variants
        ]
        for name, build, backend in variants:
            found.append(Candidate(f"patchword {name}", "variant", partial(build, backend=backend)))
        peers = [peer for peer in row.peers if self.device in peer.devices]
        return found + [_from_peer(peer) for peer in peers]


def _from_peer(peer: Peer) -> Candidate:
    return Candidate(peer.name, "peer", peer.build, peer.part, peer.where, peer.compiled, peer.note)


@torch.inference_mode()
def measure_row(row: Row, session: Session) -> list[Candidate]:
    """Gate, time and weigh every candidate of ``row`` at the session's thread count.

    When ours fails its gate the whole row is void: no candidate keeps a time.
    """
    torch._dynamo.reset()  # a row's compiled peers must not meet the limit on recompilations
    set_threads(ORACLE_THREADS)
    inputs = to_device(row.inputs(False), session.place)
    if row.id not in session.gates:
        session.gates[row.id] = row.gate(row.inputs(False))
    gate = session.gates[row.id]
    candidates = session.candidates(row)
    if row.kind == "memory":
        _weigh(row, candidates, inputs, session)
    set_threads(session.threads)
    for candidate in candidates:
        if candidates[0].status == "void" and candidate.role != "ours":
            candidate.drop("void", "the row is void: our result failed its gate")
        if candidate.status == "ok":
            _prepare(candidate, inputs, gate, session)
    if row.kind != "memory":
        _sample_all(candidates, session)
        if row.kind == "speed":
            _weigh(row, candidates, inputs, session)
    for worker in session.workers.values():
        if isinstance(worker, BlasWorker):
            worker.unload()
    for candidate in candidates:
        candidate.run = candidate.measure = None  # they hold inputs and results
    if session.device == "cuda":
        release()
    return candidates


def failed_row(row: Row, session: Session, reason: str) -> list[Candidate]:
    """Return the candidates of a row that could not be measured at all."""
    candidates = session.candidates(row)
    for candidate in candidates:
        candidate.drop("void" if candidate.role == "ours" else "not available", reason)
    return candidates


def describe(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    return f"raised {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _prepare(candidate: Candidate, inputs: Inputs, gate: Gate, session: Session) -> None:
    """Build the candidate, make its first call and judge the result."""
    try:
        if candidate.where == "process":
            run = candidate.build(inputs)
            started = time.perf_counter()
            output = run()
            if session.device == "cuda":
                torch.cuda.synchronize()
                candidate.run = run
            candidate.first_call = time.perf_counter() - started
            candidate.measure = _measure_here(candidate, run, session)
        else:
            worker = session.workers.get(candidate.where, "runs on the CPU only")
            if isinstance(worker, str):
                raise NotAvailable(worker)
            worker.load(candidate.name, candidate.build, to_numpy(inputs))
            started = time.perf_counter()
            output = worker.output(candidate.name)
            candidate.first_call = time.perf_counter() - started
            candidate.measure = partial(worker.measure, candidate.name)
        set_threads(ORACLE_THREADS)
        judge(candidate, gate(output, candidate.part))
    except NotAvailable as missing:
        candidate.drop("not available", str(missing))
    except Exception as error:
        logger.debug("candidate %s failed", candidate.name, exc_info=True)
        if type(error).__name__ == "BackendError":  # ours refuses; patchword may not be importable
            candidate.drop("not available", str(error))
            return
        candidate.drop("void" if candidate.role == "ours" else "not available", describe(error))
    finally:
        set_threads(session.threads)


def _measure_here(
    candidate: Candidate, run: Run, session: Session
) -> Callable[[int, bool], Sample]:
    if session.device == "cpu":
        return partial(time_call, run)
    timer = session.timer or CudaTimer(session.place)
    session.timer = timer
    enqueue = min(timer.enqueue_seconds(run) for _ in range(2))
    candidate.enqueue = enqueue
    return lambda loops, warm: timer.warm(run, loops) if warm else timer.cold(run, enqueue)


def _sample_all(candidates: list[Candidate], session: Session) -> None:
    """Take samples in turn; on CUDA cold ones first, then warm ones."""
    threads = session.threads if session.device == "cpu" else 2
    live, plans = [], []
    for candidate in candidates:
        measure = candidate.measure
        if measure is None:
            continue
        try:
            estimate = _estimate(candidate, measure, session)
        except Exception as error:  # ours too: what fails in its second call is as wrong
            candidate.drop("void" if candidate.role == "ours" else "not available", describe(error))
            continue
        live.append(candidate)
        plans.append(make_plan(estimate, session.quick))
        candidate.loops = plans[-1].loops if session.device == "cpu" else 1
    if candidates[0].status == "void":
        for candidate in live:
            candidate.drop("void", "the row is void: our kernel failed when it was timed")
        return
    for warm_cache in (False, True) if session.device == "cuda" else (False,):
        taken: list[list[float]] = [[] for _ in live]
        for index in interleave([plan.samples for plan in plans]):
            measure, plan = live[index].measure, plans[index]
            assert measure is not None
            warm = warm_cache if session.device == "cuda" else plan.warm
            taken[index].append(measure(plan.loops, warm).seconds(threads))
            if live[index].where != "process" and threads > 1:
                time.sleep(SETTLE_S)
        for candidate, seconds in zip(live, taken, strict=True):
            if warm_cache:
                candidate.warm = summarize(seconds)
            else:
                candidate.summary = summarize(seconds)


def _estimate(
    candidate: Candidate, measure: Callable[[int, bool], Sample], session: Session
) -> float:
    """Return about how long one call takes; a slow first call is warm-up and estimate in one."""
    slow = candidate.first_call and candidate.first_call > 10 * SLOW_S
    if slow and not candidate.compiled and session.device == "cpu":
        return candidate.first_call
    threads = session.threads if session.device == "cpu" else 2
    estimate = measure(1, session.device == "cpu").seconds(threads)
    for _ in range(3 if estimate < 0.1 else 0):
        estimate = min(estimate, measure(1, False).seconds(threads))
    return estimate


def _weigh(row: Row, candidates: list[Candidate], inputs: Inputs, session: Session) -> None:
    """Measure the peak extra memory of every candidate that runs."""
    for candidate in candidates:
        if candidate.status in ("void", "not available"):
            continue
        try:
            if session.device == "cuda":
                run = candidate.run or candidate.build(inputs)  # compiled: not a second time
                run()
                candidate.memory = peak_of_call(run)
                if candidate.role != "peer":  # a profiler's session costs up to a second
                    candidate.launches = count_launches(run)
            elif session.template:
                worker = session.workers.get(candidate.where)
                if isinstance(worker, str):
                    raise NotAvailable(worker)
                convert = to_numpy if candidate.where != "process" else dict
                small = None if candidate.compiled else convert(row.inputs(True))
                candidate.memory = session.template.measure(candidate.build, small, convert(inputs))
        except Exception as error:  # out of memory, mostly; the other candidates go on
            if row.kind == "memory":
                broken = candidate.role == "ours" and not isinstance(error, NotAvailable)
                candidate.drop("void" if broken else "not available", str(error))
            else:
                candidate.note = f"{candidate.note} memory not available: {error}".strip()
