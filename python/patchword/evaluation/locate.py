# SPDX-License-Identifier: Apache-2.0
"""How right ``locate`` is on captioned photographs, some of them with object masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from patchword.data.io import read_image
from patchword.errors import DatasetError
from patchword.evaluation.report import (
    MAX_EXAMPLES,
    EvaluationReport,
    Progress,
    Record,
    beside,
    read_index,
    read_mask,
    silent,
    tint,
)
from patchword.localization import Localizer
from patchword.metrics import average_precision, pointing_hit, recall_at, true_ranks
from patchword.structures import ImageArray

PROTOCOL = (
    "Photographs with a mask: the phrase is the record's class word, the answer its heat map. "
    "pointing: share whose largest value lies on the object. ap: average precision over all "
    "pixels against the mask, mean over photographs. All photographs with a caption: every caption "
    "ranks all photographs with Localizer.caption_scores; r1, r5, r10: share whose own photograph "
    "is among the first 1, 5, 10; median_rank: its median rank."
)


def evaluate_locate(
    data_dir: str | Path, *, localizer: Localizer | None = None, progress: Progress = silent
) -> EvaluationReport:
    """Measure heat maps against masks and captions against photographs.

    Args:
        data_dir: Folder whose ``index.json`` lists records with ``image``, and ``class`` and
            ``mask``, or ``caption``, or all three.
        localizer: What is measured; the default one when None.
        progress: Wraps the loop over photographs.

    Raises:
        DatasetError: The folder is not laid out so, or a picture cannot be read.
    """
    return evaluate_locate_folders([data_dir], localizer=localizer, progress=progress)


def evaluate_locate_folders(
    data_dirs: list[str | Path], *, localizer: Localizer | None = None, progress: Progress = silent
) -> EvaluationReport:
    """As :func:`evaluate_locate`, with the photographs of several folders in one gallery."""
    entries = []
    for folder in data_dirs:
        for record in read_index(folder):
            if "image" not in record or not {"caption", "mask"} & record.keys():
                raise DatasetError(
                    f"evaluate_locate: records of {folder} must have image, and caption or mask, "
                    f"got {', '.join(sorted(record))}.",
                    path=folder,
                )
            entries.append((Path(folder), record))
    chosen = localizer if localizer is not None else Localizer()
    items: list[Record] = []
    examples: list[ImageArray] = []
    gallery: list[Tensor] = []
    captions: list[str] = []
    for folder, record in progress(entries, total=len(entries)):
        image = read_image(folder / str(record["image"]))
        scene = chosen.extract(image)
        item: Record = {"name": str(record["image"])}
        if record.get("mask"):
            mask = read_mask(folder / str(record["mask"]), (image.shape[0], image.shape[1]))
            result = chosen.locate(scene, [str(record["class"])])
            item["class"] = str(record["class"])
            item["pointing"] = pointing_hit(result.heatmaps[0], mask)
            item["ap"] = average_precision(result.heatmaps[0], mask)
            item["score"] = float(result.scores[0])
            if len(examples) < MAX_EXAMPLES:
                examples.append(beside(image, tint(image, result.heatmaps[0])))
        if record.get("caption"):
            item["caption"] = str(record["caption"])
            captions.append(item["caption"])
            # Logits alone are kept, so that memory does not grow with whole feature maps.
            gallery.append(scene.logits)
        items.append(item)
    metrics = _mask_metrics(items)
    if len(gallery) > 1:
        scores = chosen.caption_scores(gallery, captions).cpu().numpy()
        ranks = true_ranks(scores, np.arange(len(captions)))
        captioned = [item for item in items if "caption" in item]
        for item, rank in zip(captioned, ranks, strict=True):
            item["rank"] = int(rank)
        metrics |= {f"r{k}": recall_at(ranks, k) for k in (1, 5, 10)}
        metrics |= {"median_rank": float(np.median(ranks)), "gallery": float(len(gallery))}
    return EvaluationReport(metrics, items, PROTOCOL, tuple(examples))


def _mask_metrics(items: list[Record]) -> dict[str, float]:
    masked = [item for item in items if "ap" in item]
    if not masked:
        return {}
    return {
        "pointing": float(np.mean([item["pointing"] for item in masked])),
        "ap": float(np.mean([item["ap"] for item in masked])),
        "masked": float(len(masked)),
    }
