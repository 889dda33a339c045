# SPDX-License-Identifier: Apache-2.0
"""Place recognition on a tiny benchmark in the published layout, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from retrieval_fakes import ColourScorer

from patchword.errors import DatasetError
from patchword.systems.segswap.protocols.places import (
    PlacesData,
    PlacesOptions,
    evaluate_places,
    read_places,
)

SMALL = PlacesOptions(image_size=(32, 32), rerank=2, group_size=2)
# Query 0 looks like database picture 2, which stands second in the given ranking.
QUERIES, DATABASE = (
    {"q0.png": 100, "q1.png": 50},
    {"d0.png": 20, "d1.png": 160, "d2.png": 101, "d3.png": 50},
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, pictures in (("queries", QUERIES), ("database", DATABASE)):
        (tmp_path / folder).mkdir()
        for name, grey in pictures.items():
            Image.fromarray(np.full((40, 40, 3), grey, np.uint8)).save(tmp_path / folder / name)
    np.save(tmp_path / "qry_list.npy", np.array(list(QUERIES)))
    np.save(tmp_path / "db_list.npy", np.array(list(DATABASE)))
    np.save(tmp_path / "qry_utm.npy", np.array([[0.0, 0.0], [1000.0, 0.0]]))
    np.save(tmp_path / "db_utm.npy", np.array([[500.0, 0], [500, 0], [0, 25], [1000, 20]]))
    scores = np.array([[0.1, 0.9, 0.8, 0.2], [0.3, 0.9, 0.8, 0.1]], dtype=np.float32)
    np.save(tmp_path / "first.npy", scores)
    return tmp_path


def read(root: Path, ranking: str = "first.npy") -> PlacesData:
    return read_places(root, root / "queries", root / "database", root / ranking)


def test_recalls_before_and_after(root: Path) -> None:
    report = evaluate_places(ColourScorer(), read(root), SMALL)
    # Query 0: 1, 2, 3, 0 becomes 2, 1, 3, 0. Query 1: its place, 3, stands last and stays there.
    assert report.metrics["initial_recall@1"] == 0
    assert report.metrics["reranked_recall@1"] == 0.5
    assert report.metrics["reranked_recall@5"] == 1
    # Groups {0, 1} and {2, 3}: query 1 keeps 2 of its second group, which is far away.
    assert report.metrics["reranked_grouped_recall@5"] == 0.5
    assert [item["first"] for item in report.per_item] == ["d2.png", "d2.png"]


def test_a_ranking_may_be_indices(root: Path) -> None:
    np.save(root / "indices.npy", np.array([[1, 2], [1, 2]]))
    data = read(root, "indices.npy")
    assert [order.tolist() for order in data.first] == [[1, 2], [1, 2]]
    report = evaluate_places(ColourScorer(), data, SMALL)
    assert report.metrics["reranked_recall@1"] == 0.5


def test_published_normalisation_is_for_candidates_only(root: Path) -> None:
    scorer = ColourScorer()
    evaluate_places(scorer, read(root), replace(SMALL, compat=True))
    assert scorer.normalisations == ["correct", "segswap_eval", "segswap_eval"] * 2
    scorer = ColourScorer()
    evaluate_places(scorer, read(root), SMALL)
    assert set(scorer.normalisations) == {"correct"}


def test_a_stopped_run_goes_on(root: Path, tmp_path: Path) -> None:
    work, scorer = tmp_path / "work", ColourScorer()

    class AfterOneQuery:
        def __bool__(self) -> bool:
            return (work / "query_000000.npy").exists()

    with pytest.raises(KeyboardInterrupt):
        evaluate_places(scorer, read(root), SMALL, work=work, stop=AfterOneQuery())
    seen = scorer.encoded
    resumed = evaluate_places(scorer, read(root), SMALL, work=work)
    assert scorer.encoded == seen + 3
    assert resumed.metrics == evaluate_places(ColourScorer(), read(root), SMALL).metrics


def test_lists_as_text(root: Path) -> None:
    (root / "qry_list.npy").unlink()
    (root / "qry_list.txt").write_text("q0.png\nq1.png\n")
    assert [path.name for path in read(root).queries] == ["q0.png", "q1.png"]


def test_pickled_lists_are_not_opened(root: Path) -> None:
    np.save(root / "qry_list.npy", np.array(["a", {}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"pickled objects may run code.*Save a list as text"):
        read(root)


def test_tables_that_do_not_fit(root: Path) -> None:
    np.save(root / "bad.npy", np.zeros((2, 3)))
    with pytest.raises(DatasetError, match="must have 4 columns of scores"):
        read(root, "bad.npy")
    np.save(root / "bad.npy", np.zeros((3, 4)))
    with pytest.raises(DatasetError, match="must have 2 rows"):
        read(root, "bad.npy")
    np.save(root / "bad.npy", np.full((2, 2), 4))
    with pytest.raises(DatasetError, match="indices below 4"):
        read(root, "bad.npy")
    with pytest.raises(DatasetError, match=r"must be a readable .npy file"):
        read(root, "none.npy")
    np.save(root / "qry_utm.npy", np.zeros((3, 2)))
    with pytest.raises(DatasetError, match=r"qry_utm.npy must be \[2, 2\]"):
        read(root)
