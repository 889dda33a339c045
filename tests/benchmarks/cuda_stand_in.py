# SPDX-License-Identifier: Apache-2.0
"""A CUDA device for the benchmark's logic: events that read the clock, tensors on the CPU."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at: float | None = None
        self.waited = False

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: _Event) -> float:
        assert end.waited, "the end was read before the device reached it"
        assert self.at is not None
        assert end.at is not None
        return 1e3 * (end.at - self.at)


def install(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace what the harness asks of ``torch.cuda``; return what it was asked."""
    seen = SimpleNamespace(synchronised=0, released=0, alive=True)
    properties = SimpleNamespace(
        L2_cache_size=1 << 16, name="NVIDIA Fake 9000", total_memory=1, multi_processor_count=1
    )

    def synchronize() -> None:
        seen.synchronised += 1
        if not seen.alive:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def empty_cache() -> None:
        seen.released += 1

    for name, value in {
        "Event": _Event,
        "synchronize": synchronize,
        "empty_cache": empty_cache,
        "get_device_properties": lambda device: properties,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 4100,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return seen
