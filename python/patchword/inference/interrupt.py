# SPDX-License-Identifier: Apache-2.0
"""First Ctrl-C: finish the current picture or step and save. Second Ctrl-C: stop at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class StopFlag:
    """True once somebody asked the run to stop after the current picture or step."""

    def __init__(self) -> None:
        """Start as False."""
        self._event = threading.Event()

    def set(self) -> None:
        """Ask for the stop."""
        self._event.set()

    def __bool__(self) -> bool:
        """Tell whether the stop was asked for."""
        return self._event.is_set()


@contextmanager
def stop_on_signal(unit: str = "picture") -> Iterator[StopFlag]:
    """Give a flag that SIGINT and SIGTERM set; the second signal raises KeyboardInterrupt.

    Outside the main thread, where Python delivers no signals, the flag is simply never set.

    Args:
        unit: What is finished first, for the message.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if flag:
            raise KeyboardInterrupt
        flag.set()
        logger.warning("stopping after this %s; a second signal stops at once", unit)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
