# SPDX-License-Identifier: Apache-2.0
"""Sketches from pictures, SVG drawings and Quick, Draw! records, all as dark lines on white."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from patchword.data.io import MAX_PIXELS, printable, read_image
from patchword.data.strokes import Stroke, bounds, read_ndjson, render_strokes
from patchword.data.svg import read_svg
from patchword.errors import DatasetError, OptionError
from patchword.structures import ImageArray

VECTOR_SUFFIXES = frozenset({".svg", ".ndjson"})
"""Endings of the vector formats; ``.ndjson.gz`` is one too."""

VECTOR_SIDE = 512
"""Longest side in pixels that vector drawings are rendered at."""

_MARGIN = 0.04


def is_vector(source: Any) -> bool:
    """Whether a source is the path of a vector drawing, told by its ending."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    name = os.fsdecode(source).lower().removesuffix(".gz")
    return Path(name).suffix in VECTOR_SUFFIXES


def read_sketch(
    source: Any, *, record: int = 0, thickness: int = 3, max_pixels: int = MAX_PIXELS
) -> ImageArray:
    """Read a sketch from anything that holds one.

    Args:
        source: Path of a picture, ``.svg``, ``.ndjson`` or ``.ndjson.gz``; or what
            :func:`patchword.data.read_image` takes.
        record: Which drawing of an ndjson file, from 0.
        thickness: Width in pixels of the lines of a vector drawing.
        max_pixels: Limit for :func:`patchword.data.read_image`.

    Returns:
        uint8 ``[H, W, 3]``. A vector drawing keeps its proportions; its longest side is 512.

    Raises:
        DatasetError: The file cannot be read, or holds no such record.
        OptionError: ``record`` is negative.
    """
    if not is_vector(source):
        return read_image(source, max_pixels=max_pixels)
    path = Path(source)
    if path.suffix.lower() == ".svg":
        strokes, frame = read_svg(path)
        return _render(strokes, frame, thickness)
    if record < 0:
        raise OptionError(f"read_sketch: record must be at least 0, got {record}.")
    drawing = next(islice(read_ndjson(path), record, None), None)
    if drawing is None:
        raise DatasetError(
            f"read_sketch: {printable(path)} must hold record {record}, got fewer.", path=path
        )
    x0, y0, x1, y1 = bounds(drawing.strokes)
    margin = _MARGIN * max(x1 - x0, y1 - y0, 1.0)
    return _render(drawing.strokes, (x0 - margin, y0 - margin, x1 + margin, y1 + margin), thickness)


def _render(
    strokes: tuple[Stroke, ...], frame: tuple[float, float, float, float], thickness: int
) -> ImageArray:
    width, height = max(frame[2] - frame[0], 1e-6), max(frame[3] - frame[1], 1e-6)
    scale = VECTOR_SIDE / max(width, height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    corner = np.array(frame[:2], dtype=np.float32)
    moved = tuple((stroke - corner) * np.float32(scale) for stroke in strokes)
    ink = render_strokes(moved, size, thickness)
    return np.repeat(255 - ink[..., None], 3, axis=2)
