# SPDX-License-Identifier: Apache-2.0
"""Pages: nothing from a file name is ever markup, every link leads to a file, pages stay small."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from patchword.inference.html import CARDS_PER_PAGE, Card, write_pages

NASTY = [
    "<script>alert(1);.jpg",
    "a\"b'c & d.jpg",
    "line\nbreak.jpg",
    "caf\u00e9 \u732b #1?.jpg",
    b"\xff\xfe.jpg".decode("utf-8", "surrogateescape"),
    "100%.jpg",
]


class Links(HTMLParser):
    """Collects tags, links and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names_are_text_and_links_resolve(tmp_path: Path, name: str) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / name).touch()
    page = write_pages(tmp_path, "t", "l", [Card(name, [name], f"items/{name}", f"items/{name}")])
    found = Links(page.read_text("utf-8"))
    assert "script" not in found.tags
    assert found.tags.count("li") == 1
    assert len(found.links) == 2
    for link in found.links:
        assert (tmp_path / os.fsdecode(unquote_to_bytes(link))).exists()


def test_page_is_self_contained(tmp_path: Path) -> None:
    text = write_pages(tmp_path, "t", "l", [Card("a", [], "a.jpg", "a.jpg")]).read_text()
    assert "http" not in text
    assert "<script" not in text


def test_failed_card_has_no_picture(tmp_path: Path) -> None:
    found = Links(write_pages(tmp_path, "t", "l", [Card("bad.jpg", ["<truncated>"])]).read_text())
    assert "img" not in found.tags
    assert "<truncated>" in found.words


def test_many_cards_make_linked_pages(tmp_path: Path) -> None:
    count = 2 * CARDS_PER_PAGE + 1
    write_pages(tmp_path, "t", "l", (Card(str(i), [], f"items/{i}.jpg") for i in range(count)))
    pages = [tmp_path / "index.html", *sorted((tmp_path / "pages").iterdir())]
    found = [Links(page.read_text()) for page in pages]
    assert [f.tags.count("li") for f in found] == [CARDS_PER_PAGE, CARDS_PER_PAGE, 1]
    assert "pages/0002.html" in found[0].links
    assert "../index.html" in found[1].links
    assert "../pages/0003.html" in found[1].links
    assert f"../items/{count - 1}.jpg" in found[2].links


def test_exactly_one_page_has_no_second(tmp_path: Path) -> None:
    write_pages(tmp_path, "t", "l", (Card(str(i), []) for i in range(CARDS_PER_PAGE)))
    assert not (tmp_path / "pages").exists()


def test_no_cards(tmp_path: Path) -> None:
    assert write_pages(tmp_path, "t", "l", []).exists()
