# SPDX-License-Identifier: Apache-2.0
"""Phrases located in every picture of a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patchword.data.folders import ImageItem
from patchword.data.io import MAX_PIXELS, read_image
from patchword.errors import OptionError
from patchword.inference.folder_run import run_folder
from patchword.inference.interrupt import StopFlag
from patchword.inference.journal import Record
from patchword.inference.progress import Progress, silent
from patchword.inference.runner import FolderRun, Work
from patchword.inference.writers import locate_summary, save_locate

if TYPE_CHECKING:
    from patchword.structures import LocateResult


MAX_TEXT_CHARS = 1000


class LocatesPhrases(Protocol):
    """What a folder run needs of a Localizer."""

    def encode_texts(self, texts: Sequence[str]) -> Any:
        """Prepare phrases for use with many pictures."""
        ...

    def locate(self, image: NDArray[np.uint8], texts: Any) -> LocateResult:
        """Locate prepared phrases in one picture."""
        ...


def check_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Strip phrases and refuse empty, overlong and repeated ones.

    Raises:
        OptionError: With the rule and the phrase.
    """
    stripped = tuple(text.strip() for text in texts)
    if not stripped:
        raise OptionError("locate: texts must hold at least one phrase, got none.")
    for index, text in enumerate(stripped):
        if not 1 <= len(text) <= MAX_TEXT_CHARS:
            raise OptionError(
                f"locate: a phrase must have 1 to {MAX_TEXT_CHARS} characters, got {len(text)}."
            )
        if text in stripped[:index]:
            raise OptionError(f"locate: phrases must differ, got {text[:60]!r} twice.")
    return stripped


def locate_folder(
    localizer: LocatesPhrases,
    folder: Path,
    texts: Sequence[str],
    output: Path,
    *,
    settings: dict[str, Any],
    overwrite: bool = False,
    num_workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    stop: StopFlag | None = None,
    progress: Progress = silent,
    on_record: Callable[[Record], None] | None = None,
) -> FolderRun:
    """Locate ``texts`` in every picture below ``folder``; killed runs continue.

    Results of ``folder/a/b.jpg`` go to ``output/items/a/b.jpg/``: names cannot collide.

    Args:
        localizer: Does the work on one picture.
        folder: Pictures to look at, sub-folders included.
        texts: Phrases.
        output: Result folder, see :func:`patchword.inference.output.open_output`.
        settings: What the results depend on; a later run continues only with the same.
        overwrite: Start over, replacing results of other settings.
        num_workers: Reading threads.
        max_pixels: Limit for :func:`patchword.data.read_image`.
        stop: Ends the run after the current picture.
        progress: Wraps the loop.
        on_record: Called with every record in order.

    Raises:
        DatasetError: The folder holds no pictures.
        ConfigError: The result folder is in use for something else.
        OutputError: Results cannot be written.
    """

    def start() -> Work:
        phrases = localizer.encode_texts(texts)

        def work(item: ImageItem, pixels: NDArray[np.uint8]) -> dict[str, Any]:
            result = localizer.locate(pixels, phrases)
            target = f"items/{item.key}"
            save_locate(
                result, output / target, extra={"input": item.key}, thumbnail=True, footer=item.key
            )
            summary = locate_summary(result)
            return {"output": target, "size": summary["size"], "phrases": summary["phrases"]}

        return work

    return run_folder(
        folder,
        output,
        load=lambda item: read_image(item.path, max_pixels=max_pixels),
        start=start,
        lines=_lines,
        title="Phrases located",
        noun="pictures",
        settings=settings,
        overwrite=overwrite,
        num_workers=num_workers,
        stop=stop,
        progress=progress,
        on_record=on_record,
    )


def _lines(record: Record) -> list[str]:
    best = sorted(record["phrases"], key=lambda phrase: -phrase["score"])[:5]
    return [f"{phrase['score']:.2f}  {phrase['text'][:60]}" for phrase in best]
