# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: a bar on a terminal, elsewhere a log line every 30 seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
LOG_INTERVAL_S = 30.0


class Progress(Protocol):
    """Wraps an iterable and shows how far it has come, as ``tqdm(iterable, total=n)`` does."""

    def __call__(self, iterable: Iterable[T], *, total: int | None = None) -> Iterable[T]:
        """Yield the elements of ``iterable``."""
        ...


def silent(iterable: Iterable[T], *, total: int | None = None) -> Iterable[T]:
    """Show nothing: what library calls use by default."""
    return iterable


def bar_or_log(
    iterable: Iterable[T], *, total: int | None = None, unit: str = "picture"
) -> Iterable[T]:
    """Show a bar when stderr is a terminal, else log a line every 30 s."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar: Iterable[T] = tqdm(iterable, total=total, file=sys.stderr, unit=unit)
        return bar
    return _log_lines(iterable, total, unit)


def _log_lines(iterable: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
    next_line = time.monotonic() + LOG_INTERVAL_S
    for count, element in enumerate(iterable):
        if time.monotonic() >= next_line:
            logger.info("%d of %s %ss", count, "?" if total is None else total, unit)
            next_line += LOG_INTERVAL_S
        yield element
