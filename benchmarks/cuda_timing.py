# SPDX-License-Identifier: Apache-2.0
"""Timing on a CUDA device with events, cold and warm second-level cache. Not yet run on a GPU."""

from __future__ import annotations

import gc
import math
import os
import time

import torch

from benchmarks.common import NotAvailable, Run, Sample, count_bytes

COVER_LIMIT_S = 5e-3
"""How long the device is kept busy at most while the host enqueues a call."""
CALIBRATION_FILLS = 16


def require_cuda() -> None:
    """Raise NotAvailable when torch sees no CUDA device."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        raise NotAvailable(
            f"--device cuda needs a GPU, and torch {torch.__version__} (CUDA {built}) sees none"
        )


class CudaTimer:
    """Times calls on the current stream.

    Before a cold sample the second-level cache is overwritten, as often as it takes to keep the
    device busy until the host has enqueued the whole call. Host overhead is therefore not inside
    the numbers, unless a call takes longer to enqueue than ``COVER_LIMIT_S``. Warm samples are
    means of calls in a row, and include the host wherever it is the slower side.
    """

    def __init__(self, device: str = "cuda") -> None:
        """Allocate a buffer of twice the size of the cache and time one overwriting of it."""
        size = torch.cuda.get_device_properties(0).L2_cache_size
        self._buffer = torch.empty(2 * size, dtype=torch.uint8, device=device)
        self._fill = 0
        self._flush(2)
        start, end = self._event(), self._event()
        start.record()
        self._flush(CALIBRATION_FILLS)
        end.record()
        end.synchronize()
        self._fill_s = max(1e-6, start.elapsed_time(end) * 1e-3 / CALIBRATION_FILLS)

    def enqueue_seconds(self, run: Run) -> float:
        """Return how long the host takes to enqueue a call while the device is idle."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - started
        torch.cuda.synchronize()
        del result
        return seconds

    def cold(self, run: Run, enqueue_s: float) -> Sample:
        """Time one call after the cache was overwritten."""
        busy = min(COVER_LIMIT_S, 1.5 * enqueue_s + 5e-5)
        self._flush(max(1, math.ceil(busy / self._fill_s)))
        return self._between_events(run, 1)

    def warm(self, run: Run, loops: int) -> Sample:
        """Time ``loops`` calls in a row and return the mean."""
        run()
        return self._between_events(run, loops)

    def _flush(self, times: int) -> None:
        for _ in range(times):
            self._fill = (self._fill + 1) % 251
            self._buffer.fill_(self._fill)

    @staticmethod
    def _event() -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def _between_events(self, run: Run, loops: int) -> Sample:
        start, end = self._event(), self._event()
        start.record()
        for _ in range(loops):
            run()
        end.record()
        end.synchronize()
        seconds = start.elapsed_time(end) * 1e-3 / loops
        return Sample(seconds, seconds, seconds)


def peak_of_call(run: Run) -> tuple[int, int]:
    """Return (peak extra device bytes during the call, bytes of its result).

    torch's allocator counts; our kernels take their scratch memory from it too.
    """
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, count_bytes(result)


def count_launches(run: Run) -> int | None:
    """Return how many kernels and copies one call puts on the device; None if nobody can say."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # it reports each session on the terminal
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            run()
            torch.cuda.synchronize()
        events = recorded.events() or ()
    except Exception:  # the profiler needs counters that some machines withhold
        return None
    return sum(event.device_type.name == "CUDA" for event in events) or None


def release() -> None:
    """Hand cached memory back, so that one row's peers do not starve the next row's."""
    gc.collect()
    torch.cuda.empty_cache()


def is_alive() -> bool:
    """Whether the device still works: after a faulty kernel every later call fails."""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError:
        return False
    return True
