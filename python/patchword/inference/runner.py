# SPDX-License-Identifier: Apache-2.0
"""Runs one function over a folder of pictures: decoding ahead, journalling, resuming, stopping."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchword.data.folders import ImageItem
from patchword.errors import DatasetError, OptionError
from patchword.inference.interrupt import StopFlag
from patchword.inference.journal import Journal, Record, key_digest
from patchword.inference.progress import Progress, silent

Pixels = NDArray[np.uint8]
Load = Callable[[ImageItem], Any]
Work = Callable[[ImageItem, Any], dict[str, Any]]

# Failures kept in memory for the report; the journal holds every one.
MAX_LISTED_FAILURES = 100


@dataclass(frozen=True)
class RunSummary:
    """What came of a folder run.

    Attributes:
        done: Pictures processed now.
        reused: Pictures that an earlier run had finished.
        failed: Pictures that could not be read.
        failures: ``(key, message)`` of the first 100 failed ones.
        interrupted: Whether the run was stopped before the last picture.
        seen: Key digests of the pictures met, for :meth:`Journal.latest`.
    """

    done: int
    reused: int
    failed: int
    failures: tuple[tuple[str, str], ...]
    interrupted: bool
    seen: array[int]


@dataclass(frozen=True)
class FolderRun:
    """What a folder run left.

    Attributes:
        summary: Counts and failures.
        output: The result folder.
        index: The page to look through.
    """

    summary: RunSummary
    output: Path
    index: Path


@dataclass(frozen=True)
class _Pending:
    item: ImageItem
    stamp: tuple[int, int]
    record: Record | None = None
    loaded: Future[Any] | None = None


def run_items(
    items: Iterable[ImageItem],
    *,
    load: Load,
    work: Work,
    journal: Journal,
    num_workers: int = 2,
    stop: StopFlag | None = None,
    progress: Progress = silent,
    total: int | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> RunSummary:
    """Load and process every picture that the journal does not hold yet, in order.

    ``load`` runs in ``num_workers`` threads (decoders release the interpreter lock), at most
    twice as many pictures ahead; ``work`` runs here. A picture counts as done once ``work`` has
    returned, that is, written its files, and its line is on disk. One that raises
    :class:`DatasetError` is noted and passed over; it is tried again by the next run.

    Args:
        items: Pictures with unique keys.
        load: Reads one picture.
        work: Processes what ``load`` gave and returns JSON-ready fields for the record.
        journal: Where finished pictures are noted.
        num_workers: Loading threads; 0 loads in this thread.
        stop: Ends the run before the next picture once it is true.
        progress: Wraps the loop, see :mod:`patchword.inference.progress`.
        total: Number of items, if known, for ``progress``.
        on_record: Called with every record, old and new, in order.

    Raises:
        OptionError: ``num_workers`` is negative.
        OutputError: Results cannot be written; everything journalled so far is kept.
    """
    if num_workers < 0:
        raise OptionError(f"run_items: num_workers must be at least 0, got {num_workers}.")
    stop = stop if stop is not None else StopFlag()
    done = reused = failed = 0
    failures: list[tuple[str, str]] = []
    seen = array("Q")
    interrupted = False
    for pending in progress(_look_ahead(items, load, journal, num_workers), total=total):
        if stop:
            interrupted = True
            break
        record = pending.record
        if record is not None:
            reused += 1
        else:
            record = _process(pending, work)
            journal.append(record)
            if record["status"] == "ok":
                done += 1
            else:
                failed += 1
                if failed <= MAX_LISTED_FAILURES:
                    failures.append((record["key"], record["error"]))
        seen.append(key_digest(pending.item.key))
        if on_record is not None:
            on_record(record)
    return RunSummary(done, reused, failed, tuple(failures), interrupted, seen)


def _process(pending: _Pending, work: Work) -> Record:
    head = {"key": pending.item.key, "stamp": list(pending.stamp)}
    try:
        assert pending.loaded is not None
        fields = work(pending.item, pending.loaded.result())
    except DatasetError as error:
        return {**head, "status": "failed", "error": str(error)}
    return {**head, "status": "ok", **fields}


def _look_ahead(
    items: Iterable[ImageItem], load: Load, journal: Journal, num_workers: int
) -> Iterator[_Pending]:
    depth = max(1, 2 * num_workers)
    waiting: deque[_Pending] = deque()
    pool = ThreadPoolExecutor(num_workers, "patchword-read") if num_workers else None
    try:
        for item in items:
            # The stamp is taken before reading: a file changed meanwhile is read again next time.
            stamp = item.stamp()
            record = journal.find(item.key, stamp)
            if record is not None:
                waiting.append(_Pending(item, stamp, record=record))
            else:
                waiting.append(_Pending(item, stamp, loaded=_submit(pool, load, item)))
            if len(waiting) > depth or pool is None:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ThreadPoolExecutor | None, load: Load, item: ImageItem) -> Future[Any]:
    if pool is not None:
        return pool.submit(load, item)
    future: Future[Any] = Future()
    try:
        future.set_result(load(item))
    except DatasetError as error:
        future.set_exception(error)
    return future
