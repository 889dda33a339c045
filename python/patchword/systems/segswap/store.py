# SPDX-License-Identifier: Apache-2.0
"""Pairs on disk in the published layout: four pictures and two annotations per number."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from patchword.data.folders import is_folder
from patchword.data.io import printable
from patchword.errors import DatasetError
from patchword.inference.atomic import open_atomic, write_bytes

Pixels = npt.NDArray[np.uint8]
Target = npt.NDArray[np.float32]

PICTURES = ("a", "b", "as", "bs")
ANNOTATIONS = ("a", "b")
_FILES_PER_PAIR = len(PICTURES) + len(ANNOTATIONS)
_FILES_ASSUMED = 8
_JPEG_QUALITY = 75


def picture_path(folder: Path, number: int, name: str) -> Path:
    """Path of picture ``a``, ``b``, ``as`` or ``bs`` of a pair."""
    return folder / f"{number}_{name}.jpg"


def annotation_path(folder: Path, number: int, name: str) -> Path:
    """Path of annotation ``a`` or ``b`` of a pair."""
    return folder / f"{number}_{name}.npy"


def pair_paths(folder: Path, number: int) -> Iterator[Path]:
    """Yield the six files of a pair; the last to be written comes last."""
    for name in PICTURES:
        yield picture_path(folder, number, name)
    for name in ANNOTATIONS:
        yield annotation_path(folder, number, name)


def encode_picture(pixels: Pixels) -> bytes:
    """Encode as JPEG of quality 75, Pillow's default, as the published files are."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def write_pair(
    folder: Path, number: int, encoded: dict[str, bytes], target0: Target, target1: Target
) -> None:
    """Write the six files of a pair, each whole or not at all.

    Args:
        folder: Made if needed.
        number: Of the pair.
        encoded: JPEG files by ``a``, ``b``, ``as`` and ``bs``.
        target0: Annotation of picture a, ``[3, h, w]``.
        target1: Annotation of picture b.

    Raises:
        OutputError: A file cannot be written.
    """
    for name in PICTURES:
        write_bytes(picture_path(folder, number, name), encoded[name])
    for name, target in zip(ANNOTATIONS, (target0, target1), strict=True):
        with open_atomic(annotation_path(folder, number, name)) as file:
            np.save(file, np.ascontiguousarray(target, dtype=np.float32), allow_pickle=False)


@dataclass(frozen=True)
class PairFolder:
    """A folder of pairs in the published layout.

    Attributes:
        path: The folder.
        numbers: Pairs whose annotations are there, rising.
    """

    path: Path
    numbers: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """List the folder.

        Raises:
            DatasetError: It is no folder or holds no pairs.
        """
        if not is_folder(self.path):
            raise DatasetError(
                f"PairFolder: {printable(self.path)} is not a folder.", path=self.path
            )
        names = frozenset(entry.name for entry in self.path.iterdir())
        stems = (name[: -len("_a.npy")] for name in names if name.endswith("_a.npy"))
        numbers = sorted(
            int(stem) for stem in stems if stem.isdecimal() and f"{stem}_b.npy" in names
        )
        if not numbers:
            raise DatasetError(
                f"PairFolder: {printable(self.path)} must hold pairs such as 0_a.npy and 0_b.npy, "
                "got none. `patchword data segswap` makes them.",
                path=self.path,
            )
        object.__setattr__(self, "numbers", tuple(numbers))

    def __len__(self) -> int:
        """Pairs."""
        return len(self.numbers)

    def published_length(self) -> int:
        """Pairs as the published code counts them: it takes eight files for a pair (fault T8)."""
        return len(self) * _FILES_PER_PAIR // _FILES_ASSUMED

    def picture(self, number: int, name: str) -> Path:
        """Path of a picture."""
        return picture_path(self.path, number, name)

    def targets(self, number: int) -> tuple[Target, Target]:
        """Read both annotations, ``[3, h, w]`` each.

        Raises:
            DatasetError: A file is missing, damaged or of another shape.
        """
        first, second = (
            _read_target(annotation_path(self.path, number, name)) for name in ANNOTATIONS
        )
        return first, second


def _read_target(path: Path) -> Target:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"PairFolder: annotation {printable(path)} cannot be read ({reason}).", path=path
        ) from error
    if not isinstance(values, np.ndarray) or values.ndim != 3 or values.shape[0] != 3:
        raise DatasetError(
            f"PairFolder: annotation {printable(path)} must be [3, h, w], got "
            f"{list(np.shape(values))}.",
            path=path,
        )
    return values.astype(np.float32, copy=False)
