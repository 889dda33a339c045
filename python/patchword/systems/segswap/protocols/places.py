# SPDX-License-Identifier: Apache-2.0
"""Place recognition: the first candidates of another method's ranking, put in order again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from patchword.data.io import printable, read_image
from patchword.errors import DatasetError
from patchword.evaluation import EvaluationReport
from patchword.inference.atomic import open_atomic
from patchword.systems.segswap.protocols.brueghel import claim_work
from patchword.systems.segswap.protocols.measures import (
    RECALL_AT,
    keep_first_of_groups,
    recalls,
)
from patchword.systems.segswap.protocols.scorer import (
    FeatureStore,
    Normalisation,
    Scorer,
    resize,
)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Progress = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class PlacesOptions:
    """How the protocol runs; the defaults are the corrected form of the published one.

    Attributes:
        image_size: ``(H, W)`` to which every picture is squashed.
        rerank: Candidates of each query that are put in order again.
        group_size: Database pictures of one position, which stand together; 1 where there are
            none. The ranking is then also measured with the best of each group only.
        compat: Candidates are normalised as the published evaluation does it, queries correctly
            (trap T1).
        half: Keep cached descriptors in half precision.
    """

    image_size: tuple[int, int] = (480, 640)
    rerank: int = 100
    group_size: int = 1
    compat: bool = False
    half: bool = False


@dataclass(frozen=True)
class PlacesData:
    """Lists of one benchmark.

    Attributes:
        queries: Paths of the query pictures.
        database: Paths of the database pictures.
        query_places: ``[Q, 2]`` in metres.
        database_places: ``[N, 2]`` in metres.
        first: For each query its candidates by the other method, best first.
    """

    queries: tuple[Path, ...]
    database: tuple[Path, ...]
    query_places: FloatArray
    database_places: FloatArray
    first: tuple[IntArray, ...]


def read_places(
    lists: Path, query_folder: Path, database_folder: Path, ranking: Path, *, prefix: str = ""
) -> PlacesData:
    """Read the published lists.

    Args:
        lists: Folder with ``{prefix}qry_list.npy``, ``{prefix}qry_utm.npy`` and the two ``db``
            files. A list may also be a text file, ``{prefix}qry_list.txt``, one path a line.
        query_folder: Where the query paths start.
        database_folder: Where the database paths start.
        ranking: ``.npy`` file of the other method: real numbers ``[Q, N]``, larger is better, or
            whole numbers ``[Q, K]``, database indices with the best first.
        prefix: Of the file names, ``"pitts_test_"`` for Pitts30K.

    Raises:
        DatasetError: A file is missing, needs pickle, or does not fit the others.
    """
    names = {kind: _read_list(lists, f"{prefix}{kind}_list") for kind in ("qry", "db")}
    places = {
        kind: np.asarray(_load(lists / f"{prefix}{kind}_utm.npy"), dtype=np.float64)
        for kind in ("qry", "db")
    }
    for kind, words in (("qry", "query"), ("db", "database")):
        if places[kind].shape != (len(names[kind]), 2):
            raise DatasetError(
                f"evaluate: {prefix}{kind}_utm.npy must be [{len(names[kind])}, 2], one row a "
                f"{words} picture, got {list(places[kind].shape)}.",
                path=lists,
            )
    first = _candidates(_load(ranking, mapped=True), len(names["qry"]), len(names["db"]), ranking)
    return PlacesData(
        tuple(query_folder / name for name in names["qry"]),
        tuple(database_folder / name for name in names["db"]),
        places["qry"],
        places["db"],
        first,
    )


def _load(path: Path, *, mapped: bool = False) -> npt.NDArray[Any]:
    try:
        out: npt.NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
    except OSError as error:
        raise DatasetError(
            f"evaluate: {printable(path)} must be a readable .npy file, got "
            f"{error.strerror or error}.",
            path=path,
        ) from error
    except ValueError as error:
        raise DatasetError(
            f"evaluate: {printable(path)} must be a plain .npy array; one of pickled objects may "
            f"run code and is not opened ({error}). Save a list as text, one path a line.",
            path=path,
        ) from error
    return out


def _read_list(folder: Path, stem: str) -> list[str]:
    text = folder / f"{stem}.txt"
    if text.exists():
        return [line for line in text.read_text("utf-8").splitlines() if line]
    return [str(name) for name in _load(folder / f"{stem}.npy").ravel()]


def _candidates(
    table: npt.NDArray[Any], queries: int, database: int, path: Path
) -> tuple[IntArray, ...]:
    if table.ndim != 2 or table.shape[0] != queries:
        raise DatasetError(
            f"evaluate: {printable(path)} must have {queries} rows, one a query, got shape "
            f"{list(table.shape)}.",
            path=path,
        )
    if np.issubdtype(table.dtype, np.integer):
        if table.size and not (table.min() >= 0 and table.max() < database):
            raise DatasetError(
                f"evaluate: {printable(path)} must hold indices below {database}, got "
                f"{table.min()} to {table.max()}.",
                path=path,
            )
        return tuple(np.asarray(row, dtype=np.int64) for row in table)
    if table.shape[1] != database:
        raise DatasetError(
            f"evaluate: {printable(path)} must have {database} columns of scores, one a database "
            f"picture, or be whole numbers (indices), got {table.shape[1]} of {table.dtype}.",
            path=path,
        )
    return tuple(np.argsort(-np.asarray(row, dtype=np.float64), kind="stable") for row in table)


def rerank(
    scorer: Scorer,
    data: PlacesData,
    options: PlacesOptions,
    *,
    cache: Path | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
    stop: Any = None,
) -> tuple[IntArray, ...]:
    """Put the first candidates of every query in order by matching score.

    Raises:
        DatasetError: A picture cannot be read.
        KeyboardInterrupt: ``stop`` was set; queries that were done are saved.
    """
    store = FeatureStore(scorer, cache, half=options.half)
    size = options.image_size
    settings = f"squash{size}"
    candidates_as: Normalisation = "segswap_eval" if options.compat else "correct"
    out = []
    show = progress if progress is not None else _silent
    for number, path in enumerate(show(data.queries, total=len(data.queries))):
        head = data.first[number][: options.rerank]
        kept = None if work is None else work / f"query_{number:06d}.npy"
        if kept is not None and kept.exists():
            scores = np.load(kept, allow_pickle=False)
        else:
            if stop:
                raise KeyboardInterrupt
            query = store.get(path, lambda path=path: resize(read_image(path), size), settings)
            candidates = [
                store.get(
                    data.database[i],
                    lambda i=i: resize(read_image(data.database[i]), size),
                    settings,
                    candidates_as,
                )
                for i in head
            ]
            every = torch.ones(query.shape[1:], dtype=torch.bool)
            members = [scorer.embed(candidate) for candidate in candidates]
            answer = scorer.score(scorer.embed(query), every, members)
            scores = answer.scores.float().cpu().numpy()
            if kept is not None:
                with open_atomic(kept) as file:
                    np.save(file, scores)
        order = np.argsort(-scores, kind="stable")
        out.append(np.concatenate([head[order], data.first[number][options.rerank :]]))
    return tuple(out)


def measure_places(
    data: PlacesData, reranked: tuple[IntArray, ...], options: PlacesOptions
) -> EvaluationReport:
    """Recall at 1, 5, 10 and 100 within 25 m, before and after, with and without grouping."""
    rankings = {"initial": data.first, "reranked": reranked}
    if options.group_size > 1:
        rankings |= {
            f"{name}_grouped": tuple(keep_first_of_groups(r, options.group_size) for r in ranking)
            for name, ranking in list(rankings.items())
        }
    metrics = {
        f"{name}_recall@{n}": value
        for name, ranking in rankings.items()
        for n, value in recalls(ranking, data.query_places, data.database_places).items()
    }
    per_item = [
        {"query": path.name, "first": data.database[int(order[0])].name if len(order) else None}
        for path, order in zip(data.queries, reranked, strict=True)
    ]
    return EvaluationReport(
        metrics=metrics,
        per_item=per_item,
        protocol=(
            f"place recognition: the first {options.rerank} candidates of a given ranking put in "
            f"order by matching score; recall at {', '.join(map(str, RECALL_AT))} within 25 m"
            + ("; published normalisation of candidates" if options.compat else "")
        ),
    )


def evaluate_places(
    scorer: Scorer,
    data: PlacesData,
    options: PlacesOptions | None = None,
    *,
    cache: Path | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
    stop: Any = None,
) -> EvaluationReport:
    """Run the whole protocol, see :func:`rerank` and :func:`measure_places`.

    Raises:
        DatasetError: A picture cannot be read.
        ConfigError: ``work`` belongs to a run of other settings.
    """
    chosen = options if options is not None else PlacesOptions()
    if work is not None:
        claim_work(
            work,
            {
                **asdict(chosen),
                "scorer": scorer.fingerprint(),
                "queries": [str(path) for path in data.queries],
                "database": len(data.database),
            },
        )
    reranked = rerank(scorer, data, chosen, cache=cache, work=work, progress=progress, stop=stop)
    return measure_places(data, reranked, chosen)


def _silent(iterable: Iterable[Any], *, total: int | None = None) -> Iterable[Any]:
    return iterable
