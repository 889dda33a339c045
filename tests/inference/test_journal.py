# SPDX-License-Identifier: Apache-2.0
"""The journal keeps what was appended, whatever byte the process died at."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest

from patchword.errors import OutputError
from patchword.inference.journal import Journal, key_digest


def ok(key: str, stamp: tuple[int, int] = (1, 2), **fields: Any) -> dict[str, Any]:
    return {"key": key, "stamp": list(stamp), "status": "ok", **fields}


def seen(*keys: str) -> array[int]:
    return array("Q", [key_digest(key) for key in keys])


def test_finds_what_an_earlier_run_appended(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(ok("a", score=1))
        journal.append({**ok("b"), "status": "failed", "error": "x"})
    with Journal(path) as journal:
        assert journal.find("a", (1, 2)) == ok("a", score=1)
        assert journal.find("a", (1, 3)) is None
        assert journal.find("b", (1, 2)) is None
        assert journal.find("c", (1, 2)) is None


def test_every_cut_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    names = ["a", "b\nc", "caf\u00e9 \udcff"]
    with Journal(path) as journal:
        for name in names:
            journal.append(ok(name))
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        expected = sum(end <= cut for end in ends)
        with Journal(path) as journal:
            found = [journal.find(name, (1, 2)) is not None for name in names]
            assert found == [index < expected for index in range(3)]
            journal.append(ok("new"))
        with Journal(path) as journal:
            assert journal.find("new", (1, 2)) is not None
            assert len(list(journal.latest(seen(*names, "new")))) == expected + 1


def test_garbage_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"\x00\x00\n[1, 2]\n17\n" + b'{"key": "a", "stamp": [1, 2], "status": "ok"}\n')
    with Journal(path) as journal:
        assert journal.find("a", (1, 2)) is not None


def test_last_line_of_a_key_counts(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for record in (
            ok("a", score=1),
            ok("b", score=2),
            ok("a", (5, 6), score=3),
            ok("c", score=0),
        ):
            journal.append(record)
        latest = list(journal.latest(seen("a", "b")))
    assert [(r["key"], r["score"]) for r in latest] == [("b", 2), ("a", 3)]


def test_ranking_falls_and_leaves_out_failures(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for key, score in [("a", 0.5), ("b", 0.9), ("c", 0.5), ("d", 0.1)]:
            journal.append(ok(key, score=score))
        journal.append({**ok("e"), "status": "failed", "error": "x"})
        ranked = [r["key"] for r in journal.ranked(seen("a", "b", "c", "d", "e"), "score")]
    assert ranked == ["b", "a", "c", "d"]


def test_nan_is_refused_rather_than_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal, pytest.raises(ValueError, match="JSON"):
        journal.append(ok("a", score=float("nan")))
    assert (tmp_path / "j").read_bytes() == b""


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "file" / "journal.jsonl")
