# SPDX-License-Identifier: Apache-2.0
"""A run over every picture below a folder, from the journal to the page of its results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from patchword.data.folders import IMAGE_SUFFIXES, count_images, iter_items
from patchword.inference.html import Card, write_pages
from patchword.inference.interrupt import StopFlag
from patchword.inference.journal import Journal, Record
from patchword.inference.output import JOURNAL_FILE, open_output
from patchword.inference.progress import Progress, silent
from patchword.inference.runner import FolderRun, Load, Work, run_items


def run_folder(
    folder: Path,
    output: Path,
    *,
    load: Load,
    start: Callable[[], Work],
    lines: Callable[[Record], Sequence[str]],
    title: str,
    noun: str,
    settings: dict[str, Any],
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
    overwrite: bool = False,
    num_workers: int = 2,
    stop: StopFlag | None = None,
    progress: Progress = silent,
    on_record: Callable[[Record], None] | None = None,
) -> FolderRun:
    """Work on every picture below ``folder`` and write a page of the results; killed runs continue.

    Args:
        folder: Pictures to look at, sub-folders included.
        output: Result folder, see :func:`patchword.inference.output.open_output`.
        load: As for :func:`patchword.inference.runner.run_items`.
        start: Called once the result folder is open; gives the ``work`` of ``run_items``. Its
            records name a folder ``output`` that holds ``thumb.jpg`` and ``overlay.png``.
        lines: Short facts of a picture's card, from its record.
        title: Of the page.
        noun: What the pictures are called in the line below the title.
        settings: What the results depend on; a later run continues only with the same.
        suffixes: Endings of the names of pictures.
        overwrite: Start over, replacing results of other settings.
        num_workers: Reading threads.
        stop: Ends the run after the current picture.
        progress: Wraps the loop.
        on_record: Called with every record in order.

    Raises:
        DatasetError: The folder holds no pictures.
        ConfigError: The result folder is in use for something else.
        OutputError: Results cannot be written.
    """
    total = count_images(folder, exclude=output, suffixes=suffixes)
    with (
        open_output(output, settings, inputs=(folder,), overwrite=overwrite),
        Journal(output / JOURNAL_FILE) as journal,
    ):
        summary = run_items(
            iter_items(folder, exclude=output, suffixes=suffixes),
            load=load,
            work=start(),
            journal=journal,
            num_workers=num_workers,
            stop=stop,
            progress=progress,
            total=total,
            on_record=on_record,
        )
        lead = f"{summary.done + summary.reused} {noun}, {summary.failed} could not be read"
        cards = _cards(journal.latest(summary.seen), lines)
        index = write_pages(output, title, lead, cards)
    return FolderRun(summary, output, index)


def _cards(records: Iterable[Record], lines: Callable[[Record], Sequence[str]]) -> Iterator[Card]:
    for record in records:
        if record["status"] == "failed":
            yield Card(record["key"], [record["error"]])
            continue
        yield Card(
            record["key"],
            lines(record),
            image=f"{record['output']}/thumb.jpg",
            link=f"{record['output']}/overlay.png",
        )
