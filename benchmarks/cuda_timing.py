# SPDX-License-Identifier: Apache-2.0
"""Timing on a CUDA device with events, cold and warm second-level cache. Not yet run on a GPU."""

from __future__ import annotations

import torch

from benchmarks.common import NotAvailable, Run, Sample, count_bytes


def require_cuda() -> None:
    """Raise NotAvailable when torch sees no CUDA device."""
    if not torch.cuda.is_available():
        raise NotAvailable("torch sees no CUDA device")


class CudaTimer:
    """Times calls on the current stream.

    The flush kernel before a cold sample also keeps the device busy while the host enqueues the
    call, so launch latency of a short call is hidden; host overhead is not inside the numbers.
    """

    def __init__(self) -> None:
        """Allocate a buffer of twice the size of the second-level cache."""
        size = torch.cuda.get_device_properties(0).L2_cache_size
        self._buffer = torch.empty(2 * size, dtype=torch.uint8, device="cuda")
        self._fill = 0

    def cold(self, run: Run) -> Sample:
        """Time one call after the cache was overwritten."""
        self._fill = (self._fill + 1) % 251
        self._buffer.fill_(self._fill)
        return self._between_events(run, 1)

    def warm(self, run: Run, loops: int) -> Sample:
        """Time ``loops`` calls in a row and return the mean."""
        run()
        return self._between_events(run, loops)

    def _between_events(self, run: Run, loops: int) -> Sample:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(loops):
            run()
        end.record()
        end.synchronize()
        seconds = start.elapsed_time(end) * 1e-3 / loops
        return Sample(seconds, seconds, seconds)


def peak_of_call(run: Run) -> tuple[int, int]:
    """Return (peak extra device bytes during the call, bytes of its result)."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, count_bytes(result)


def count_launches(run: Run) -> int:
    """Return the number of kernels and copies that one call puts on the device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in recorded.events() or ())
