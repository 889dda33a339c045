# SPDX-License-Identifier: Apache-2.0
"""The files of one segmented sketch, and of a folder of sketches."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchword import viz
from patchword.data.folders import IMAGE_SUFFIXES, ImageItem
from patchword.data.sketches import VECTOR_SUFFIXES
from patchword.inference.atomic import write_bytes, write_image
from patchword.inference.folder_run import run_folder
from patchword.inference.interrupt import StopFlag
from patchword.inference.journal import Record
from patchword.inference.naming import slug
from patchword.inference.progress import Progress, silent
from patchword.inference.runner import FolderRun, Work
from patchword.inference.writers import sign, write_overlay, write_result
from patchword.structures import ImageArray
from patchword.systems.sketchseg.inference import SketchResult, SketchSegmenter
from patchword.viz.sketches import color_ink, isolated_sheet, sketch_overlay

SCHEMA_VERSION = 1
SUFFIXES = IMAGE_SUFFIXES | VECTOR_SUFFIXES
_MAX_PALETTE = 254


def sketch_summary(result: SketchResult) -> dict[str, Any]:
    """Give a segmented sketch as JSON-ready values: ink, colour and mean score per category."""
    colors = viz.phrase_colors(result.texts)
    labels, scores = result.labels[result.ink], result.scores[result.ink]
    categories = []
    for k, text in enumerate(result.texts):
        mine = labels == k
        categories.append(
            {
                "text": text,
                "color": [int(value) for value in colors[k]],
                "pixels": int(mine.sum()),
                "share": float(mine.mean()) if mine.size else 0.0,
                "mean_score": float(scores[mine].mean()) if mine.any() else None,
            }
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "size": list(result.labels.shape),
        "ink": int(result.ink.sum()),
        "unassigned": int((labels < 0).sum()),
        "options": vars(result.options),
        "categories": categories,
    }


def save_sketch(
    result: SketchResult,
    folder: str | Path,
    *,
    isolate: Sequence[float] = (),
    extra: Mapping[str, Any] | None = None,
    thumbnail: bool = False,
    footer: str = "",
) -> dict[str, Path]:
    """Write labels, pictures and numbers of a segmented sketch.

    ``labels.png``: 0 paper, index + 1 a category, the largest value unassigned ink (8 bit with the
    legend's colours up to 254 categories, else 16 bit). ``coloured.png``: coloured ink at the
    sketch's own size. ``overlay.png``: the same beside a legend. ``maps.npy``: the patches'
    scores, float32 ``[C, h, w]``. ``isolated_<k>_<name>.png`` for each category if asked for.
    ``result.json`` is written last: where it is, the others are.

    Args:
        result: What to write.
        folder: Made if needed; files of the same names are replaced.
        isolate: Thresholds at which each category is drawn alone.
        extra: Fields to add to ``result.json``.
        thumbnail: Also write ``thumb.jpg``, the overlay made small for a page.
        footer: Words for the small line under the overlay, before patchword's version.

    Returns:
        Paths by ``labels``, ``coloured``, ``overlay``, ``maps``, ``isolated_0`` ... and ``result``.

    Raises:
        OutputError: Something cannot be written.
    """
    out = Path(folder)
    overlay = sketch_overlay(result.labels, result.ink, result.texts, footer=sign(footer))
    coloured = color_ink(result.labels, result.ink, result.texts)
    maps = io.BytesIO()
    np.save(maps, result.maps)
    written = {
        "labels": _write_labels(out / "labels.png", result),
        "coloured": write_image(out / "coloured.png", coloured),
        **write_overlay(out, overlay, thumbnail),
        "maps": write_bytes(out / "maps.npy", maps.getvalue()),
    }
    colors = viz.phrase_colors(result.texts)
    for k, text in enumerate(result.texts if isolate else ()):
        sheet = isolated_sheet(result.category_scores(k), result.ink, text, colors[k], isolate)
        path = out / f"isolated_{k:02d}_{slug(text)}.png"
        written[f"isolated_{k}"] = write_image(path, sheet)
    return write_result(out, {**(extra or {}), **sketch_summary(result)}, written)


def _write_labels(path: Path, result: SketchResult) -> Path:
    count = len(result.texts)
    unassigned = result.ink & (result.labels < 0)
    if count > _MAX_PALETTE:
        return write_image(path, np.where(unassigned, 65535, result.labels + 1).astype(np.uint16))
    palette = np.zeros((256, 3), np.uint8)
    palette[0] = 255
    palette[1 : count + 1] = viz.phrase_colors(result.texts)
    stored = np.where(unassigned, 255, result.labels + 1).astype(np.uint8)
    return write_image(path, stored, palette=palette)


def segment_folder(
    segmenter: SketchSegmenter,
    folder: Path,
    texts: Sequence[str],
    output: Path,
    *,
    read: Callable[[Path], ImageArray],
    settings: dict[str, Any],
    isolate: Sequence[float] = (),
    overwrite: bool = False,
    num_workers: int = 2,
    stop: StopFlag | None = None,
    progress: Progress = silent,
    on_record: Callable[[Record], None] | None = None,
) -> FolderRun:
    """Segment every sketch below ``folder``, pictures and vector drawings; killed runs continue.

    Results of ``folder/a/b.png`` go to ``output/items/a/b.png/``: names cannot collide.

    Args:
        segmenter: Does the work.
        folder: Sketches, sub-folders included.
        texts: Categories.
        output: Result folder, see :func:`patchword.inference.output.open_output`.
        read: Reads one file.
        settings: What the results depend on; a later run continues only with the same.
        isolate: As :func:`save_sketch`.
        overwrite: Start over, replacing results of other settings.
        num_workers: Reading threads.
        stop: Ends the run after the current sketch.
        progress: Wraps the loop.
        on_record: Called with every record in order.

    Raises:
        DatasetError: The folder holds no sketches.
        ConfigError: The result folder is in use for something else.
        OutputError: Results cannot be written.
    """

    def start() -> Work:
        categories = segmenter.encode_texts(texts)

        def work(item: ImageItem, pixels: ImageArray) -> dict[str, Any]:
            result = segmenter.segment(pixels, categories)
            target = f"items/{item.key}"
            save_sketch(
                result,
                output / target,
                isolate=isolate,
                extra={"input": item.key},
                thumbnail=True,
                footer=item.key,
            )
            summary = sketch_summary(result)
            return {"output": target, **{k: summary[k] for k in ("size", "ink", "categories")}}

        return work

    return run_folder(
        folder,
        output,
        load=lambda item: read(item.path),
        start=start,
        lines=_lines,
        title="Sketches segmented",
        noun="sketches",
        settings=settings,
        suffixes=SUFFIXES,
        overwrite=overwrite,
        num_workers=num_workers,
        stop=stop,
        progress=progress,
        on_record=on_record,
    )


def _lines(record: Record) -> list[str]:
    best = sorted(record["categories"], key=lambda one: -one["share"])[:5]
    return [f"{100 * one['share']:.0f} %  {one['text'][:60]}" for one in best]
