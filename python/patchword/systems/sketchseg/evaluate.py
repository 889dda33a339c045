# SPDX-License-Identifier: Apache-2.0
"""The protocol for labelled sketches: ink pixels, categories given or the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from patchword.errors import DatasetError, OptionError
from patchword.evaluation.report import EvaluationReport, Progress, Record, silent
from patchword.metrics.label_maps import (
    confusion_matrix,
    confusion_scores,
    mean_iou,
    pixel_accuracy,
    region_votes,
)
from patchword.structures import ImageArray
from patchword.systems.sketchseg.data import LabelledSketch, read_all_classes, read_labelled
from patchword.systems.sketchseg.rasters import label_raster


class Segmenter(Protocol):
    """What is measured, such as a :class:`~.inference.SketchSegmenter`."""

    def segment(self, sketch: ImageArray, texts: Sequence[str]) -> Segmented:
        """Label the ink of a sketch."""
        ...


class Segmented(Protocol):
    """Labels ``[H, W]``: places in the list of words, -1 where none fits."""

    @property
    def labels(self) -> NDArray[np.int16]:
        """The labels."""
        ...


Vocabulary = Literal["given", "full"]

PROTOCOL = (
    "Strokes drawn 3 pixels wide at 512 x 512; only ink counts. {vocabulary} "
    "pixel_accuracy, stroke_accuracy (a stroke has the most frequent label of its pixels) and "
    "miou_per_sketch (mean over the classes in truth or prediction of a sketch) are means over "
    "sketches, as published. The values that end in _dataset come from one confusion matrix over "
    "all ink pixels: pixel_accuracy, class_accuracy (mean over classes), miou and fwiou "
    "(weighted by frequency)."
)
_VOCABULARIES: dict[Vocabulary, str] = {
    "given": "The categories of each sketch are given to the model, as published.",
    "full": "The model chooses among all classes of the data set.",
}


def evaluate_sketches(
    data_dir: str | Path,
    segmenter: Segmenter,
    *,
    vocabulary: Vocabulary = "given",
    limit: int | None = None,
    compat: bool = False,
    progress: Progress = silent,
) -> EvaluationReport:
    """Measure label maps on a test folder laid out like FS-COCO.

    Args:
        data_dir: Folder with ``vector_sketches``, ``classes`` and ``all_classes.json``.
        segmenter: What is measured.
        vocabulary: ``"given"`` or ``"full"``.
        limit: Only so many sketches, the first by name.
        compat: Read and draw strokes as the published code does, see :mod:`.data` and
            :mod:`.rasters`.
        progress: Wraps the loop over sketches.

    Raises:
        OptionError: ``vocabulary`` is unknown or ``limit`` is not positive.
        DatasetError: The folder is not laid out so, or a record cannot be read.
    """
    if vocabulary not in get_args(Vocabulary):
        raise OptionError(
            f'evaluate_sketches: vocabulary must be "given" or "full", got {vocabulary!r}.'
        )
    if limit is not None and limit < 1:
        raise OptionError(f"evaluate_sketches: limit must be at least 1, got {limit}.")
    names = read_all_classes(data_dir)
    index = {name: place for place, name in enumerate(names, start=1)}
    sketches = list(read_labelled(data_dir, compat=compat))[:limit]
    items: list[Record] = []
    confusion = np.zeros((len(names), len(names) + 1), dtype=np.int64)
    for sketch in progress(sketches, total=len(sketches)):
        unknown = sorted(set(sketch.labels) - index.keys())
        if unknown:
            raise DatasetError(
                f"evaluate_sketches: labels of {sketch.key} must be in all_classes.json, got "
                f"{unknown[0]!r}.",
                path=data_dir,
                record=sketch.key,
            )
        words = sketch.categories() if vocabulary == "given" else names
        item, counts = _measure(sketch, segmenter, words, index, compat)
        items.append(item)
        confusion += counts
    means = {
        name: float(np.mean([item[name] for item in items]))
        for name in ("pixel_accuracy", "stroke_accuracy", "miou_per_sketch")
    }
    whole = {f"{name}_dataset": value for name, value in confusion_scores(confusion).items()}
    return EvaluationReport(
        {**means, **whole, "sketches": float(len(items))},
        items,
        PROTOCOL.format(vocabulary=_VOCABULARIES[vocabulary]),
    )


def _measure(
    sketch: LabelledSketch,
    segmenter: Segmenter,
    words: Sequence[str],
    index: dict[str, int],
    compat: bool,
) -> tuple[Record, NDArray[np.int64]]:
    rasters = sketch.rasters(compat=compat)
    numbers = [index[label] for label in sketch.labels]
    truth = label_raster(rasters, numbers)
    picture = np.where(truth[..., None] > 0, np.uint8(0), np.uint8(255)).repeat(3, axis=2)
    places = np.array([0, *(index[word] for word in words)])
    labels = segmenter.segment(picture, words).labels.astype(np.int64)
    given = np.where(truth > 0, places[labels + 1], 0)
    votes = region_votes(given, rasters)
    item: Record = {
        "name": sketch.key,
        "categories": len(sketch.categories()),
        "pixel_accuracy": pixel_accuracy(truth, given),
        "stroke_accuracy": float(np.mean([a == b for a, b in zip(votes, numbers, strict=True)])),
        "miou_per_sketch": mean_iou(truth, given),
    }
    return item, confusion_matrix(truth, given, len(index))
