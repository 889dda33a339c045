# SPDX-License-Identifier: Apache-2.0
"""One-shot detail retrieval: a box in one artwork, all other artworks ranked by their score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from patchword.data.folders import list_images
from patchword.data.io import printable, read_image
from patchword.errors import ConfigError, DatasetError
from patchword.evaluation import EvaluationReport
from patchword.inference.atomic import open_atomic, write_json
from patchword.systems.segswap.protocols.crops import QueryCrop, query_crop
from patchword.systems.segswap.protocols.measures import (
    average_precision,
    localised_hits,
    mean_over_categories,
)
from patchword.systems.segswap.protocols.scorer import FeatureStore, Scorer, resize

FloatArray = npt.NDArray[np.float32]
Progress = Callable[..., Iterable[Any]]
Box = tuple[float, float, float, float]

PUBLISHED_IMAGES = 1587
_STRONG = 0.5


@dataclass(frozen=True)
class BrueghelOptions:
    """How the protocol runs; the defaults are the corrected form of the published one.

    Attributes:
        image_size: Side to which every artwork is squashed.
        query_size: Pixels of the longest side of a query box, see :func:`query_crop`.
        compat: The published rules: every axis of a query's picture enlarged to ``image_size``
            by itself (trap T21), true items counted by box although hits are counted by picture,
            the first 1587 pictures only (trap T19).
        filter_name: Pillow filter for the picture of a query: ``"bicubic"``, or ``"nearest"`` as
            it was before Pillow 7.
        chunk: Artworks held in memory at once; results are saved after each chunk.
        half: Keep cached descriptors in half precision.
    """

    image_size: int = 640
    query_size: int = 64
    compat: bool = False
    filter_name: Literal["bicubic", "nearest"] = "bicubic"
    chunk: int = 64
    half: bool = False


@dataclass(frozen=True)
class DetailQuery:
    """A detail to look for.

    Attributes:
        category: The detail's name.
        image: Name of the picture that the box is in.
        box: ``x0 y0 x1 y1`` in pixels of that picture.
        truth: Name and box of every other instance.
    """

    category: str
    image: str
    box: Box
    truth: tuple[tuple[str, Box], ...]


@dataclass(frozen=True)
class DetailScores:
    """Scores of every query with every artwork, in the order of the queries and of ``names``.

    Attributes:
        names: Names of the artworks, sorted.
        scores: ``[Q, N]``.
        boxes: ``[Q, N, 4]`` predicted box as shares of the artwork's width and height.
        centres: ``[Q, N, 2]`` mean predicted ``(x, y)``, as shares too.
    """

    names: tuple[str, ...]
    scores: FloatArray
    boxes: FloatArray
    centres: FloatArray


def read_queries(path: Path) -> list[DetailQuery]:
    """Read an annotation file of the published schema.

    Raises:
        DatasetError: It is missing, no JSON, or of another schema; the first fault is named.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"evaluate: {printable(path)} must be a readable JSON file, got {error}.", path=path
        ) from error
    queries = []
    try:
        for category, entries in content.items():
            for entry in entries:
                image, box = entry["query"]
                truth = tuple((str(name), _box(other)) for name, other in entry["gt"])
                queries.append(DetailQuery(str(category), str(image), _box(box), truth))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"evaluate: {printable(path)} must map each category to a list of "
            '{"query": [name, [x0, y0, x1, y1]], "gt": [[name, box], ...]}, '
            f"but entry {len(queries)} does not: {type(error).__name__} {error}.",
            path=path,
        ) from error
    if not queries:
        raise DatasetError(f"evaluate: {printable(path)} must hold a query, got none.", path=path)
    return queries


def _box(values: Any) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def score_details(
    scorer: Scorer,
    folder: Path,
    queries: list[DetailQuery],
    options: BrueghelOptions,
    *,
    cache: Path | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
    stop: Any = None,
) -> DetailScores:
    """Score every query with every artwork; a run that was stopped goes on where it was.

    Args:
        scorer: The network.
        folder: The artworks.
        queries: What to look for; their pictures must be among the artworks.
        options: See :class:`BrueghelOptions`.
        cache: Folder for descriptors of pictures, which later runs use again.
        work: Folder for the scores of finished chunks.
        progress: Wraps the iteration over artworks.
        stop: Truthy once the run shall stop after the current chunk.

    Raises:
        DatasetError: A picture is missing or cannot be read.
        KeyboardInterrupt: ``stop`` was set; finished chunks are saved.
    """
    paths = [path for path in list_images(folder) if path.parent == folder]
    if options.compat:
        paths = paths[:PUBLISHED_IMAGES]
    known = {path.name for path in paths}
    missing = sorted({query.image for query in queries} - known)
    if missing:
        raise DatasetError(
            f"evaluate: {printable(folder)} must hold every query's picture, "
            f"{len(missing)} are missing (first: {missing[0]}).",
            path=folder,
        )
    store = FeatureStore(scorer, cache, half=options.half)
    encoded = [_encode_query(store, folder / query.image, query, options) for query in queries]
    embedded = [(scorer.embed(descriptors), cells) for descriptors, cells in encoded]
    square = (options.image_size, options.image_size)
    chunks: list[dict[str, FloatArray]] = []
    starts = range(0, len(paths), options.chunk)
    show = progress if progress is not None else _silent
    for number, start in enumerate(show(starts, total=len(starts))):
        chosen = paths[start : start + options.chunk]
        kept = None if work is None else work / f"chunk_{number:05d}.npz"
        if kept is not None and kept.exists():
            with np.load(kept, allow_pickle=False) as arrays:
                chunks.append({name: arrays[name] for name in arrays.files})
            continue
        if stop:
            raise KeyboardInterrupt
        candidates = [
            store.get(
                path, lambda path=path: resize(read_image(path), square), f"squash{square[0]}"
            )
            for path in chosen
        ]
        chunk = _score_chunk(scorer, embedded, candidates)
        if kept is not None:
            with open_atomic(kept) as file:
                np.savez(file, **chunk)  # type: ignore[arg-type]
        chunks.append(chunk)
    joined = {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]}
    return DetailScores(tuple(path.name for path in paths), **joined)


def _encode_query(
    store: FeatureStore, path: Path, query: DetailQuery, options: BrueghelOptions
) -> tuple[Tensor, Tensor]:
    image = read_image(path)
    crop = query_crop(
        (image.shape[0], image.shape[1]),
        query.box,
        query_size=options.query_size,
        window_size=options.image_size,
        compat=options.compat,
    )
    x0, y0, x1, y1 = crop.window

    def prepare() -> Any:
        return resize(image, crop.resized, options.filter_name)[y0:y1, x0:x1].copy()

    settings = f"{crop.resized}{crop.window}{options.filter_name}"
    return store.get(path, prepare, settings), _query_cells(crop)


def _query_cells(crop: QueryCrop) -> Tensor:
    cells = torch.zeros(crop.grid, dtype=torch.bool)
    column0, row0, column1, row1 = crop.cells
    cells[row0:row1, column0:column1] = True
    return cells


def _score_chunk(
    scorer: Scorer, queries: list[tuple[Any, Tensor]], candidates: list[Tensor]
) -> dict[str, FloatArray]:
    scores, boxes, centres = [], [], []
    embedded = [scorer.embed(candidate) for candidate in candidates]
    for query, cells in queries:
        answer = scorer.score(query, cells, embedded)
        scores.append(answer.scores.float().cpu().numpy())
        points = answer.points.float().cpu().numpy()[:, cells.numpy()]  # [N, M, 2]
        weights = answer.masks.float().cpu().numpy()[:, cells.numpy()]  # [N, M]
        grids = np.array([candidate.shape[1:] for candidate in candidates], dtype=np.float32)
        boxes.append(_predicted_boxes(points, weights, grids))
        centres.append(points.mean(axis=1))
    return {
        "scores": np.stack(scores).astype(np.float32),
        "boxes": np.stack(boxes).astype(np.float32),
        "centres": np.stack(centres).astype(np.float32),
    }


def _predicted_boxes(points: FloatArray, weights: FloatArray, grids: FloatArray) -> FloatArray:
    """Box around the targets of the cells that count most, half a cell larger on every side."""
    strong = weights >= _STRONG * weights.max(axis=1, keepdims=True)
    low = np.where(strong[..., None], points, np.inf).min(axis=1)
    high = np.where(strong[..., None], points, -np.inf).max(axis=1)
    margin = 0.5 / grids[:, ::-1]
    box: FloatArray = np.concatenate([low - margin, high + margin], axis=1)
    return np.clip(box, 0, 1)


def measure_details(
    result: DetailScores,
    queries: list[DetailQuery],
    sizes: dict[str, tuple[int, int]],
    options: BrueghelOptions,
) -> EvaluationReport:
    """Turn scores into average precision by picture, and by picture and place.

    Args:
        result: Scores of every query with every artwork.
        queries: In the same order.
        sizes: ``(H, W)`` of the artworks that hold a true box.
        options: See :class:`BrueghelOptions`.
    """
    image_level: dict[str, list[float]] = {}
    localised: dict[str, list[float]] = {}
    per_item: list[dict[str, Any]] = []
    for row, query in enumerate(queries):
        order = _ranking(result, row, query)
        names = [result.names[i] for i in order]
        others = [(name, box) for name, box in query.truth if name != query.image]
        positives = {name for name, _ in (query.truth if options.compat else others)}
        total = len(query.truth) if options.compat else len(positives)
        by_picture = average_precision([name in positives for name in names], total)
        predicted = [
            (name, _in_pixels(result.boxes[row, i], sizes[name]))
            for i, name in zip(order, names, strict=True)
            if name in sizes
        ]
        found = dict(
            zip([name for name, _ in predicted], localised_hits(predicted, others), strict=True)
        )
        by_place = average_precision([found.get(name, False) for name in names], len(others))
        image_level.setdefault(query.category, []).append(by_picture)
        localised.setdefault(query.category, []).append(by_place)
        per_item.append(
            {
                "category": query.category,
                "query": query.image,
                "box": list(query.box),
                "ap_image_level": _json_number(by_picture),
                "ap_localised@0.3": _json_number(by_place),
            }
        )
    every = [value for values in localised.values() for value in values]
    metrics = {
        "map_image_level": mean_over_categories(image_level),
        "map_localised@0.3": mean_over_categories(localised),
        "mean_ap_localised@0.3": float(np.nanmean(every))
        if np.isfinite(every).any()
        else float("nan"),
        **{f"ap_{name}": float(np.nanmean(values)) for name, values in image_level.items()},
    }
    return EvaluationReport(
        metrics=metrics,
        per_item=per_item,
        protocol=(
            "one-shot detail retrieval; a hit is the right picture (image level), or also a box of "
            "IoU > 0.3 with a true one (localised); mean over categories of the mean over queries"
            + ("; published rules" if options.compat else "")
        ),
    )


def _ranking(result: DetailScores, row: int, query: DetailQuery) -> list[int]:
    order = np.argsort(-result.scores[row], kind="stable")
    return [int(i) for i in order if result.names[i] != query.image]


def _in_pixels(box: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    height, width = size
    out: npt.NDArray[np.float64] = box.astype(np.float64) * [width, height, width, height]
    return out


def _json_number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def coarse_predictions(
    result: DetailScores, queries: list[DetailQuery]
) -> dict[str, list[list[list[float]]]]:
    """Rankings in the published layout: centre, score, whether it is a true picture, and index."""
    out: dict[str, list[list[list[float]]]] = {}
    for row, query in enumerate(queries):
        positives = {name for name, _ in query.truth}
        rows = [
            [
                *(float(value) for value in result.centres[row, i]),
                float(result.scores[row, i]),
                float(result.names[i] in positives),
                float(i),
            ]
            for i in _ranking(result, row, query)
        ]
        out.setdefault(query.category, []).append(rows)
    return out


def evaluate_brueghel(
    scorer: Scorer,
    folder: Path,
    labels: Path,
    options: BrueghelOptions | None = None,
    *,
    cache: Path | None = None,
    work: Path | None = None,
    out_coarse: Path | None = None,
    progress: Progress | None = None,
    stop: Any = None,
) -> EvaluationReport:
    """Run the whole protocol.

    Args:
        scorer: The network.
        folder: The artworks.
        labels: Annotation file, see :func:`read_queries`.
        options: See :class:`BrueghelOptions`.
        cache: Folder for descriptors.
        work: Folder for finished chunks; one of other settings is refused.
        out_coarse: File for the rankings in the published layout.
        progress: Wraps the iteration over chunks.
        stop: Truthy once the run shall stop.

    Raises:
        DatasetError: Something cannot be read.
        ConfigError: ``work`` belongs to a run of other settings.
    """
    chosen = options if options is not None else BrueghelOptions()
    queries = read_queries(labels)
    if work is not None:
        settings = {
            **asdict(chosen),
            "scorer": scorer.fingerprint(),
            "folder": str(folder.resolve()),
            "queries": [asdict(query) for query in queries],
        }
        claim_work(work, settings)
    result = score_details(
        scorer, folder, queries, chosen, cache=cache, work=work, progress=progress, stop=stop
    )
    needed = {name for query in queries for name, _ in query.truth} & set(result.names)
    sizes = {name: read_image(folder / name).shape[:2] for name in sorted(needed)}
    if out_coarse is not None:
        write_json(out_coarse, coarse_predictions(result, queries))
    return measure_details(result, queries, sizes, chosen)


def claim_work(work: Path, settings: dict[str, Any]) -> None:
    """Note the settings of a run in its folder, or check that they are the same as before.

    Raises:
        ConfigError: The folder belongs to a run of other settings.
    """
    text = json.loads(json.dumps(settings))
    path = work / "settings.json"
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        changed = sorted(k for k in {*before, *text} if before.get(k) != text.get(k))
        if changed:
            raise ConfigError(
                f"evaluate: {printable(work)} holds a run of other settings (different: "
                f"{', '.join(changed)}). Choose another folder with -o."
            )
        return
    write_json(path, text)


def _silent(iterable: Iterable[Any], *, total: int | None = None) -> Iterable[Any]:
    return iterable
