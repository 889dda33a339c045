# SPDX-License-Identifier: Apache-2.0
"""Folders are walked in a fixed order, links and hidden files aside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from patchword.data import count_images, iter_items, list_images
from patchword.errors import DatasetError


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_order_and_suffixes(tmp_path: Path) -> None:
    make(
        tmp_path, "b.jpg", "a.PNG", "notes.txt", "z/a.jpg", "c/b.webp", "c/a.jpeg", ".hidden/a.jpg"
    )
    make(tmp_path, ".a.jpg", "a.jpg.txt")
    keys = [item.key for item in iter_items(tmp_path)]
    assert keys == ["a.PNG", "b.jpg", "c/a.jpeg", "c/b.webp", "z/a.jpg"]
    assert count_images(tmp_path) == 5


def test_same_stem_gives_different_keys(tmp_path: Path) -> None:
    make(tmp_path, "cat.jpg", "cat.png", "x/cat.jpg")
    keys = [item.key for item in iter_items(tmp_path)]
    assert len(set(keys)) == 3


def test_excluded_folder_and_linked_loop(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "out/b.jpg", "in/c.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    (tmp_path / "in" / "d.jpg").symlink_to(tmp_path / "a.jpg")
    keys = [item.key for item in iter_items(tmp_path, exclude=tmp_path / "in" / ".." / "out")]
    assert keys == ["a.jpg", "in/c.jpg", "in/d.jpg"]


def test_is_lazy(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b/c.jpg")
    walk = list_images(tmp_path)
    assert next(walk) == tmp_path / "a.jpg"
    (tmp_path / "b" / "c.jpg").rename(tmp_path / "b" / "d.jpg")
    assert next(walk) == tmp_path / "b" / "d.jpg"


def test_stamp_follows_the_file(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    (item,) = iter_items(tmp_path)
    before = item.stamp()
    os.utime(item.path, ns=(1, 1))
    assert item.stamp() == (5, 1) != before
    item.path.unlink()
    assert item.stamp() == (-1, -1)


def test_empty_missing_and_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no pictures"):
        count_images(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder"):
        list_images(tmp_path / "none")
    make(tmp_path, "a.jpg")
    with pytest.raises(DatasetError, match="is not a folder"):
        list_images(tmp_path / "a.jpg")
