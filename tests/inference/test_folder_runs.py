# SPDX-License-Identifier: Apache-2.0
"""Gallery and locate runs: complete, resumable, and safe with any file names."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeLocalizer, FakeMatcher
from PIL import Image

import patchword
from patchword.errors import ConfigError, DatasetError, OptionError
from patchword.inference.gallery import rank_gallery
from patchword.inference.interrupt import StopFlag
from patchword.inference.locating import check_texts, locate_folder

SETTINGS = {"command": "test"}
NAMES = [
    "a.png",
    "sub/a.png",
    "sub/a.bmp",
    "caf\u00e9 \u732b.png",
    "q\"u'o<script>.png",
    "n\nl.png",
]


def grey(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (value, value, value)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index, name in enumerate(NAMES):
        grey(tmp_path / "photos" / name, 40 * index)
    (tmp_path / "photos" / "bad.png").write_bytes(b"not a picture")
    return tmp_path / "photos"


def locate(photos: Path, out: Path, **options: Any) -> Any:
    options = {"settings": SETTINGS, **options}
    return locate_folder(FakeLocalizer(), photos, ["x", "y"], out, **options)


def rank(photos: Path, out: Path, **options: Any) -> Any:
    query = grey(out.parent / "query.png", 100)
    return rank_gallery(FakeMatcher(), query, photos, out, settings=SETTINGS, **options)


def test_locate_folder_keeps_every_name_apart(photos: Path, tmp_path: Path) -> None:
    run = locate(photos, tmp_path / "out")
    assert (run.summary.done, run.summary.failed) == (len(NAMES), 1)
    for name in NAMES:
        record = json.loads((tmp_path / "out" / "items" / name / "result.json").read_text())
        assert record["input"] == name
    page = run.index.read_text("utf-8")
    assert "<script" not in page
    assert page.count("<li") == len(NAMES) + 1
    assert "bad.png" in page


def test_locate_folder_resumes(photos: Path, tmp_path: Path) -> None:
    stop = StopFlag()
    run = locate(
        photos, tmp_path / "out", stop=stop, on_record=lambda r: r["key"] == NAMES[0] and stop.set()
    )
    assert run.summary.interrupted
    before = FakeLocalizer.calls
    run = locate(photos, tmp_path / "out")
    assert run.summary.reused >= 1
    assert FakeLocalizer.calls - before == len(NAMES) - run.summary.reused


def test_output_inside_input_is_not_read_back(photos: Path) -> None:
    locate(photos, photos / "out")
    run = locate(photos, photos / "out")
    assert (run.summary.done, run.summary.reused) == (0, len(NAMES))


def test_output_equal_to_input_is_refused(photos: Path) -> None:
    before = sorted(photos.rglob("*"))
    with pytest.raises(ConfigError, match="must not be or contain the input folder"):
        locate(photos, photos, overwrite=True)
    assert sorted(photos.rglob("*")) == before


def test_other_settings_need_overwrite(photos: Path, tmp_path: Path) -> None:
    locate(photos, tmp_path / "out")
    with pytest.raises(ConfigError, match="other settings"):
        locate(photos, tmp_path / "out", settings={"command": "other"})
    run = locate(photos, tmp_path / "out", settings={"command": "other"}, overwrite=True)
    assert run.summary.reused == 0


def hit_folders(out: Path) -> list[str]:
    return sorted(f"hits/{path.name}" for path in (out / "hits").iterdir())


def test_hits_are_ordered_by_the_full_match(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match = FakeMatcher.match

    def other_order(self: FakeMatcher, a: Any, b: Any, *, box0: Any = None) -> Any:
        return dataclasses.replace(match(self, a, b), score=float(b.mean() / 255))

    monkeypatch.setattr(FakeMatcher, "match", other_order)
    run = rank(photos, tmp_path / "out", top=3)
    scores = [hit["score"] for hit in run.hits]
    assert scores == sorted(scores, reverse=True)
    assert [hit["rank"] for hit in run.hits] == [1, 2, 3]
    assert [h["quick_score"] for h in run.hits] != sorted(
        (h["quick_score"] for h in run.hits), reverse=True
    )


def test_gallery_ranks_and_writes_the_best(photos: Path, tmp_path: Path) -> None:
    run = rank(photos, tmp_path / "out", top=2)
    lines = (tmp_path / "out" / "ranking.jsonl").read_text().splitlines()
    ranking = [json.loads(line) for line in lines]
    scores = [entry["score"] for entry in ranking]
    assert len(ranking) == len(NAMES)
    assert scores == sorted(scores, reverse=True)
    assert [hit["key"] for hit in run.hits] == [entry["key"] for entry in ranking[:2]]
    assert hit_folders(tmp_path / "out") == sorted(hit["output"] for hit in run.hits)
    summary = json.loads((tmp_path / "out" / "ranking.json").read_text())
    assert summary["complete"]
    assert (summary["ranked"], summary["failed"]) == (len(NAMES), 1)
    page = run.index.read_text("utf-8")
    assert page.count("<img") == 3
    assert "<script" not in page


def test_gallery_rerun_scores_nothing_again(photos: Path, tmp_path: Path) -> None:
    first = rank(photos, tmp_path / "out", top=3)
    hit = tmp_path / "out" / first.hits[0]["output"] / "overlay.png"
    written = hit.stat().st_mtime_ns
    again = rank(photos, tmp_path / "out", top=2)
    assert again.summary.reused == len(NAMES)
    assert again.hits == first.hits[:2]
    assert hit.stat().st_mtime_ns == written
    assert hit_folders(tmp_path / "out") == sorted(hit["output"] for hit in again.hits)


def test_interrupted_rerun_keeps_finished_hits(photos: Path, tmp_path: Path) -> None:
    rank(photos, tmp_path / "out", top=2)
    before = hit_folders(tmp_path / "out")
    stop = StopFlag()
    stop.set()
    run = rank(photos, tmp_path / "out", top=2, stop=stop)
    assert run.summary.interrupted
    assert hit_folders(tmp_path / "out") == before


def test_gallery_follows_added_removed_and_changed_files(photos: Path, tmp_path: Path) -> None:
    rank(photos, tmp_path / "out", top=1)
    (photos / "sub" / "a.png").unlink()
    grey(photos / "new.png", 100)
    run = rank(photos, tmp_path / "out", top=1)
    assert run.hits[0]["key"] == "new.png"
    note = json.loads((tmp_path / "out" / run.hits[0]["output"] / "result.json").read_text())
    assert note["input"] == "new.png"
    assert "sub/a.png" not in (tmp_path / "out" / "ranking.jsonl").read_text()


def test_query_is_not_its_own_hit(photos: Path, tmp_path: Path) -> None:
    run = rank_gallery(
        FakeMatcher(), photos / "a.png", photos, tmp_path / "out", settings=SETTINGS, top=99
    )
    assert len(run.hits) == len(NAMES) - 1


@pytest.mark.parametrize(
    "box", [(0, 0, 13, 9), (-1, 0, 5, 5), (3, 3, 3, 5), (5, 5, 2, 8), (0, 0, float("nan"), 5)]
)
def test_box_outside(photos: Path, tmp_path: Path, box: Any) -> None:
    with pytest.raises(OptionError, match="inside the query of 12 x 9 pixels"):
        rank(photos, tmp_path / "out", box=box)
    assert not (tmp_path / "out").exists()


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match="holds no pictures"):
        locate(tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "at least one phrase"),
        ([""], "got 0"),
        (["  \n"], "got 0"),
        (["x" * 10_000], "got 10000"),
        (["a", " a "], "must differ"),
    ],
)
def test_phrases(texts: list[str], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        check_texts(texts)
    assert check_texts([" a dog "]) == ("a dog",)


_SLOW_RUN = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {package!r}]
from fakes import FakeLocalizer
from patchword.inference.locating import locate_folder

class Slow(FakeLocalizer):
    def locate(self, image, texts):
        time.sleep(0.03)
        return super().locate(image, texts)

run = locate_folder(Slow(), Path({photos!r}), ["x"], Path({out!r}), settings={{"a": 1}})
print(run.summary.done, run.summary.reused, run.summary.failed)
"""


def test_kill_minus_nine_loses_and_repeats_nothing(tmp_path: Path) -> None:
    count = 24
    for index in range(count):
        grey(tmp_path / "photos" / f"{index:02d}.png", index)
    script = _SLOW_RUN.format(
        tests=str(Path(__file__).parents[1]),
        package=str(Path(patchword.__file__).parents[1]),
        photos=str(tmp_path / "photos"),
        out=str(tmp_path / "out"),
    )
    journal = tmp_path / "out" / "journal.jsonl"
    done = 0
    for target in (4, 11):
        process = subprocess.Popen([sys.executable, "-c", script])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= target:
                break
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = journal.read_bytes().count(b"\n")
        assert target <= done < count
    finished = {
        path: path.stat().st_mtime_ns
        for line in journal.read_bytes().splitlines()[:done]
        for path in (tmp_path / "out" / json.loads(line)["output"]).iterdir()
    }
    last = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert last.stdout.split() == [str(count - done), str(done), "0"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    for index in range(count):
        folder = tmp_path / "out" / "items" / f"{index:02d}.png"
        assert json.loads((folder / "result.json").read_text())["input"] == folder.name
        with Image.open(folder / "overlay.png") as image:
            image.load()
    assert len({json.loads(line)["key"] for line in journal.read_text().splitlines()}) == count
    assert not [p for p in (tmp_path / "out").rglob("*.tmp")]
