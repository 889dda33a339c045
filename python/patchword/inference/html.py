# SPDX-License-Identifier: Apache-2.0
"""Pages to look through results: no scripts, no network, relative links, every name escaped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from patchword.data.io import printable
from patchword.inference.atomic import write_text

CARDS_PER_PAGE = 200

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1280px;
       padding: 0 1.2rem; color: #222; background: #fff; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; }
p.lead, nav { color: #666; margin: .2rem 0 1.2rem; }
nav a { margin-right: 1rem; }
ol { list-style: none; padding: 0; display: grid; gap: 1.1rem;
     grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
li { border: 1px solid #ddd; border-radius: 8px; overflow: hidden; background: #fff; }
li img { width: 100%; height: 220px; object-fit: contain; background: #fff; display: block; }
li div { padding: .55rem .8rem .7rem; border-top: 1px solid #eee; overflow-wrap: anywhere; }
li strong { font-variant-numeric: tabular-nums; }
li small, footer { color: #777; }
li.failed div { color: #8a2b06; border-top: 0; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #161616; } li { border-color: #333; background: #1e1e1e; }
  li div { border-color: #333; } li.failed div { color: #f0a080; } }
"""


@dataclass(frozen=True)
class Card:
    """One picture of a page.

    Attributes:
        title: Its name, shown escaped.
        lines: Short facts below the name.
        image: Thumbnail relative to the page's folder, or None for one that failed.
        link: What a click opens, relative to the page's folder.
    """

    title: str
    lines: Sequence[str]
    image: str | None = None
    link: str | None = None


def write_pages(folder: Path, title: str, lead: str, cards: Iterable[Card]) -> Path:
    """Write ``index.html`` and, from the 201st card on, ``pages/0002.html`` ... beside it.

    Cards are taken from the iterable a page at a time.

    Returns:
        The path of ``index.html``.

    Raises:
        OutputError: A page cannot be written.
    """
    remaining = iter(cards)
    number, batch = 1, list(islice(remaining, CARDS_PER_PAGE))
    while True:
        following = list(islice(remaining, CARDS_PER_PAGE))
        page = "".join(_page(title, lead, batch, number, has_next=bool(following)))
        write_text(_page_path(folder, number), page)
        if not following:
            return _page_path(folder, 1)
        number, batch = number + 1, following


def _page_path(folder: Path, number: int) -> Path:
    return folder / ("index.html" if number == 1 else f"pages/{number:04d}.html")


def _page(
    title: str, lead: str, cards: Sequence[Card], number: int, *, has_next: bool
) -> Iterator[str]:
    up = "" if number == 1 else "../"
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    yield f'<h1>{_text(title)}</h1>\n<p class="lead">{_text(lead)}</p>\n'
    navigation = _navigation(number, up, has_next=has_next)
    yield f"{navigation}<ol>\n"
    for card in cards:
        yield _card(card, up)
    yield f"</ol>\n{navigation}<footer>patchword</footer>\n</body>\n</html>\n"


def _navigation(number: int, up: str, *, has_next: bool) -> str:
    links = []
    if number > 1:
        back = "index.html" if number == 2 else f"pages/{number - 1:04d}.html"
        links.append(f'<a href="{up}{back}">previous</a>')
    if has_next:
        links.append(f'<a href="{up}pages/{number + 1:04d}.html">next</a>')
    return f"<nav>{''.join(links)}page {number}</nav>\n" if links else ""


def _card(card: Card, up: str) -> str:
    facts = "".join(f"<br>{_text(line)}" for line in card.lines)
    words = f"<div><strong>{_text(card.title)}</strong>{facts}</div>"
    if card.image is None:
        return f'<li class="failed">{words}</li>\n'
    picture = f'<img src="{up}{_href(card.image)}" alt="{_text(card.title)}" loading="lazy">'
    if card.link is not None:
        picture = f'<a href="{up}{_href(card.link)}">{picture}</a>'
    return f"<li>{picture}{words}</li>\n"


def _text(words: str) -> str:
    return escape(printable(words))


def _href(relative: str) -> str:
    return quote(os.fsencode(relative))
