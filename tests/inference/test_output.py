# SPDX-License-Identifier: Apache-2.0
"""Result folders are never someone else's, and files in them are whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchword.errors import ConfigError, OutputError
from patchword.inference.atomic import open_atomic, write_bytes, write_image, write_json
from patchword.inference.naming import slug
from patchword.inference.output import check_output, open_output

SETTINGS = {"command": "locate", "texts": ["a"]}


def test_new_same_and_other_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_output(out, SETTINGS):
        (out / "items").mkdir()
    check_output(out, SETTINGS)
    with pytest.raises(ConfigError, match=r"other settings \(different: texts\)"):
        check_output(out, {**SETTINGS, "texts": ["b"]})


def test_overwrite_removes_own_files_only(tmp_path: Path) -> None:
    with open_output(tmp_path, SETTINGS):
        (tmp_path / "items" / "x").mkdir(parents=True)
        (tmp_path / "journal.jsonl").touch()
        (tmp_path / "thesis.txt").touch()
    with open_output(tmp_path, SETTINGS, overwrite=True):
        assert {p.name for p in tmp_path.iterdir()} == {".lock", "run.json", "thesis.txt"}


def test_overwrite_of_a_foreign_folder_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "run.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match="holds other files"):
        check_output(tmp_path, SETTINGS)
    with open_output(tmp_path, SETTINGS, overwrite=True):
        assert (tmp_path / "items").is_dir()


@pytest.mark.parametrize("out", ["photos", "photos/../photos", "."])
@pytest.mark.parametrize("overwrite", [False, True])
def test_input_folder_is_never_the_output(tmp_path: Path, out: str, overwrite: bool) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(ConfigError, match="must not be or contain the input folder"):
        check_output(tmp_path / out, SETTINGS, inputs=(photos,), overwrite=overwrite)


def test_second_run_is_locked_out(tmp_path: Path) -> None:
    second = open_output(tmp_path, SETTINGS)
    with open_output(tmp_path, SETTINGS), pytest.raises(ConfigError, match="another run is"):
        second.__enter__()
    with open_output(tmp_path, SETTINGS):
        pass


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be written"), open_output(out, SETTINGS):
            pass


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a" / "b.txt", b"old")

    def write_half() -> None:
        with open_atomic(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_nan_never_reaches_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_palette_png_keeps_indices_and_colours(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2]], np.uint8)
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    with Image.open(write_image(tmp_path / "a.png", indices, palette=palette)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), indices)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[0], palette)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red car!", "a-red-car"),
        ("../../etc", "etc"),
        ("caf\u00e9", "cafe"),
        ("\u732b", "x"),
        ("", "x"),
        ("a" * 500, "a" * 40),
    ],
)
def test_slugs(text: str, expected: str) -> None:
    assert slug(text) == expected
