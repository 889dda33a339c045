# SPDX-License-Identifier: Apache-2.0
"""The commands with the real networks, on the pictures that ship with the package."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import patchword
from patchword.cli.main import main

DEMO = Path(patchword.__file__).parent / "assets" / "demo"

Json = Any


@pytest.fixture
def answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Json:
        code = main([*map(str, words), "--json", "--quiet"])
        printed = json.loads(capsys.readouterr().out)
        assert code == 0, printed
        return printed["result"]

    return call


def test_match_finds_the_shared_thing(answer: Any) -> None:
    same = answer("match", DEMO / "pair0.jpg", DEMO / "pair1.jpg")
    other = answer("match", DEMO / "pair0.jpg", DEMO / "scene.jpg")
    assert same["score"] > other["score"]
    assert len(same["matches"]) > 20
    assert 0 < same["shared0"] < 1


def test_gallery_puts_the_partner_first_with_and_without_cache(answer: Any, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "gallery", ignore=shutil.ignore_patterns("*.txt", "*.md"))
    words = ("match", DEMO / "pair0.jpg", "--gallery", "gallery", "--top", 2, "--cache", "cache")
    first = answer(*words, "-o", "out")
    again = answer(*words, "-o", "out2")
    assert first["hits"][0]["key"] in ("pair0.jpg", "pair1.jpg")
    assert {hit["key"] for hit in first["hits"]} == {"pair0.jpg", "pair1.jpg"}
    assert again["hits"] == first["hits"]
    assert Path(first["index"]).exists()


@pytest.mark.skipif(find_spec("tokenizers") is None, reason="the extra `text` is not installed")
def test_locate_points_at_what_is_there(answer: Any, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "photos", ignore=shutil.ignore_patterns("*.txt", "*.md"))
    phrase = (DEMO / "phrases.txt").read_text("utf-8").splitlines()[0]
    one = answer("locate", DEMO / "scene.jpg", "--text", phrase, "--text", "a submarine")
    found, absent = one["phrases"]
    assert found["score"] > absent["score"]
    assert found["share"] > 0
    words = ("locate", "photos", "--text", phrase, "--text", "a submarine", "-o", "out")
    assert answer(*words)["done"] == 3
    assert answer(*words)["reused"] == 3
    record = json.loads(Path("out/items/scene.jpg/result.json").read_text())
    assert record["phrases"] == one["phrases"]
