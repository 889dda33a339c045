# SPDX-License-Identifier: Apache-2.0
"""The localised baseline: a query's cells slid over artworks at several scales, no transformer.

This is the protocol of the work that the artworks' annotation comes from (ArtMiner, Shen et al.,
CVPR 2019): cosine similarity, seven scales, the best places of each query over all artworks, a hit
where a predicted box overlaps a true one that no earlier prediction found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from patchword.data.folders import list_images
from patchword.data.io import read_image
from patchword.evaluation import EvaluationReport
from patchword.structures import ImageArray
from patchword.systems.segswap.protocols.brueghel import DetailQuery
from patchword.systems.segswap.protocols.crops import STRIDE
from patchword.systems.segswap.protocols.measures import (
    average_precision,
    box_iou,
    localised_hits,
    mean_over_categories,
)
from patchword.systems.segswap.protocols.scorer import FeatureStore, Scorer, resize

Progress = Callable[..., Iterable[Any]]
FloatArray = npt.NDArray[np.float64]

SCALES = (80, 74, 68, 60, 49, 36, 20)
_CONTEXT = 4


@dataclass(frozen=True)
class SlidingOptions:
    """Settings of the baseline.

    Attributes:
        scales: Cells on the longest side of an artwork, one value a scale.
        query_cells: Cells on the longest side of a query.
        margin: Cells at the border of an artwork where no prediction may have its centre.
        predictions: Predictions kept for each query.
        overlap: Of two predictions in one artwork that overlap more, the better one stays.
    """

    scales: tuple[int, ...] = SCALES
    query_cells: int = 8
    margin: int = 5
    predictions: int = 1000
    overlap: float = 0.3


def slide(
    query: Tensor, scales: Sequence[Tensor], options: SlidingOptions
) -> tuple[FloatArray, FloatArray]:
    """Places in one artwork that look like the query.

    Args:
        query: Unit descriptors ``[C, h, w]`` of the query's cells.
        scales: Unit descriptors ``[C, H, W]`` of the artwork, one tensor a scale.
        options: See :class:`SlidingOptions`.

    Returns:
        Boxes ``[M, 4]`` as shares of the artwork's width and height, and their scores ``[M]`` in
        [-1, 1], best first, overlapping ones suppressed.
    """
    _, height, width = query.shape
    boxes, scores = [], []
    for maps in scales:
        rows, columns = maps.shape[1] - height + 1, maps.shape[2] - width + 1
        if rows < 1 or columns < 1:
            continue
        similarity = F.conv2d(maps[None], query[None])[0, 0] / (height * width)
        row, column = np.mgrid[:rows, :columns].reshape(2, -1)
        centre = np.stack([column + width / 2, row + height / 2])
        limit = np.array([[maps.shape[2]], [maps.shape[1]]])
        inside = ((centre >= options.margin) & (centre <= limit - options.margin)).all(axis=0)
        box = np.stack([column, row, column + width, row + height], axis=1).astype(np.float64)
        box /= np.array([maps.shape[2], maps.shape[1]] * 2)
        boxes.append(box[inside])
        scores.append(similarity.flatten().double().cpu().numpy()[inside])
    if not boxes:
        return np.zeros((0, 4)), np.zeros(0)
    return suppress(np.concatenate(boxes), np.concatenate(scores), options)


def suppress(
    boxes: FloatArray, scores: FloatArray, options: SlidingOptions
) -> tuple[FloatArray, FloatArray]:
    """Keep the best of overlapping boxes, greedily, best first."""
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(left) and len(kept) < options.predictions:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        left = left[box_iou(boxes[best], boxes[left]) <= options.overlap]
    return boxes[kept], scores[kept]


def query_descriptors(
    store: FeatureStore, path: Path, query: DetailQuery, options: SlidingOptions
) -> Tensor:
    """Descriptors ``[C, h, w]`` of a query's box, seen with some cells of its surroundings."""
    image = read_image(path)
    x0, y0, x1, y1 = query.box
    factor = options.query_cells * STRIDE / max(x1 - x0, y1 - y0)
    height, width = (max(1, round(side * factor / STRIDE)) for side in (y1 - y0, x1 - x0))
    # In pixels of the picture: one cell, and the box rounded to whole cells about its centre.
    cell = np.array([(x1 - x0) / width, (y1 - y0) / height])
    before = np.floor(np.minimum(np.array([x0, y0]) / cell, _CONTEXT)).astype(int)
    room = np.array([image.shape[1] - x1, image.shape[0] - y1])
    after = np.floor(np.minimum(room / cell, _CONTEXT)).astype(int)
    low = np.round(np.array([x0, y0]) - before * cell).astype(int)
    high = np.round(np.array([x1, y1]) + after * cell).astype(int)
    size = ((height + before[1] + after[1]) * STRIDE, (width + before[0] + after[0]) * STRIDE)

    def prepare() -> ImageArray:
        return resize(image[low[1] : high[1], low[0] : high[0]].copy(), size)

    maps = store.get(path, prepare, f"detail{query.box}{size}")
    return maps[:, before[1] : before[1] + height, before[0] : before[0] + width].contiguous()


def evaluate_sliding(
    scorer: Scorer,
    folder: Path,
    queries: Sequence[DetailQuery],
    options: SlidingOptions | None = None,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Run the baseline with a network's descriptors.

    Args:
        scorer: Only its descriptors are used.
        folder: The artworks.
        queries: See :func:`read_queries`.
        options: See :class:`SlidingOptions`.
        cache: Folder for descriptors.
        progress: Wraps the iteration over artworks.

    Raises:
        DatasetError: A picture is missing or cannot be read.
    """
    chosen = options if options is not None else SlidingOptions()
    store = FeatureStore(scorer, cache)
    wanted = [query_descriptors(store, folder / q.image, q, chosen) for q in queries]
    found: list[list[tuple[float, str, FloatArray]]] = [[] for _ in queries]
    paths = [path for path in list_images(folder) if path.parent == folder]
    show = progress if progress is not None else _silent
    for path in show(paths, total=len(paths)):
        image = read_image(path)
        pixels = np.array([image.shape[1], image.shape[0]] * 2, dtype=np.float64)
        maps = []
        for cells in chosen.scales:
            unit = cells / max(image.shape[:2])
            size = tuple(max(1, round(side * unit)) * STRIDE for side in image.shape[:2])
            maps.append(
                store.get(
                    path,
                    lambda image=image, size=size: resize(image, (size[0], size[1])),
                    f"scale{size}",
                )
            )
        for descriptors, query, list_of_hits in zip(wanted, queries, found, strict=True):
            if path.name == query.image:
                continue
            boxes, scores = slide(descriptors, maps, chosen)
            list_of_hits += [
                (float(score), path.name, box * pixels)
                for box, score in zip(boxes, scores, strict=True)
            ]
    return _report(queries, found, chosen)


def _report(
    queries: Sequence[DetailQuery],
    found: list[list[tuple[float, str, FloatArray]]],
    options: SlidingOptions,
) -> EvaluationReport:
    by_category: dict[str, list[float]] = {}
    per_item: list[dict[str, Any]] = []
    for query, hits in zip(queries, found, strict=True):
        best = sorted(hits, key=lambda hit: -hit[0])[: options.predictions]
        truth = [(name, box) for name, box in query.truth if name != query.image]
        relevant = localised_hits([(name, box) for _, name, box in best], truth)
        value = average_precision(relevant, len(truth))
        by_category.setdefault(query.category, []).append(value)
        per_item.append(
            {
                "category": query.category,
                "query": query.image,
                "ap": value if np.isfinite(value) else None,
            }
        )
    every = [value for values in by_category.values() for value in values]
    return EvaluationReport(
        metrics={
            "map_localised@0.3": mean_over_categories(by_category),
            "mean_ap_localised@0.3": mean_over_categories({"all": every}),
        },
        per_item=per_item,
        protocol="detail retrieval by cosine similarity of cells slid over artworks; IoU > 0.3",
    )


def _silent(iterable: Iterable[Any], *, total: int | None = None) -> Iterable[Any]:
    return iterable
