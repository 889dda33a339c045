# SPDX-License-Identifier: Apache-2.0
"""What an evaluation returns, and how labelled folders are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from patchword.data.io import read_image
from patchword.errors import DatasetError, OutputError
from patchword.structures import ImageArray

Record = dict[str, Any]
Progress = Callable[..., Iterable[Any]]
MAX_EXAMPLES = 12


@dataclass(frozen=True)
class EvaluationReport:
    """Numbers of one protocol on one folder.

    Attributes:
        metrics: Means by name.
        per_item: One record of numbers a pair or picture.
        protocol: What was measured, in words.
        examples: Pictures with the answers drawn in, uint8 ``[H, W, 3]`` each.
    """

    metrics: dict[str, float]
    per_item: list[Record]
    protocol: str
    examples: tuple[ImageArray, ...] = field(default=(), repr=False, compare=False)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write ``evaluation.json`` and, where there are examples, ``examples.png``.

        Returns:
            The paths by name.

        Raises:
            OutputError: The folder cannot be written.
        """
        target = Path(folder)
        written = {"report": target / "evaluation.json"}
        content = {
            "protocol": self.protocol,
            "metrics": self.metrics,
            "per_item": self.per_item,
        }
        try:
            target.mkdir(parents=True, exist_ok=True)
            if self.examples:
                written["examples"] = target / "examples.png"
                unfinished = target / "examples.png.partial"
                Image.fromarray(contact_sheet(self.examples)).save(unfinished, format="PNG")
                unfinished.replace(written["examples"])
            unfinished = target / "evaluation.json.partial"
            unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            unfinished.replace(written["report"])
        except OSError as error:
            raise OutputError(
                f"EvaluationReport.save: folder {target} must be writable, got {error}."
            ) from error
        return written


def silent(iterable: Iterable[Any], *, total: int | None = None) -> Iterable[Any]:
    """Show no progress."""
    return iterable


def contact_sheet(
    pictures: Iterable[ImageArray], *, columns: int = 2, width: int = 640
) -> ImageArray:
    """Lay pictures out on a white sheet, each scaled to ``width`` pixels."""
    tiles = []
    for picture in pictures:
        height = max(1, round(picture.shape[0] * width / picture.shape[1]))
        tiles.append(np.asarray(Image.fromarray(picture).resize((width, height))))
    rows = []
    for start in range(0, len(tiles), columns):
        row = tiles[start : start + columns]
        tall = max(tile.shape[0] for tile in row) + 8
        sheet = np.full((tall, columns * (width + 8), 3), 255, dtype=np.uint8)
        for column, tile in enumerate(row):
            left = column * (width + 8)
            sheet[: tile.shape[0], left : left + width] = tile
        rows.append(sheet)
    sheets: ImageArray = np.concatenate(rows)
    return sheets


def tint(image: ImageArray, heat: npt.NDArray[np.float32]) -> ImageArray:
    """Draw a soft mask over a darkened grey picture: what is in the mask keeps its colours."""
    grey = image.mean(axis=2, keepdims=True) * 0.35
    mixed = image * heat[:, :, None] + grey * (1.0 - heat[:, :, None])
    tinted: ImageArray = np.clip(mixed, 0, 255).astype(np.uint8)
    return tinted


def beside(first: ImageArray, second: ImageArray) -> ImageArray:
    """Two pictures side by side, the second scaled to the height of the first."""
    height = first.shape[0]
    width = max(1, round(second.shape[1] * height / second.shape[0]))
    scaled = np.asarray(Image.fromarray(second).resize((width, height)))
    joined: ImageArray = np.concatenate([first, scaled], axis=1)
    return joined


def read_index(folder: str | Path) -> list[Record]:
    """Read the records of a labelled folder's ``index.json``.

    Raises:
        DatasetError: The file is missing, no JSON, or no list of records.
    """
    path = Path(folder) / "index.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(
            f"evaluate: folder {folder} must hold index.json, got {error.strerror}.", path=path
        ) from error
    except ValueError as error:
        raise DatasetError(f"evaluate: {path} must be JSON, got {error}.", path=path) from error
    if not (
        isinstance(content, list) and content and all(isinstance(one, dict) for one in content)
    ):
        raise DatasetError(f"evaluate: {path} must be a list of records, got none.", path=path)
    return content


def read_mask(path: Path, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Read a mask picture: true above half brightness.

    Raises:
        DatasetError: It cannot be read or has another size than its picture.
    """
    mask: npt.NDArray[np.bool_] = read_image(path)[:, :, 0] > 127
    if mask.shape != size:
        raise DatasetError(
            f"evaluate: mask {path} must have the size of its picture, {size}, got {mask.shape}.",
            path=path,
        )
    return mask


def matrix(record: Record, key: str, rows: int, folder: str | Path) -> npt.NDArray[np.float64]:
    """Read a ``rows`` x 3 matrix of a record.

    Raises:
        DatasetError: It is missing or has another shape.
    """
    try:
        values = np.asarray(record[key], dtype=np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise DatasetError(
            f"evaluate: {key} of record {record.get('name')} in {folder} must be a {rows} x 3 "
            "matrix of numbers.",
            path=folder,
            record=record.get("name"),
        ) from error
    if values.shape != (rows, 3):
        raise DatasetError(
            f"evaluate: {key} of record {record.get('name')} in {folder} must be {rows} x 3, got "
            f"{list(values.shape)}.",
            path=folder,
            record=record.get("name"),
        )
    return values
