# SPDX-License-Identifier: Apache-2.0
"""Every kind of file becomes upright uint8 RGB, or one sentence that names it."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.data import read_image
from patchword.data.io import printable
from patchword.errors import DatasetError, DTypeError, OptionError, ShapeError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants() -> np.ndarray:
    """A picture whose orientation can be told: red green / blue white."""
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[:2, :3], picture[:2, 3:] = RED, GREEN
    picture[2:, :3], picture[2:, 3:] = BLUE, WHITE
    return picture


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_rgb_png_is_exact(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, quadrants())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(quadrants())
    # How a camera stores the picture so that this tag turns it upright.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), quadrants())


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 1], [0, 128, 255])


def test_palette_is_resolved(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).convert("P", palette=Image.Palette.ADAPTIVE).save(
        tmp_path / "a.png"
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), quadrants())


def test_cmyk_jpeg_has_the_right_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    read = read_image(tmp_path / "a.jpg").astype(int)
    assert np.abs(read - RED).max() < 12


def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535, 300]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 0], [0, 1, 128, 255, 1])


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    bgr = np.zeros((3, 3, 3), np.uint16)
    bgr[..., 2] = 65535
    bgr[..., 1] = 128 * 257
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, 0], [255, 128, 0])


def test_float_tiff_in_unit_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tiff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff")[0, :, 0], [0, 128, 255])


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    Image.fromarray(rgba).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")[0, :, 0]
    assert read[0] == 255
    assert abs(int(read[1]) - 127) <= 1
    assert read[2] == 0


def test_transparent_palette_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[WHITE, RED]])


def test_animation_gives_first_frame_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING, "patchword"):
        read = read_image(tmp_path / "a.gif")
    np.testing.assert_array_equal(read, np.broadcast_to(np.uint8(RED), (4, 5, 3)))
    assert "several frames" in caplog.text


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), BLUE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[BLUE]])


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "webp", "tiff"])
def test_truncated(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=rf"^read_image: .*a\.{kind}: ") as caught:
        read_image(path)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DatasetError, match=r"a\.jpg: the file is empty \(0 bytes\)\."):
        read_image(tmp_path / "a.jpg")


def test_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(DatasetError, match=r"a\.jpg: not a picture in any known format"):
        read_image(tmp_path / "a.jpg")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.jpg: there is no such file\."):
        read_image(tmp_path / "none.jpg")


def test_names_the_system_cannot_look_up(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="File name too long"):
        read_image(tmp_path / ("a" * 300))
    with pytest.raises(DatasetError, match="cannot be opened"):
        read_image("a\0b.png")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="there is no such file"):
        read_image(tmp_path / "file" / "a.png")


@pytest.mark.timeout(20)
def test_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="no regular file"):
        read_image(tmp_path / "a.png")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="this is a folder, not a picture"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(30_000, 30_000), (12_000, 10_000)])
def test_huge_is_refused_from_the_header(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", decode)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    megapixels = size[0] * size[1] // 1_000_000
    with pytest.raises(DatasetError, match=f"at most 100 megapixels, got {megapixels}") as caught:
        read_image(path)
    assert caught.value.path == path


def test_own_limit(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=24).shape == (4, 6, 3)
    with pytest.raises(DatasetError, match="megapixels"):
        read_image(tmp_path / "a.png", max_pixels=23)
    with pytest.raises(OptionError, match="max_pixels must be in"):
        read_image(tmp_path / "a.png", max_pixels=0)


def test_pil_image_array_and_tensor_agree() -> None:
    pixels = quadrants()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for source in (
        Image.fromarray(pixels),
        pixels,
        tensor,
        tensor[None],
        tensor.float() / 255,
        (tensor.double() / 255).requires_grad_(),
        pixels.astype(np.float32) / 255,
        pixels.astype(np.uint16) * 257,
    ):
        np.testing.assert_array_equal(read_image(source), pixels)


def test_grey_and_strided_arrays() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(read_image(grey)[..., 2], grey)
    np.testing.assert_array_equal(read_image(grey[::-1, ::2, None])[..., 0], grey[::-1, ::2])
    np.testing.assert_array_equal(read_image(torch.from_numpy(grey))[..., 0], grey)
    np.testing.assert_array_equal(read_image(grey > 5)[..., 0], (grey > 5) * 255)


def test_result_is_a_copy() -> None:
    pixels = quadrants()
    read_image(pixels)[:] = 7
    np.testing.assert_array_equal(pixels, quadrants())


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        (np.zeros((4, 4, 2), np.uint8), ShapeError, r"got \[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), ShapeError, "at least one pixel"),
        (np.zeros(4, np.uint8), ShapeError, r"got \[4\]"),
        (torch.zeros(2, 3, 4, 4), ShapeError, r"\[2, 3, 4, 4\]"),
        (torch.zeros(5, 4, 3), ShapeError, r"\[C, H, W\]"),
        (np.zeros((4, 4, 3), np.int64), DTypeError, "got int64"),
        (np.full((4, 4, 3), 200.0), OptionError, "Divide by 255"),
        (np.full((4, 4, 3), np.nan), OptionError, r"\[0, 1\]"),
        (np.full((4, 4, 3), -0.1), OptionError, r"\[0, 1\]"),
        (17, DTypeError, "got int"),
    ],
)
def test_wrong_sources(source: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        read_image(source)
    assert str(caught.value).startswith("read_image: ")


def test_names_stay_on_one_line() -> None:
    assert printable("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert printable("caf\u00e9 \u732b.png") == "caf\u00e9 \u732b.png"
    assert "\n" not in printable(b"\xff\n".decode("utf-8", "surrogateescape"))
