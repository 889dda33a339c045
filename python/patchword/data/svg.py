# SPDX-License-Identifier: Apache-2.0
"""Outlines of an SVG drawing as strokes; colours, fills, widths and text are passed over."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from patchword.data.io import printable
from patchword.data.strokes import Stroke, bounds
from patchword.data.svg_path import MAX_POINTS, arc_points, path_strokes
from patchword.errors import DatasetError

Matrix = NDArray[np.float64]

_MAX_BYTES = 32_000_000
_MAX_DEPTH = 100
_LARGEST = 1e9
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_TRANSFORM = re.compile(r"(matrix|translate|scale|rotate|skewX|skewY)\s*\(([^)]*)\)")
# Their content is drawn elsewhere or not at all.
_HIDDEN = frozenset({"defs", "symbol", "clipPath", "mask", "pattern", "marker", "metadata"})


def read_svg(path: str | Path) -> tuple[tuple[Stroke, ...], tuple[float, float, float, float]]:
    """Read paths, lines, polygons, rectangles and ellipses of an SVG file.

    Curves become short straight pieces. Nothing outside the file is ever opened.

    Returns:
        Strokes ``[n, 2]`` (x, y) in the drawing's units, and its frame ``x0 y0 x1 y1``: the view
        box, else width and height, else the box around all strokes.

    Raises:
        DatasetError: The file cannot be read, is no SVG, or declares entities.

    Source:
        Scalable Vector Graphics (SVG) 1.1, W3C Recommendation, 2011.
    """
    file_path = Path(path)
    try:
        root = _parse(file_path)
        strokes = tuple(_walk(root, np.eye(3), 0))
        if sum(map(len, strokes)) > MAX_POINTS:
            raise ValueError(f"it has more than {MAX_POINTS} points")
        return strokes, _frame(root, strokes)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise DatasetError(
            f"read_svg: {printable(file_path)} must be an SVG drawing, got: {reason}.",
            path=file_path,
        ) from error


def _parse(path: Path) -> ElementTree.Element:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"a file over {_MAX_BYTES // 1_000_000} MB")
    content = path.read_bytes()
    # Entities could expand without end; drawings do not need them.
    if b"<!ENTITY" in content:
        raise ValueError("it declares entities")
    root = ElementTree.fromstring(content)
    if _tag(root) != "svg":
        raise ValueError(f"its root is {_tag(root)!r}")
    return root


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _walk(element: ElementTree.Element, matrix: Matrix, depth: int) -> Iterator[Stroke]:
    tag = _tag(element)
    if tag in _HIDDEN or element.get("display") == "none":
        return
    if depth > _MAX_DEPTH:
        raise ValueError("its groups nest too deep")
    here = matrix @ _matrix(element.get("transform", ""))
    for points in _outline(tag, element):
        if len(points):
            with np.errstate(all="ignore"):
                moved = np.column_stack([points, np.ones(len(points))]) @ here.T
            if not (np.abs(moved) < _LARGEST).all():
                raise ValueError("a coordinate is too large or not finite")
            yield moved[:, :2].astype(np.float32)
    for child in element:
        yield from _walk(child, here, depth + 1)


def _outline(tag: str, element: ElementTree.Element) -> list[NDArray[np.float64]]:
    def number(name: str) -> float:
        return _length(element.get(name), 0.0)

    if tag == "path":
        return path_strokes(element.get("d", ""))
    if tag == "line":
        ends = [(number("x1"), number("y1")), (number("x2"), number("y2"))]
        return [np.array(ends)]
    if tag in ("polyline", "polygon"):
        values = [float(one) for one in _NUMBER.findall(element.get("points", ""))]
        points = np.array(values[: len(values) // 2 * 2]).reshape(-1, 2)
        return [np.vstack([points, points[:1]]) if tag == "polygon" else points]
    if tag == "rect":
        x, y, width, height = (number(name) for name in ("x", "y", "width", "height"))
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
        return [np.array(corners)]
    if tag in ("circle", "ellipse"):
        radius = (number("r"), number("r")) if tag == "circle" else (number("rx"), number("ry"))
        return [arc_points((number("cx"), number("cy")), radius, 0.0, 0.0, 2 * math.pi)]
    return []


def _matrix(text: str) -> Matrix:
    total = np.eye(3)
    for kind, inside in _TRANSFORM.findall(text):
        values = [float(one) for one in _NUMBER.findall(inside)]
        total = total @ _one_transform(kind, values)
    return total


def _one_transform(kind: str, values: list[float]) -> Matrix:
    one = np.eye(3)
    try:
        if kind == "matrix":
            one[:2] = np.array(values[:6]).reshape(3, 2).T
        elif kind == "translate":
            one[:2, 2] = values[0], values[1] if len(values) > 1 else 0.0
        elif kind == "scale":
            one[0, 0], one[1, 1] = values[0], values[-1]
        elif kind == "rotate":
            angle = math.radians(values[0])
            one[:2, :2] = [
                [math.cos(angle), -math.sin(angle)],
                [math.sin(angle), math.cos(angle)],
            ]
            if len(values) == 3:
                centre = np.array(values[1:])
                one[:2, 2] = centre - one[:2, :2] @ centre
        else:
            place = (0, 1) if kind == "skewX" else (1, 0)
            one[place] = math.tan(math.radians(values[0]))
    except (IndexError, ValueError) as error:
        raise ValueError(f"transform {kind} has the wrong count of numbers") from error
    return one


def _length(text: str | None, otherwise: float) -> float:
    """The number of a length; per cents say nothing without a frame."""
    found = None if text is None or text.strip().endswith("%") else _NUMBER.match(text.strip())
    return otherwise if found is None else float(found[0])


def _frame(
    root: ElementTree.Element, strokes: tuple[Stroke, ...]
) -> tuple[float, float, float, float]:
    box = [float(one) for one in _NUMBER.findall(root.get("viewBox", ""))]
    if len(box) == 4 and box[2] > 0 and box[3] > 0:
        return box[0], box[1], box[0] + box[2], box[1] + box[3]
    width, height = (_length(root.get(name), 0.0) for name in ("width", "height"))
    if width > 0 and height > 0:
        return 0.0, 0.0, width, height
    return bounds(strokes)
