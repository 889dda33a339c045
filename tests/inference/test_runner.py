# SPDX-License-Identifier: Apache-2.0
"""The folder runner: in order, each picture once, whatever fails or stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patchword.data import ImageItem
from patchword.errors import DatasetError, OptionError, OutputError
from patchword.inference.interrupt import StopFlag
from patchword.inference.journal import Journal
from patchword.inference.runner import MAX_LISTED_FAILURES, run_items


def items(folder: Path, count: int) -> Iterator[ImageItem]:
    for index in range(count):
        path = folder / f"{index:03d}.jpg"
        if not path.exists():
            path.write_bytes(b"x")
        yield ImageItem(path.name, path)


def run(tmp_path: Path, count: int = 8, **options: Any) -> Any:
    settings = {
        "load": lambda item: item.key,
        "work": lambda item, loaded: {"loaded": loaded},
        **options,
    }
    with Journal(tmp_path / "journal.jsonl") as journal:
        return run_items(items(tmp_path, count), journal=journal, **settings)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_all_in_order_once(tmp_path: Path, num_workers: int) -> None:
    records: list[dict[str, Any]] = []
    summary = run(tmp_path, num_workers=num_workers, on_record=records.append)
    assert [r["loaded"] for r in records] == [f"{i:03d}.jpg" for i in range(8)]
    assert (summary.done, summary.reused, summary.failed) == (8, 0, 0)

    def never(*_: Any) -> Any:
        raise AssertionError("done again")

    again: list[dict[str, Any]] = []
    summary = run(tmp_path, load=never, work=never, on_record=again.append)
    assert (summary.done, summary.reused) == (0, 8)
    assert again == records


def test_changed_file_is_done_again(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "003.jpg").write_bytes(b"longer")
    summary = run(tmp_path)
    assert (summary.done, summary.reused) == (1, 7)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("where", ["load", "work"])
def test_bad_file_is_reported_and_tried_again(tmp_path: Path, where: str, num_workers: int) -> None:
    def fails(item: ImageItem, loaded: Any = None) -> Any:
        if item.key == "002.jpg":
            raise DatasetError("read_image: 002.jpg: bad.")
        return {}

    summary = run(tmp_path, num_workers=num_workers, **{where: fails})
    assert (summary.done, summary.failed) == (7, 1)
    assert summary.failures == (("002.jpg", "read_image: 002.jpg: bad."),)
    summary = run(tmp_path)
    assert (summary.done, summary.reused, summary.failed) == (1, 7, 0)


def test_failures_in_memory_are_bounded(tmp_path: Path) -> None:
    def fails(item: ImageItem) -> Any:
        raise DatasetError("bad")

    count = MAX_LISTED_FAILURES + 20
    summary = run(tmp_path, count, load=fails)
    assert summary.failed == count
    assert len(summary.failures) == MAX_LISTED_FAILURES


@pytest.mark.parametrize("num_workers", [0, 2])
def test_full_disk_ends_the_run_and_keeps_the_rest(tmp_path: Path, num_workers: int) -> None:
    def work(item: ImageItem, loaded: Any) -> dict[str, Any]:
        if item.key == "004.jpg":
            raise OutputError("no space")
        return {}

    with pytest.raises(OutputError, match="no space"):
        run(tmp_path, work=work, num_workers=num_workers)
    summary = run(tmp_path)
    assert (summary.done, summary.reused) == (4, 4)


def test_stop_finishes_the_current_picture(tmp_path: Path) -> None:
    stop = StopFlag()

    def work(item: ImageItem, loaded: Any) -> dict[str, Any]:
        if item.key == "002.jpg":
            stop.set()
        return {}

    summary = run(tmp_path, work=work, stop=stop)
    assert (summary.done, summary.interrupted) == (3, True)
    summary = run(tmp_path)
    assert (summary.done, summary.reused, summary.interrupted) == (5, 3, False)


def test_reads_ahead_by_a_bounded_number(tmp_path: Path) -> None:
    lock = threading.Lock()
    loaded = worked = 0
    most = 0

    def load(item: ImageItem) -> None:
        nonlocal loaded, most
        with lock:
            loaded += 1
            most = max(most, loaded - worked)

    def work(item: ImageItem, pixels: Any) -> dict[str, Any]:
        nonlocal worked
        time.sleep(0.002)
        with lock:
            worked += 1
        return {}

    run(tmp_path, 60, load=load, work=work, num_workers=3)
    assert 1 < most <= 2 * 3 + 2


def test_reading_overlaps_work(tmp_path: Path) -> None:
    threads: set[str] = set()
    run(tmp_path, load=lambda item: threads.add(threading.current_thread().name))
    assert threads
    assert all(name.startswith("patchword-read") for name in threads)


def test_negative_workers(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="num_workers must be at least 0"):
        run(tmp_path, num_workers=-1)
