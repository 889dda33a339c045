# SPDX-License-Identifier: Apache-2.0
"""Walks folders of pictures in a fixed order without holding their whole list in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from patchword.data.io import printable
from patchword.errors import DatasetError

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
    }
)


@dataclass(frozen=True)
class ImageItem:
    """One picture of a folder.

    Attributes:
        key: Path relative to the folder, with forward slashes; unique within the folder.
        path: Where to read it.
    """

    key: str
    path: Path

    def stamp(self) -> tuple[int, int]:
        """Size in bytes and modification time in ns: changes when the file does; (-1, -1): gone."""
        try:
            status = self.path.stat()
        except OSError:
            return (-1, -1)
        return (status.st_size, status.st_mtime_ns)


def is_folder(path: Path) -> bool:
    """Tell whether a path leads to a folder; one that cannot even be looked up does not."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def list_images(
    folder: str | os.PathLike[str],
    *,
    exclude: str | os.PathLike[str] | None = None,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
) -> Iterator[Path]:
    """Yield the pictures below a folder, told by suffix, in the same order every time.

    A folder's files come before those of its sub-folders, each sorted by name. Hidden files and
    folders are passed over; links to folders are not followed, so that a loop cannot trap us.
    Memory holds the names of one branch of the tree, never all of them.

    Args:
        folder: Where to look.
        exclude: A folder to leave out, for instance the one that results go to.
        suffixes: What counts as a picture, in lower case.

    Raises:
        DatasetError: ``folder`` is no folder, or it or a sub-folder cannot be read.
    """
    top = Path(folder)
    if not is_folder(top):
        raise DatasetError(f"list_images: {printable(top)} is not a folder.", path=top)
    return _walk(top, None if exclude is None else Path(exclude).resolve(), suffixes)


def _walk(folder: Path, exclude: Path | None, suffixes: frozenset[str]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not entry.name.startswith(".")
            )
    except OSError as error:
        raise DatasetError(
            f"list_images: {printable(folder)} cannot be listed: {error.strerror}.", path=folder
        ) from error
    for name, is_folder in listed:
        if not is_folder and PurePath(name).suffix.lower() in suffixes:
            yield folder / name
    for name, is_folder in listed:
        if is_folder and (exclude is None or (folder / name).resolve() != exclude):
            yield from _walk(folder / name, exclude, suffixes)


def iter_items(
    folder: str | os.PathLike[str],
    *,
    exclude: str | os.PathLike[str] | None = None,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
) -> Iterator[ImageItem]:
    """Yield the pictures of :func:`list_images` with their keys."""
    top = Path(folder)
    for path in list_images(top, exclude=exclude, suffixes=suffixes):
        yield ImageItem(path.relative_to(top).as_posix(), path)


def count_images(
    folder: str | os.PathLike[str],
    *,
    exclude: str | os.PathLike[str] | None = None,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
) -> int:
    """Count the pictures of :func:`list_images`.

    Raises:
        DatasetError: There are none.
    """
    total = sum(1 for _ in list_images(folder, exclude=exclude, suffixes=suffixes))
    if total == 0:
        raise DatasetError(
            f"list_images: {printable(folder)} holds no pictures (files ending in .jpg, .png and "
            "the like).",
            path=folder,
        )
    return total
