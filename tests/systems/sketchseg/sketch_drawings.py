# SPDX-License-Identifier: Apache-2.0
"""Six classes of plain shapes, drawn by the project itself, in place of downloaded drawings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from patchword.data.strokes import Drawing
from patchword.systems.sketchseg.compose import DrawingLibrary

_CORNERS = {"kite": 4, "sun": 24, "tent": 3, "box": 4, "star": 5, "house": 6}


def toy_drawing(word: str, number: int) -> Drawing:
    """A polygon and four lines that differ from class to class and a little within one."""
    rng = np.random.default_rng([sorted(_CORNERS).index(word), number])
    corners = _CORNERS[word]
    angles = np.linspace(0, 2 * np.pi, corners + 1) + rng.normal(0, 0.05)
    step = 2 if word == "star" else 1
    outline = 100 + 90 * np.stack([np.cos(step * angles), np.sin(step * angles)], axis=1)
    lines = [
        np.float32([[40 + 30 * i, 60 + 5 * corners], [60 + 30 * i, 90 + 3 * corners]])
        for i in range(4)
    ]
    return Drawing(word, (outline.astype(np.float32), *lines), f"{number:03d}")


def toy_library(drawings: int = 4) -> DrawingLibrary:
    """Some drawings of each class."""
    return DrawingLibrary.collect(
        toy_drawing(word, number) for word in _CORNERS for number in range(drawings)
    )


def write_ndjson(path: Path, drawings: int = 6) -> Path:
    """The library as a file of Quick, Draw! records."""
    lines = []
    for parts in toy_library(drawings).drawings.values():
        for one in parts:
            strokes = [stroke.T.round().tolist() for stroke in one.strokes]
            lines.append(json.dumps({"word": one.word, "key_id": one.key, "drawing": strokes}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
