# SPDX-License-Identifier: Apache-2.0
"""Adds up the processor time of each stage of making pairs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimes:
    """Processor seconds by stage, all threads of the process; waiting for a disk does not count."""

    def __init__(self) -> None:
        """Start with no stage."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

    def add(self, other: dict[str, float]) -> None:
        """Add the seconds of another collection."""
        for name, value in other.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
