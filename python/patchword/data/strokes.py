# SPDX-License-Identifier: Apache-2.0
"""Drawings kept as strokes: Quick, Draw! records read, scaled and rendered as ink."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchword.data.io import printable
from patchword.errors import DatasetError, OptionError, ShapeError

Stroke = NDArray[np.float32]
"""One pen stroke, ``[n, 2]`` points (x, y) with n at least 1."""

_INK = 255
# Fractional bits of the coordinates that OpenCV's drawing takes; it clips lines in 64-bit numbers
# but the conversion must stay inside 32 bits.
_SHIFT = 4
_LARGEST = 1 << 24


@dataclass(frozen=True, eq=False)
class Drawing:
    """A drawing with one word that says what it shows.

    Attributes:
        word: The class, such as ``"giraffe"``; empty where the record has none.
        strokes: The strokes in the order they were drawn, y pointing down.
        key: Identifier within its collection; empty where the record has none.
    """

    word: str
    strokes: tuple[Stroke, ...]
    key: str = ""


def read_ndjson(path: str | Path) -> Iterator[Drawing]:
    """Read a file of Quick, Draw! records, one JSON object a line, also gzip-compressed.

    A record holds ``drawing``, a list of strokes ``[[x, ...], [y, ...]]`` (a third list, the times
    of the raw form, is passed over), and usually ``word`` and ``key_id``. Blank lines are skipped.

    Raises:
        DatasetError: The file cannot be read, or a line is no such record; the message names it.

    Source:
        Ha and Eck, "A Neural Representation of Sketch Drawings", ICLR 2018, arXiv:1704.03477.
    """
    file_path = Path(path)
    opener: Any = gzip.open if file_path.suffix == ".gz" else open
    try:
        with opener(file_path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse_line(line, file_path, number)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DatasetError(
            f"read_ndjson: {printable(file_path)} must be readable text, got {reason}.",
            path=file_path,
        ) from error


def parse_drawing(record: Any) -> Drawing:
    """Turn one decoded Quick, Draw! record into a drawing.

    Raises:
        ValueError: With the rule that the record breaks, without place or file.
    """
    if not isinstance(record, dict) or not isinstance(record.get("drawing"), list):
        raise ValueError('a record must be an object with a list "drawing"')
    strokes = []
    for index, stroke in enumerate(record["drawing"]):
        where = f"stroke {index}"
        if not isinstance(stroke, list) or len(stroke) not in (2, 3):
            raise ValueError(f"{where} must be [[x, ...], [y, ...]]")
        try:
            xs, ys = (np.asarray(axis, dtype=np.float32) for axis in stroke[:2])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} must hold numbers only") from error
        if xs.ndim != 1 or xs.shape != ys.shape:
            raise ValueError(f"{where} must hold as many x as y, got {xs.size} and {ys.size}")
        if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
            raise ValueError(f"{where} must hold finite numbers")
        if xs.size:
            strokes.append(np.stack([xs, ys], axis=1))
    word, key = record.get("word", ""), record.get("key_id", "")
    return Drawing(str(word), tuple(strokes), str(key))


def _parse_line(line: str, path: Path, number: int) -> Drawing:
    try:
        return parse_drawing(json.loads(line))
    # Deeply nested brackets end the decoder with a RecursionError.
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DatasetError(
            f"read_ndjson: {printable(path)}: line {number} must be a Quick, Draw! record, "
            f"got: {reason}.",
            path=path,
            record=number,
        ) from error


def bounds(strokes: Sequence[Stroke]) -> tuple[float, float, float, float]:
    """Smallest box ``x0 y0 x1 y1`` around all points; zeros where there are none."""
    if len(strokes) == 0:
        return 0.0, 0.0, 0.0, 0.0
    points = np.concatenate(list(strokes))
    x0, y0 = points.min(axis=0)
    x1, y1 = points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def fit_strokes(
    strokes: Sequence[Stroke], box: tuple[float, float, float, float]
) -> tuple[Stroke, ...]:
    """Scale and move strokes to the middle of a box, keeping their proportions.

    Args:
        strokes: Each ``[n, 2]`` (x, y).
        box: Where they go, ``x0 y0 x1 y1`` in pixels.

    Returns:
        New strokes that touch at least two opposite sides of the box.
    """
    x0, y0, x1, y1 = bounds(strokes)
    width, height = x1 - x0, y1 - y0
    # A line or a dot has no extent along an axis, which then sets no scale.
    ratios = [
        room / extent
        for room, extent in ((box[2] - box[0], width), (box[3] - box[1], height))
        if extent > 0
    ]
    scale = min(ratios, default=1.0)
    old = np.array([(x0 + x1) / 2, (y0 + y1) / 2], dtype=np.float32)
    new = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], dtype=np.float32)
    return tuple(
        ((stroke - old) * np.float32(scale) + new).astype(np.float32) for stroke in strokes
    )


def render_strokes(
    strokes: Sequence[Stroke],
    size: tuple[int, int],
    thickness: int = 3,
    *,
    antialias: bool = False,
) -> NDArray[np.uint8]:
    """Draw strokes as lines with round ends.

    Args:
        strokes: Each ``[n, 2]`` points (x, y) in pixels; parts outside the picture are cut off.
            A stroke of one point is a dot.
        size: ``(H, W)`` of the picture.
        thickness: Width of the lines in pixels.
        antialias: Soft edges; otherwise every pixel is ink or paper.

    Returns:
        Ink, uint8 ``[H, W]``: 255 on a line, 0 on paper. ``255 - ink`` looks like a sketch.

    Raises:
        OptionError: ``size`` or ``thickness`` is not positive.
        ShapeError: A stroke is not ``[n, 2]``.

    Example:
        >>> import numpy as np
        >>> render_strokes([np.float32([[1.5, 0.5], [3.5, 0.5]])], (2, 5), 1)
        array([[  0, 255, 255, 255,   0],
               [  0,   0,   0,   0,   0]], dtype=uint8)
    """
    import cv2

    if min(size) < 1 or thickness < 1:
        raise OptionError(
            f"render_strokes: size and thickness must be positive, got {size} and {thickness}."
        )
    ink = np.zeros(size, dtype=np.uint8)
    lines = []
    for stroke in strokes:
        points = np.asarray(stroke, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ShapeError(
                f"render_strokes: a stroke must be [n, 2], got {list(points.shape)}.",
                expected="[n, 2]",
                actual=points.shape,
            )
        if len(points):
            # OpenCV puts the centre of the first pixel at 0, this library at 0.5.
            fixed = np.rint((points - 0.5) * (1 << _SHIFT)).clip(-_LARGEST, _LARGEST)
            lines.append(np.repeat(fixed, 2, axis=0) if len(fixed) == 1 else fixed)
    cv2.polylines(
        ink,
        [line.astype(np.int32)[:, None] for line in lines],
        isClosed=False,
        color=_INK,
        thickness=thickness,
        lineType=cv2.LINE_AA if antialias else cv2.LINE_8,
        shift=_SHIFT,
    )
    return ink
