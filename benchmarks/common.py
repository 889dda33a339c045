# SPDX-License-Identifier: Apache-2.0
"""Timing of one call, sample statistics and thread settings, importable without torch."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

Run = Callable[[], Any]

WARM_BELOW_S = 0.02
"""Calls shorter than this are preceded by one untimed call, so every peer starts warm."""
MIN_SAMPLE_S = 1e-3
"""Shorter calls are repeated inside one sample until it lasts about this long."""
MIN_SAMPLES = 30
MIN_SAMPLES_SLOW = 5
SLOW_S = 0.3
"""Peers slower than this per call take fewer samples, down to ``MIN_SAMPLES_SLOW``."""
SLOW_BUDGET_S = 4.0
"""Seconds that the samples of such a peer may take, as far as the minimum allows."""
ONCE_ABOVE_S = 20.0
"""Calls slower than this are sampled once: noise of a few per cent decides nothing there."""


class NotAvailable(Exception):
    """A candidate cannot run here; the message is the reason shown in the table."""


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: wall clock, the calling thread's CPU, the whole process's CPU."""

    wall: float
    thread: float
    process: float

    def seconds(self, threads: int) -> float:
        """Return the headline time: CPU time for one-thread rows, wall time otherwise.

        The process clock equals the thread clock when the candidate honours the one-thread
        setting, and is larger when it does not, so a helper thread never comes for free.
        """
        return self.wall if threads > 1 else max(self.thread, self.process)


@dataclass(frozen=True)
class Plan:
    """How often a candidate is sampled."""

    samples: int
    loops: int
    warm: bool


@dataclass(frozen=True)
class Summary:
    """Median, quartiles and minimum of the samples, in seconds."""

    samples: int
    median: float
    q1: float
    q3: float
    minimum: float

    @property
    def iqr(self) -> float:
        """Inter-quartile range in seconds."""
        return self.q3 - self.q1


def time_call(run: Run, loops: int = 1, warm: bool = False) -> Sample:
    """Time ``loops`` calls of ``run`` and return the mean seconds per call."""
    if warm:
        run()
    thread, process, wall = time.thread_time_ns(), time.process_time_ns(), time.perf_counter_ns()
    for _ in range(loops):
        run()
    wall = time.perf_counter_ns() - wall
    process, thread = time.process_time_ns() - process, time.thread_time_ns() - thread
    scale = 1e-9 / loops
    return Sample(wall * scale, thread * scale, process * scale)


def make_plan(seconds: float, quick: bool = False) -> Plan:
    """Choose the number of samples for a call that takes about ``seconds``."""
    most, slow, budget = MIN_SAMPLES, MIN_SAMPLES_SLOW, SLOW_BUDGET_S
    limit = SLOW_S
    if quick:
        most, slow, budget, limit = 7, 2, 0.5, 0.07
    seconds = max(seconds, 1e-8)
    loops = max(1, math.ceil(MIN_SAMPLE_S / seconds))
    samples = most if seconds <= limit else max(slow, min(most, int(budget / seconds)))
    if seconds > ONCE_ABOVE_S:
        samples = 1
    return Plan(samples, loops, warm=seconds < WARM_BELOW_S)


def summarize(seconds: Sequence[float]) -> Summary:
    """Summarise samples; quartiles interpolate linearly and include both ends."""
    if not seconds:
        raise ValueError("summarize: seconds must hold at least one sample, got none.")
    low, middle, high = (
        statistics.quantiles(seconds, n=4, method="inclusive")
        if len(seconds) > 1
        else [seconds[0]] * 3
    )
    return Summary(len(seconds), middle, low, high, min(seconds))


def count_bytes(result: Any) -> int:
    """Return the bytes of the tensors and arrays in a result, which may be nested."""
    if hasattr(result, "nbytes"):
        return int(result.nbytes)
    if isinstance(result, (list, tuple)):
        return sum(count_bytes(part) for part in result)
    if is_dataclass(result):
        return sum(count_bytes(part) for part in vars(result).values())
    return 0


def set_threads(threads: int) -> None:
    """Give every library that is already loaded in this process the same thread count."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(threads)
    if faiss := sys.modules.get("faiss"):
        faiss.omp_set_num_threads(threads)
