# SPDX-License-Identifier: Apache-2.0
"""Numbers of the retrieval protocols, from rankings; no pictures and no networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from patchword.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

RECALL_AT = (1, 5, 10, 100)
METRES = 25.0


def average_precision(relevant: Sequence[bool] | npt.ArrayLike, total: int) -> float:
    """Sum over hits of the precision at their rank, divided by the number of true items.

    Args:
        relevant: For each rank whether a true item stands there.
        total: True items there are; those that are not in the ranking count as missed.

    Returns:
        A number in [0, 1]; NaN where ``total`` is 0.
    """
    hits = np.asarray(relevant, dtype=bool)
    if total == 0:
        return float("nan")
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / total)


def mean_over_categories(values: Mapping[str, Sequence[float]]) -> float:
    """Mean over categories of the mean over their queries; queries without a value are left out."""
    means = [np.nanmean(scores) for scores in values.values() if np.isfinite(scores).any()]
    return float(np.mean(means)) if means else float("nan")


def recalls(
    rankings: Sequence[IntArray],
    query_places: npt.ArrayLike,
    database_places: npt.ArrayLike,
    at: Sequence[int] = RECALL_AT,
    metres: float = METRES,
) -> dict[int, float]:
    """Share of queries with a database picture near enough among the first N.

    Args:
        rankings: Database indices of each query, best first.
        query_places: ``[Q, 2]`` in metres.
        database_places: ``[N, 2]`` in metres.
        at: The values of N.
        metres: Largest distance that counts, itself included.

    Raises:
        ShapeError: The number of places differs from the number of rankings.
    """
    here = np.asarray(query_places, dtype=np.float64)
    there = np.asarray(database_places, dtype=np.float64)
    if len(here) != len(rankings) or here.ndim != 2 or there.ndim != 2:
        raise ShapeError(
            f"recalls: query_places must be [{len(rankings)}, 2] and database_places [N, 2], got "
            f"{list(here.shape)} and {list(there.shape)}."
        )
    first_hit = []
    for place, ranking in zip(here, rankings, strict=True):
        order = np.asarray(ranking)[: max(at)]
        near = np.linalg.norm(there[order] - place, axis=1) <= metres
        first_hit.append(int(near.argmax()) + 1 if near.any() else np.inf)
    ranks = np.asarray(first_hit)
    return {n: float((ranks <= n).mean()) if len(ranks) else float("nan") for n in at}


def keep_first_of_groups(ranking: npt.ArrayLike, group_size: int = 12) -> IntArray:
    """Keep of each group of neighbouring database indices (views of one place) the best ranked."""
    order = np.asarray(ranking, dtype=np.int64)
    _, first = np.unique(order // group_size, return_index=True)
    kept: IntArray = order[np.sort(first)]
    return kept


def box_iou(box: npt.ArrayLike, others: npt.ArrayLike) -> FloatArray:
    """Intersection over union of one box with ``[M, 4]`` others, ``x0 y0 x1 y1``."""
    a = np.asarray(box, dtype=np.float64)
    b = np.asarray(others, dtype=np.float64).reshape(-1, 4)
    low, high = np.maximum(a[:2], b[:, :2]), np.minimum(a[2:], b[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = np.prod(a[2:] - a[:2]) + (b[:, 2:] - b[:, :2]).prod(axis=1)
    union = areas - shared
    out: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return out


def localised_hits(
    predictions: Sequence[tuple[str, npt.ArrayLike]],
    truth: Sequence[tuple[str, npt.ArrayLike]],
    iou: float = 0.3,
) -> list[bool]:
    """For each prediction, best first, whether it finds a true box that none before it found.

    Args:
        predictions: Name of the picture and box.
        truth: Name of the picture and box of every true instance.
        iou: A prediction counts above this overlap.
    """
    found = [False] * len(truth)
    by_picture: dict[str, list[int]] = {}
    for i, (name, _) in enumerate(truth):
        by_picture.setdefault(name, []).append(i)
    hits = []
    for name, box in predictions:
        free = [i for i in by_picture.get(name, []) if not found[i]]
        overlaps = box_iou(box, np.asarray([truth[i][1] for i in free], dtype=np.float64))
        best = int(overlaps.argmax()) if free else -1
        hit = best >= 0 and bool(overlaps[best] > iou)
        if hit:
            found[free[best]] = True
        hits.append(hit)
    return hits
