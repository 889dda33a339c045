# SPDX-License-Identifier: Apache-2.0
"""How right ``match`` is on pairs whose true correspondences are known."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from patchword.data.io import read_image
from patchword.errors import DatasetError
from patchword.evaluation.report import (
    MAX_EXAMPLES,
    EvaluationReport,
    Progress,
    Record,
    beside,
    matrix,
    read_index,
    read_mask,
    silent,
    tint,
)
from patchword.geometry import Matrix, from_index_coordinates, warp_points
from patchword.matching import Matcher
from patchword.metrics import area_under_curve, average_precision, matching_accuracy
from patchword.structures import FloatArray, ImageArray

# Points on which the dense field is read, whatever grid the backbone has.
LATTICE_STEP = 16

_POINTS = (
    "Points of picture a every 16 pixels from (8, 8) whose true place lies inside picture b; for "
    "each, the dense field of Matcher.match_dense says where it is in b. "
)
HOMOGRAPHY_PROTOCOL = (
    _POINTS + "nn_accuracy: share within 16 pixels, mean over pairs; also per level or per pair."
)
OBJECT_PROTOCOL = (
    _POINTS + "Only points inside the object count. nn_accuracy: share within 20 pixels, mean over "
    "pairs. ap: average precision over all pixels of MatchResult.mask0 and mask1 against the "
    "object's masks, mean of both pictures, mean over pairs. iou: intersection over union of the "
    "masks above one half with the object's, the same means. auc: probability that a pair scores "
    "above a picture a with a picture b of another pair, leaving out pairings that name the same "
    "object or a common background."
)


def evaluate_match(
    data_dir: str | Path,
    *,
    matcher: Matcher | None = None,
    apart: int = 0,
    progress: Progress = silent,
) -> EvaluationReport:
    """Measure correspondences, and shared-region masks where the folder has them.

    The folder's ``index.json`` tells the protocol: records with ``H_a_to_b`` are pairs under a
    homography, records with ``affine_a_to_b`` pairs that share one object with masks ``mask_a``
    and ``mask_b``. Truth is only used to score answers.

    Args:
        data_dir: Labelled folder.
        matcher: What is measured; the training-free one when None.
        apart: With objects: pairings of each picture a with pictures b of other pairs, for the
            metric ``auc``; 0 leaves it out.
        progress: Wraps the loop over pairs.

    Raises:
        DatasetError: The folder is not laid out so, or a picture cannot be read.
    """
    records = read_index(data_dir)
    first = records[0]
    if not {"a", "b"} <= first.keys() or not {"H_a_to_b", "affine_a_to_b"} & first.keys():
        raise DatasetError(
            f"evaluate_match: records of {data_dir} must have a, b and H_a_to_b or affine_a_to_b, "
            f"got {', '.join(sorted(first))}.",
            path=data_dir,
        )
    chosen = matcher if matcher is not None else Matcher()
    shares_object = "affine_a_to_b" in first
    measure = _measure_object if shares_object else _measure_homography
    items: list[Record] = []
    examples: list[ImageArray] = []
    for record in progress(records, total=len(records)):
        item, example = measure(Path(data_dir), record, chosen)
        items.append(item)
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)
    metrics = _means(items)
    if shares_object and apart > 0:
        others = [
            matcher_score(chosen, Path(data_dir), records[first], records[second])
            for first, second in apart_pairings(records, apart)
        ]
        metrics["auc"] = area_under_curve([item["score"] for item in items], others)
    protocol = OBJECT_PROTOCOL if shares_object else HOMOGRAPHY_PROTOCOL
    return EvaluationReport(metrics, items, protocol, tuple(examples))


def _measure_homography(
    folder: Path, record: Record, matcher: Matcher
) -> tuple[Record, ImageArray]:
    image0, image1 = _read_pair(folder, record)
    homography = from_index_coordinates(matrix(record, "H_a_to_b", 3, folder))
    points, truth = visible_points(homography, _size(image0), _size(image1))
    result, found = matcher.match_dense(image0, image1)
    item: Record = {
        "name": str(record.get("name", record["a"])),
        "level": record.get("level"),
        "points": len(points),
        "nn_accuracy": matching_accuracy(found.at(points), truth, within=16.0),
    }
    item["score"] = result.score
    return item, beside(tint(image0, result.mask0), tint(image1, result.mask1))


def _measure_object(folder: Path, record: Record, matcher: Matcher) -> tuple[Record, ImageArray]:
    image0, image1 = _read_pair(folder, record)
    mask0 = read_mask(folder / str(record["mask_a"]), _size(image0))
    mask1 = read_mask(folder / str(record["mask_b"]), _size(image1))
    affine = np.vstack([matrix(record, "affine_a_to_b", 2, folder), [0.0, 0.0, 1.0]])
    points, truth = visible_points(from_index_coordinates(affine), _size(image0), _size(image1))
    inside = mask0[points[:, 1].astype(int), points[:, 0].astype(int)]
    points, truth = points[inside], truth[inside]
    result, found = matcher.match_dense(image0, image1)
    item: Record = {
        "name": str(record.get("name", record["a"])),
        "class": record.get("class"),
        "points": len(points),
        "nn_accuracy": matching_accuracy(found.at(points), truth, within=20.0),
        "ap0": average_precision(result.mask0, mask0),
        "ap1": average_precision(result.mask1, mask1),
        "iou0": _overlap(result.mask0, mask0),
        "iou1": _overlap(result.mask1, mask1),
        "score": result.score,
    }
    item["iou"] = (item["iou0"] + item["iou1"]) / 2
    item["ap"] = (item["ap0"] + item["ap1"]) / 2
    return item, beside(tint(image0, result.mask0), tint(image1, result.mask1))


def apart_pairings(records: list[Record], count: int) -> list[tuple[int, int]]:
    """Numbers of records whose pictures a and b share nothing by their descriptions.

    Args:
        records: With ``object``, ``background_a`` and ``background_b``, as far as they are known.
        count: Pairings of each picture a, with the records that follow it.
    """
    found = []
    for first, record in enumerate(records):
        others = [
            (first + step) % len(records)
            for step in range(1, len(records))
            if not _shares(record, records[(first + step) % len(records)])
        ]
        found += [(first, second) for second in others[:count]]
    return found


def matcher_score(matcher: Matcher, folder: Path, first: Record, second: Record) -> float:
    """Score of picture a of one record and picture b of another."""
    image0, image1 = read_image(folder / str(first["a"])), read_image(folder / str(second["b"]))
    return matcher.pair_score(image0, image1)


def _shares(first: Record, second: Record) -> bool:
    if "object" in first and first["object"] == second.get("object"):
        return True
    backgrounds = [
        {record[name] for name in ("background_a", "background_b") if name in record}
        for record in (first, second)
    ]
    return bool(backgrounds[0] & backgrounds[1])


def _overlap(mask: FloatArray, truth: npt.NDArray[np.bool_]) -> float:
    """Intersection over union of a soft mask above one half."""
    found = mask > 0.5
    return float((found & truth).sum() / max(1, (found | truth).sum()))


def visible_points(
    homography: Matrix, size0: tuple[int, int], size1: tuple[int, int]
) -> tuple[Matrix, Matrix]:
    """Lattice points ``[M, 2]`` of picture 0 that picture 1 shows, and their true places there."""
    rows, columns = np.mgrid[
        LATTICE_STEP / 2 : size0[0] : LATTICE_STEP, LATTICE_STEP / 2 : size0[1] : LATTICE_STEP
    ]
    points = np.stack([columns, rows], axis=-1).reshape(-1, 2)
    truth = warp_points(homography, points)
    visible = (truth >= 0).all(axis=1) & (truth < np.array(size1[::-1])).all(axis=1)
    return points[visible], truth[visible]


def _read_pair(folder: Path, record: Record) -> tuple[ImageArray, ImageArray]:
    return read_image(folder / str(record["a"])), read_image(folder / str(record["b"]))


def _size(image: ImageArray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _means(items: list[Record]) -> dict[str, float]:
    """Means over pairs of every number, then accuracy per level, or per pair where none is set."""
    metrics: dict[str, float] = {}
    for key in ("nn_accuracy", "ap", "ap0", "ap1", "iou", "score"):
        values = [item[key] for item in items if key in item]
        if values:
            metrics[key] = float(np.nanmean(values))
    groups: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        if "ap" not in item:
            groups[str(item["level"] or item["name"])].append(item["nn_accuracy"])
    for group, values in groups.items():
        metrics[f"nn_accuracy_{group}"] = float(np.nanmean(values))
    return metrics
