# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures ranked by how surely each shares something with one query."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patchword.data.folders import ImageItem, count_images, iter_items
from patchword.data.io import MAX_PIXELS, read_image
from patchword.errors import DatasetError, OptionError
from patchword.inference.atomic import open_atomic, write_image, write_json
from patchword.inference.html import Card, write_pages
from patchword.inference.interrupt import StopFlag
from patchword.inference.journal import Journal, Record, key_digest
from patchword.inference.naming import slug
from patchword.inference.output import JOURNAL_FILE, open_output
from patchword.inference.progress import Progress, silent
from patchword.inference.runner import FolderRun, RunSummary, run_items
from patchword.inference.writers import SCHEMA_VERSION, save_match
from patchword.viz.masks import outline_box

if TYPE_CHECKING:
    from patchword.inference.cache import FeatureCache
    from patchword.structures import MatchResult

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]


class MatchesPictures(Protocol):
    """What a gallery run needs of a Matcher."""

    def extract(self, image: Any) -> Any:
        """Describe one picture."""
        ...

    def score(self, features0: Any, features1: Any, *, box0: Box | None = None) -> Any:
        """Tell quickly how well picture 0 is found in picture 1."""
        ...

    def match(self, image0: Any, image1: Any, *, box0: Box | None = None) -> MatchResult:
        """Find what two pictures or described pictures share."""
        ...


@dataclass(frozen=True)
class GalleryRun(FolderRun):
    """What a gallery run left.

    Attributes:
        hits: The best pictures, by the score of the full match: ``rank``, ``key``, ``score``,
            ``quick_score`` and ``output`` of each.
    """

    hits: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Candidate:
    """A picture to score: its stored descriptors, or its pixels and the key to store them under."""

    key: str | None = None
    pixels: NDArray[np.uint8] | None = None
    features: Any = None


def require_box_inside(box: Box | None, size: tuple[int, int]) -> None:
    """Refuse a box ``x0 y0 x1 y1`` in pixels that is empty or leaves a picture of ``size``.

    Raises:
        OptionError: With the box and the picture's size.
    """
    if box is None:
        return
    height, width = size
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise OptionError(
            f"match: box must have an area and lie inside the query of {width} x {height} pixels, "
            f"got x {x0:g} to {x1:g}, y {y0:g} to {y1:g}."
        )


def rank_gallery(
    matcher: MatchesPictures,
    query: Path,
    gallery: Path,
    output: Path,
    *,
    settings: dict[str, Any],
    box: Box | None = None,
    top: int = 10,
    cache: FeatureCache | None = None,
    overwrite: bool = False,
    num_workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    stop: StopFlag | None = None,
    progress: Progress = silent,
    on_record: Callable[[Record], None] | None = None,
) -> GalleryRun:
    """Score every picture below ``gallery`` against ``query`` and match the best ones in full.

    Every picture gets a quick score; the best ``top`` are matched in full and put in order of that
    surer score. Leaves ``ranking.jsonl`` (every picture by quick score), ``ranking.json`` (counts
    and hits), a folder per hit with the files of :func:`save_match`, and ``index.html``. The
    query's own file is passed over. Killed runs continue: scores come from the journal, finished
    hits stay.

    Args:
        matcher: Does the work on one pair.
        query: The picture to look for.
        gallery: Pictures to rank, sub-folders included.
        output: Result folder, see :func:`patchword.inference.output.open_output`.
        settings: What the scores depend on; a later run continues only with the same.
        box: Part of the query to look for, ``x0 y0 x1 y1`` in pixels, half-open.
        top: Number of hits matched in full.
        cache: Where descriptors of the gallery are kept for other queries.
        overwrite: Start over, replacing results of other settings.
        num_workers: Reading threads.
        max_pixels: Limit for :func:`patchword.data.read_image`.
        stop: Ends the run after the current picture.
        progress: Wraps the loop.
        on_record: Called with every score's record in order.

    Raises:
        DatasetError: The query cannot be read or the folder holds no pictures.
        OptionError: The box leaves the query or ``top`` is below 1.
        ConfigError: The result folder is in use for something else.
        OutputError: Results cannot be written.
    """
    if top < 1:
        raise OptionError(f"rank_gallery: top must be at least 1, got {top}.")
    stop = stop if stop is not None else StopFlag()
    pixels = read_image(query, max_pixels=max_pixels)
    require_box_inside(box, (pixels.shape[0], pixels.shape[1]))
    total = count_images(gallery, exclude=output)
    with (
        open_output(output, settings, inputs=(gallery,), overwrite=overwrite),
        Journal(output / JOURNAL_FILE) as journal,
    ):
        described = matcher.extract(pixels)

        def load(item: ImageItem) -> _Candidate:
            key = None if cache is None else cache.key(item.path)
            known = None if cache is None or key is None else cache.get(key)
            if known is not None:
                return _Candidate(features=known)
            return _Candidate(key, read_image(item.path, max_pixels=max_pixels))

        def work(item: ImageItem, candidate: _Candidate) -> dict[str, Any]:
            if candidate.features is not None:
                features = candidate.features.to(described.tokens.device)
            else:
                features = matcher.extract(candidate.pixels)
                if cache is not None and candidate.key is not None:
                    stored = cache.put(candidate.key, features)
                    features = stored.to(described.tokens.device)
            return {"score": float(matcher.score(described, features, box0=box))}

        own = query.resolve()
        summary = run_items(
            (i for i in iter_items(gallery, exclude=output) if i.path.resolve() != own),
            load=load,
            work=work,
            journal=journal,
            num_workers=num_workers,
            stop=stop,
            progress=progress,
            total=total,
            on_record=on_record,
        )
        hits: list[dict[str, Any]] = []
        for record in islice(journal.ranked(summary.seen, "score"), top):
            if stop:
                break
            hit = _hit(record)
            score = _written_score(output / hit["output"], record)
            if score is None:
                try:
                    candidate = read_image(gallery / record["key"], max_pixels=max_pixels)
                except DatasetError as error:
                    logger.warning("%s It was readable when it was scored.", error)
                    continue
                result = matcher.match(described, candidate, box0=box)
                footer = f"{query.name} and {record['key']}"
                note = {"input": record["key"], "stamp": record["stamp"]}
                save_match(
                    result, output / hit["output"], extra=note, thumbnail=True, footer=footer
                )
                score = float(result.score)
            hits.append({**hit, "score": score})
        hits.sort(key=lambda hit: (-hit["score"], -hit["quick_score"], hit["key"]))
        hits = [{"rank": rank, **hit} for rank, hit in enumerate(hits, 1)]
        if not stop:
            _drop_other_hits(output, {hit["output"] for hit in hits})
        _write_ranking(output, journal, hits, summary)
        shown = pixels if box is None else outline_box(pixels, box)
        write_image(output / "query.jpg", shown)
        index = _write_index(output, query, hits, summary)
    interrupted = summary.interrupted or bool(stop)
    return GalleryRun(replace(summary, interrupted=interrupted), output, index, tuple(hits))


def _hit(record: Record) -> dict[str, Any]:
    # The digest keeps hits of one stem apart, and a hit's folder the same whatever its rank.
    name = f"{slug(PurePosixPath(record['key']).stem)}-{key_digest(record['key']):016x}"
    return {"key": record["key"], "quick_score": record["score"], "output": f"hits/{name}"}


def _written_score(folder: Path, record: Record) -> float | None:
    """Score of a hit that an earlier run finished, if the picture is still the same."""
    with suppress(OSError, ValueError, KeyError):
        note = json.loads((folder / "result.json").read_text("utf-8"))
        if note["input"] == record["key"] and note["stamp"] == record["stamp"]:
            return float(note["score"])
    return None


def _drop_other_hits(output: Path, kept: set[str]) -> None:
    """Remove hits of an earlier run that asked for more, or saw other pictures."""
    with suppress(FileNotFoundError):
        for path in (output / "hits").iterdir():
            if f"hits/{path.name}" not in kept:
                shutil.rmtree(path, ignore_errors=True)


def _write_ranking(
    output: Path, journal: Journal, hits: list[dict[str, Any]], summary: RunSummary
) -> None:
    with open_atomic(output / "ranking.jsonl") as file:
        for rank, record in enumerate(journal.ranked(summary.seen, "score"), 1):
            entry = {"rank": rank, "key": record["key"], "score": record["score"]}
            file.write(json.dumps(entry).encode() + b"\n")
    write_json(
        output / "ranking.json",
        {
            "schema_version": SCHEMA_VERSION,
            "complete": not summary.interrupted,
            "ranked": summary.done + summary.reused,
            "failed": summary.failed,
            "hits": hits,
        },
    )


def _write_index(
    output: Path, query: Path, hits: list[dict[str, Any]], summary: RunSummary
) -> Path:
    def cards() -> Iterator[Card]:
        yield Card(f"query: {query.name}", [], image="query.jpg", link="query.jpg")
        for hit in hits:
            folder = hit["output"]
            facts = [f"rank {hit['rank']}, score {hit['score']:.3f}"]
            yield Card(hit["key"], facts, f"{folder}/thumb.jpg", f"{folder}/overlay.png")
        for key, message in summary.failures:
            yield Card(key, [message])

    count = summary.done + summary.reused
    lead = f"best {len(hits)} of {count} pictures, {summary.failed} could not be read"
    return write_pages(output, f"Pictures like {query.name}", lead, cards())
