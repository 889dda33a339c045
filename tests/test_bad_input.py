# SPDX-License-Identifier: Apache-2.0
"""Every kind of bad input gives one clear sentence, the right exit code, and loses nothing."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import fakes
import numpy as np
import pytest
from PIL import Image

from patchword.cli.main import main

NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def missing(path: Path) -> None:
    pass


def zero_byte(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    Image.fromarray(NOISE).save(path)
    path.write_bytes(path.read_bytes()[:900])


def no_image(path: Path) -> None:
    path.write_text("Dear diary\n" * 50)


def a_folder(path: Path) -> None:
    path.mkdir()


def huge(path: Path) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(b""), b"IEND"]
    body = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


def sixteen_bit(path: Path) -> None:
    Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257).save(path)


def cmyk(path: Path) -> None:
    Image.fromarray(NOISE).convert("CMYK").save(path, "JPEG")


def palette(path: Path) -> None:
    Image.fromarray(NOISE).convert("P").save(path)


def exif_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NOISE).save(path, "JPEG", exif=exif)


def animated(path: Path) -> None:
    frames = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1)).save(path)


UNREADABLE = {
    missing: "there is no such file",
    zero_byte: "the file is empty (0 bytes)",
    truncated: "damaged or truncated picture",
    no_image: "not a picture in any known format",
    a_folder: "this is a folder, not a picture",
    huge: "picture must have at most 100 megapixels, got 900",
}
READABLE = {
    sixteen_bit: (40, 50),
    cmyk: (40, 50),
    palette: (40, 50),
    exif_rotated: (50, 40),
    animated: (40, 50),
    one_pixel: (1, 1),
}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    for name, module in fakes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(NOISE).save("good.png")

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


def assert_one_sentence(err: str, text: str) -> None:
    assert text in err
    assert err.startswith("patchword: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("make", UNREADABLE, ids=lambda f: f.__name__)
def test_unreadable_picture(call: Call, make: Callable[[Path], None]) -> None:
    make(Path("bad.png"))
    for words in (
        ("match", "bad.png", "good.png"),
        ("match", "good.png", "bad.png"),
        ("match", "bad.png", "--gallery", "."),
    ):
        code, out, err = call(*words, "-o", "out")
        assert (code, out) == (1, "")
        assert_one_sentence(err, f"bad.png: {UNREADABLE[make]}")
    if make is not a_folder:
        code, out, err = call("locate", "bad.png", "--text", "x", "-o", "out")
        assert (code, out) == (1, "")
        assert_one_sentence(err, f"bad.png: {UNREADABLE[make]}")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "make", [f for f in UNREADABLE if f not in (missing, a_folder)], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("command", ["locate", "gallery"])
def test_unreadable_picture_in_a_folder(
    call: Call, make: Callable[[Path], None], command: str
) -> None:
    Path("photos").mkdir()
    for name in ("a.png", "c.png"):
        Image.fromarray(NOISE).save(Path("photos") / name)
    make(Path("photos/b.png"))
    words = {
        "locate": ("locate", "photos", "--text", "x"),
        "gallery": ("match", "good.png", "--gallery", "photos"),
    }[command]
    code, out, err = call(*words, "-o", "out", "--json")
    result = json.loads(out)["result"]
    assert code == 1
    assert (result["done"], result["failed"]) == (2, 1)
    assert [failure["key"] for failure in result["failures"]] == ["b.png"]
    assert f"b.png: {UNREADABLE[make]}" in err
    assert "Traceback" not in err
    assert "b.png" in Path("out/index.html").read_text()


@pytest.mark.parametrize("make", READABLE, ids=lambda f: f.__name__)
def test_unusual_picture_works(call: Call, make: Callable[[Path], None]) -> None:
    make(Path("odd.png"))
    code, out, _ = call("match", "odd.png", "good.png", "--json")
    assert code == 0
    result = json.loads(out)["result"]
    assert tuple(result["size0"]) == READABLE[make]
    code, out, _ = call("locate", "odd.png", "--text", "x", "--json")
    assert code == 0
    assert tuple(json.loads(out)["result"]["size"]) == READABLE[make]


@pytest.mark.parametrize(
    "words", [("locate", "empty", "--text", "x"), ("match", "good.png", "--gallery", "empty")]
)
def test_empty_folder(call: Call, words: tuple[str, ...]) -> None:
    Path("empty").mkdir()
    code, out, err = call(*words, "-o", "out")
    assert (code, out) == (1, "")
    assert_one_sentence(err, "empty holds no pictures")
    assert not Path("out").exists()


def test_missing_folder(call: Call) -> None:
    code, _, err = call("match", "good.png", "--gallery", "none")
    assert code == 1
    assert_one_sentence(err, "none is not a folder")
    code, _, err = call("evaluate", "match", "--data", "none")
    assert code == 1
    assert_one_sentence(err, "none is not a folder")


@pytest.mark.parametrize(
    "words",
    [
        ("match", "good.png", "good.png"),
        ("match", "good.png", "--gallery", "photos"),
        ("locate", "good.png", "--text", "x"),
        ("locate", "photos", "--text", "x"),
    ],
)
@pytest.mark.parametrize("out", ["file", "file/below/it"])
def test_unwritable_output(call: Call, words: tuple[str, ...], out: str) -> None:
    Path("file").write_text("precious")
    Path("photos").mkdir()
    Image.fromarray(NOISE).save("photos/a.png")
    code, printed, err = call(*words, "-o", out)
    assert (code, printed) == (1, "")
    assert_one_sentence(err, "cannot be written: Not a directory")
    assert Path("file").read_text() == "precious"


def test_unwritable_report_is_noticed_before_measuring(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object, **__: object) -> None:
        raise AssertionError("measured first")

    monkeypatch.setattr(sys.modules["patchword.evaluation"], "evaluate_match", measure)
    Path("file").touch()
    code, _, err = call("evaluate", "match", "--data", ".", "-o", "file/report")
    assert code == 1
    assert_one_sentence(err, "cannot be written: Not a directory")


@pytest.mark.parametrize(("text", "length"), [("", 0), ("   ", 0), ("x" * 10_000, 10_000)])
def test_phrase_length(call: Call, text: str, length: int) -> None:
    code, out, err = call("locate", "good.png", "--text", text, "-o", "out")
    assert (code, out) == (2, "")
    assert_one_sentence(err, f"a phrase must have 1 to 1000 characters, got {length}")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "box", ["40,0,20,10", "-1,0,5,5", "0,0,0,5", "0,0,5,-5", "0,0,nan,5", "0,0,inf,5"]
)
@pytest.mark.parametrize("target", [("good.png",), ("--gallery", ".")])
def test_box_outside_the_picture(call: Call, box: str, target: tuple[str, ...]) -> None:
    code, out, err = call("match", "good.png", *target, f"--box={box}", "-o", "out")
    assert (code, out) == (2, "")
    assert_one_sentence(err, "box must have an area and lie inside the query of 50 x 40 pixels")
    assert not Path("out").exists()


def test_result_folder_equal_to_input(call: Call) -> None:
    Path("photos").mkdir()
    Image.fromarray(NOISE).save("photos/a.png")
    for words in (
        ("locate", "photos", "--text", "x", "-o", "photos"),
        ("locate", "photos", "--text", "x", "-o", "photos/../photos", "--overwrite"),
        ("match", "good.png", "--gallery", "photos", "-o", "."),
    ):
        code, _, err = call(*words)
        assert code == 2
        assert_one_sentence(err, "must not be or contain the input folder")
    assert [p.name for p in Path("photos").iterdir()] == ["a.png"]


def test_names_that_collide_or_bite(call: Call) -> None:
    names = [
        "cat.png",
        "cat.gif",
        "x/cat.png",
        "y/cat.png",
        "caf\u00e9 \u732b.png",
        "a b.png",
        'it\'s "quoted".png',
        "two\nlines.png",
        "<script>alert(1);.png",
        "-o.png",
        "CON.png",
        "a" * 240 + ".png",
        os.fsdecode(b"\xff\xfe.png"),
    ]
    for index, name in enumerate(names):
        path = Path("photos") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "GIF" if path.suffix == ".gif" else "PNG"
        Image.new("RGB", (8 + index, 8)).save(path, kind)
    code, out, err = call("locate", "photos", "--text", "x", "-o", "out", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["result"]["done"] == len(names)
    for index, name in enumerate(names):
        record = json.loads((Path("out/items") / name / "result.json").read_text())
        assert (record["input"], record["size"]) == (name, [8, 8 + index])
    assert "<script>" not in Path("out/index.html").read_text()


def test_foreign_result_folder_is_kept(call: Call) -> None:
    Path("out").mkdir()
    Path("out/mask0.png").write_text("precious")
    code, _, err = call("match", "good.png", "good.png", "-o", "out")
    assert code == 2
    assert_one_sentence(err, "holds other files. Choose another or pass --overwrite.")
    assert Path("out/mask0.png").read_text() == "precious"
