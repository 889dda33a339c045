# SPDX-License-Identifier: Apache-2.0
"""Folders laid out like FS-COCO: captioned sketches to train on, labelled strokes to test on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchword.data.folders import IMAGE_SUFFIXES
from patchword.data.io import printable
from patchword.data.strokes import Stroke, render_strokes
from patchword.errors import DatasetError
from patchword.inference.atomic import make_folder, open_atomic, write_image, write_json, write_text
from patchword.systems.sketchseg.compose import CANVAS, Scene
from patchword.systems.sketchseg.rasters import SIDE, raster_stroke

BLANK = "blank_pixel"
"""First name of ``all_classes.json``: what is not a stroke."""

_INK, _PAPER = 0, 255


@dataclass(frozen=True)
class CaptionedSketch:
    """A training record.

    Attributes:
        key: ``participant/id``.
        image: The sketch's file.
        caption: What its author wrote.
    """

    key: str
    image: Path
    caption: str


@dataclass(frozen=True, eq=False)
class LabelledSketch:
    """A test record.

    Attributes:
        key: The record's id.
        strokes: Points (x, y) on the 256-unit canvas, ``[n, 2]`` each.
        labels: The category of every stroke.
    """

    key: str
    strokes: tuple[Stroke, ...]
    labels: tuple[str, ...]

    def categories(self) -> list[str]:
        """The categories of this very sketch, sorted: what the published protocol offers."""
        return sorted(set(self.labels))

    def rasters(self, *, compat: bool = False) -> list[NDArray[np.bool_]]:
        """Every stroke drawn, ``[512, 512]`` each."""
        return [raster_stroke(stroke, compat=compat) for stroke in self.strokes]


def read_captioned(folder: str | Path) -> list[CaptionedSketch]:
    """List ``sketches/<participant>/<id>.*`` with ``text/<participant>/<id>.txt``, by name.

    Args:
        folder: The training folder. ``raster_sketches``, the data set's own name, is taken too.

    Raises:
        DatasetError: The folder holds no sketch, or one has no caption; the published code pairs
            the files by position, so that one missing file shifts all that follow.
    """
    top = Path(folder)
    pictures = next(
        (top / name for name in ("sketches", "raster_sketches") if (top / name).is_dir()), None
    )
    if pictures is None:
        raise DatasetError(
            f"read_captioned: {printable(top)} must hold a folder sketches, got none.", path=top
        )
    records = []
    for image in sorted(pictures.glob("*/*")):
        if image.suffix.lower() not in IMAGE_SUFFIXES or image.name.startswith("."):
            continue
        key = f"{image.parent.name}/{image.stem}"
        records.append(CaptionedSketch(key, image, _read_text(top / "text" / f"{key}.txt")))
    if not records:
        raise DatasetError(
            f"read_captioned: {printable(pictures)} must hold pictures in a folder a participant, "
            "got none.",
            path=pictures,
        )
    return records


def read_labelled(folder: str | Path, *, compat: bool = False) -> Iterator[LabelledSketch]:
    """Yield the test records of ``vector_sketches/<id>.npy`` and ``classes/<id>.json``.

    Args:
        folder: The test folder.
        compat: As the published code, drop what follows the last pen lift and pair strokes with
            labels as far as both go; otherwise an end-of-drawing flag ends a stroke too, the last
            stroke is kept, and unequal counts are an error.

    Raises:
        DatasetError: The folder holds no record, or one cannot be read; the message names it.
    """
    top = Path(folder)
    files = sorted((top / "vector_sketches").glob("*.npy"))
    if not files:
        raise DatasetError(
            f"read_labelled: {printable(top)} must hold vector_sketches/*.npy, got none.", path=top
        )
    for file in files:
        points = _read_points(file)
        strokes = split_strokes(points, compat=compat)
        labels = _read_names(top / "classes" / f"{file.stem}.json")
        if compat:
            count = min(len(strokes), len(labels))
            strokes, labels = strokes[:count], labels[:count]
        if len(strokes) != len(labels) or not strokes:
            raise DatasetError(
                f"read_labelled: {printable(file)} must have as many strokes as labels and at "
                f"least one, got {len(strokes)} strokes and {len(labels)} labels.",
                path=file,
            )
        yield LabelledSketch(file.stem, tuple(strokes), tuple(labels))


def read_all_classes(folder: str | Path) -> list[str]:
    """The full vocabulary of ``all_classes.json`` without its first entry, ``blank_pixel``.

    Raises:
        DatasetError: The file cannot be read, repeats a name or does not begin with that entry.
    """
    path = Path(folder) / "all_classes.json"
    names = _read_names(path)
    if names[:1] != [BLANK] or len(set(names)) != len(names) or len(names) < 2:
        raise DatasetError(
            f"read_all_classes: {printable(path)} must list different names, {BLANK} first, got "
            f"{names[:3]}.",
            path=path,
        )
    return names[1:]


def split_strokes(points: NDArray[np.float64], *, compat: bool = False) -> list[Stroke]:
    """Cut a drawing ``[n, 3]`` of x, y, pen where the pen is lifted (1) or put away (2)."""
    ends = np.flatnonzero(points[:, 2] == 1 if compat else points[:, 2] >= 1) + 1
    parts = np.split(points[:, :2].astype(np.float32), ends)
    if compat:
        return list(parts[:-1])
    return [part for part in parts if len(part)]


def join_strokes(strokes: Sequence[Stroke]) -> NDArray[np.float64]:
    """A drawing as ``[n, 3]`` of x, y, pen; the inverse of :func:`split_strokes`."""
    parts = []
    for stroke in strokes:
        pen = np.zeros((len(stroke), 1))
        pen[-1] = 1.0
        parts.append(np.concatenate([stroke.astype(np.float64), pen], axis=1))
    return np.concatenate(parts)


def sketch_picture(strokes: Sequence[Stroke], *, side: int = SIDE) -> NDArray[np.uint8]:
    """Black lines three pixels wide on white, ``[side, side]``."""
    scaled = [stroke * np.float32(side / CANVAS) for stroke in strokes]
    return _PAPER - render_strokes(scaled, (side, side), 3)


def write_captioned(folder: Path, scenes: Iterator[Scene], *, per_participant: int = 100) -> int:
    """Write scenes as training records; returns how many."""
    count = 0
    for count, scene in enumerate(scenes, start=1):
        key = f"{(count - 1) // per_participant + 1}/{count:012d}"
        write_image(folder / "sketches" / f"{key}.png", sketch_picture(scene.strokes))
        write_text(folder / "text" / f"{key}.txt", scene.caption + "\n")
    return count


def write_labelled(folder: Path, scenes: Iterator[Scene], vocabulary: Sequence[str]) -> int:
    """Write scenes as test records with ``all_classes.json``; returns how many."""
    make_folder(folder)
    write_json(folder / "all_classes.json", [BLANK, *vocabulary])
    count = 0
    for count, scene in enumerate(scenes, start=1):
        key = f"{count:012d}"
        write_image(folder / "images" / f"{key}.png", sketch_picture(scene.strokes))
        write_text(folder / "captions" / f"{key}.txt", scene.caption + "\n")
        write_json(folder / "classes" / f"{key}.json", list(scene.labels))
        with open_atomic(folder / "vector_sketches" / f"{key}.npy") as file:
            np.save(file, join_strokes(scene.strokes))
    return count


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"read_captioned: {printable(path)} must be readable text, got {_reason(error)}.",
            path=path,
        ) from error


def _read_points(path: Path) -> NDArray[np.float64]:
    try:
        points: Any = np.load(path, allow_pickle=False)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise ValueError(f"shape {list(points.shape)} or numbers that are not finite")
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise DatasetError(
            f"read_labelled: {printable(path)} must hold finite numbers [n, 3], got "
            f"{_reason(error)}.",
            path=path,
        ) from error
    numbers: NDArray[np.float64] = points.astype(np.float64)
    return numbers


def _read_names(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("no list of names")
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"read_labelled: {printable(path)} must be a JSON list of names, got {_reason(error)}.",
            path=path,
        ) from error
    return names


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
