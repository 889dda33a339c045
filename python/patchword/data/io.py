# SPDX-License-Identifier: Apache-2.0
"""Turns a file, a PIL image, an array or a tensor into one kind of picture: uint8 RGB [H, W, 3]."""

from __future__ import annotations

import logging
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from patchword.errors import DatasetError, DTypeError, OptionError, ShapeError

if TYPE_CHECKING:
    import torch

    ImageSource = str | os.PathLike[str] | Image.Image | NDArray[Any] | torch.Tensor

logger = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000
"""Default limit on width times height of a file: 300 MB once decoded."""

# Pillow refuses anything above twice its warning threshold before we see the size.
_PILLOW_MAX_PIXELS = 178_956_970

_UINT8_MAX = 255
_UINT16_MAX = 65535
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a picture as uint8 RGB, upright, without alpha.

    EXIF rotation is applied, palettes and CMYK become RGB, 16-bit values are divided by 257,
    transparent pixels are composited on white, and of an animation the first frame is taken
    (said once through :mod:`logging`). A file over ``max_pixels`` is refused from its header and
    never decoded, JPEG included: quietly decoding it smaller would change pixel coordinates.

    Args:
        source: A path; a PIL image; an array ``[H, W]`` or ``[H, W, 1|3|4]``; or a tensor
            ``[H, W]``, ``[1|3|4, H, W]`` or ``[1, 3, H, W]``. Floating-point values must lie in
            [0, 1], uint16 ones in [0, 65535].
        max_pixels: Largest ``H * W`` accepted from a file, at most 178,956,970 (Pillow's own).

    Returns:
        A contiguous array ``[H, W, 3]``, RGB. It never shares memory with ``source``.

    Raises:
        DatasetError: The file is missing, empty, truncated, no picture, or too large.
        ShapeError: An array or tensor has another rank, no pixels, or a strange channel count.
        DTypeError: ``source`` or its element type is none of the above.
        OptionError: Floating-point values are outside [0, 1], or ``max_pixels`` is out of range.
    """
    if not 1 <= max_pixels <= _PILLOW_MAX_PIXELS:
        raise OptionError(
            f"read_image: max_pixels must be in [1, {_PILLOW_MAX_PIXELS}], got {max_pixels}."
        )
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), max_pixels)
    if isinstance(source, Image.Image):
        return _upright_rgb(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if hasattr(source, "detach") and hasattr(source, "movedim"):
        return _from_tensor(source)
    raise DTypeError(
        "read_image: source must be a path, a PIL image, an array or a tensor, "
        f"got {type(source).__name__}."
    )


def _read_file(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    name = printable(path)
    size_bytes = _regular_size(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(path, width * height, max_pixels)
            if getattr(image, "is_animated", False) and image.format != "MPO":
                logger.warning("read_image: %s: has several frames; the first is used", name)
            return _upright_rgb(image)
    except DatasetError:
        raise
    except PermissionError as error:
        raise DatasetError(f"read_image: {name}: permission denied.", path=path) from error
    except UnidentifiedImageError as error:
        raise DatasetError(
            f"read_image: {name}: not a picture in any known format ({size_bytes} bytes).",
            path=path,
        ) from error
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        pixels = int(found.group(1)) if found else _PILLOW_MAX_PIXELS
        raise _too_large(path, pixels, max_pixels) from error
    # Pillow's decoders answer damaged data with nearly any exception type.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(
            f"read_image: {name}: damaged or truncated picture ({reason}).", path=path
        ) from error


def _regular_size(path: Path) -> int:
    """Size in bytes of a regular, non-empty file; reading a pipe or device could wait forever."""
    name = printable(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"read_image: {name}: there is no such file.", path=path) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DatasetError(
            f"read_image: {name[:200]}: cannot be opened ({reason}).", path=path
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise DatasetError(f"read_image: {name}: this is a folder, not a picture.", path=path)
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError(f"read_image: {name}: this is no regular file.", path=path)
    if status.st_size == 0:
        raise DatasetError(f"read_image: {name}: the file is empty (0 bytes).", path=path)
    return status.st_size


def _too_large(path: Path, pixels: int, max_pixels: int) -> DatasetError:
    return DatasetError(
        f"read_image: {printable(path)}: picture must have at most {max_pixels / 1e6:g} "
        f"megapixels, got {pixels / 1e6:.4g}. Shrink it or raise max_pixels.",
        path=path,
    )


def _upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    orientation = _orientation(image)
    rgb = _to_rgb(image)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb, dtype=np.uint8)


def _orientation(image: Image.Image) -> int | None:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    # A damaged EXIF block must not cost the picture behind it.
    except Exception as error:
        logger.debug("read_image: EXIF ignored: %s", error)
        return None
    return value if isinstance(value, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16"):
        return Image.fromarray(_from_array(np.asarray(image, dtype=np.uint16)))
    if mode in ("I", "F"):
        return Image.fromarray(_stretch(np.asarray(image, dtype=np.float64), mode))
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _stretch(values: NDArray[np.float64], mode: str) -> NDArray[np.uint8]:
    """Map 32-bit pixels, whose white point no file states, to bytes."""
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    if mode == "I" and low >= 0 and high <= _UINT16_MAX:
        low, high = 0.0, float(_UINT16_MAX)
    elif mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    else:
        logger.warning("read_image: 32-bit pixels scaled from their range [%g, %g]", low, high)
    scaled = (finite - low) * (_UINT8_MAX / max(high - low, 1e-12))
    return _replicate(np.rint(scaled).astype(np.uint8)[..., None])


def _from_tensor(tensor: torch.Tensor) -> NDArray[np.uint8]:
    shape = list(tensor.shape)
    batched = tensor.detach()
    if len(shape) == 4 and shape[0] == 1:
        batched = batched[0]
    if batched.ndim == 3:
        if batched.shape[0] not in (1, 3, 4):
            raise ShapeError(
                f"read_image: a tensor must be [C, H, W] with C of 1, 3 or 4, got {shape}.",
                expected="[C, H, W]",
                actual=shape,
            )
        batched = batched.movedim(0, -1)
    if batched.is_floating_point():
        batched = batched.float()
    return _from_array(batched.cpu().numpy())


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0:
        raise ShapeError(
            "read_image: an array must be [H, W] or [H, W, 1|3|4] with at least one pixel, "
            f"got {list(array.shape)}.",
            expected="[H, W, 3]",
            actual=array.shape,
        )
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(_UINT8_MAX)
    elif pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif np.issubdtype(pixels.dtype, np.floating):
        # The comparison is false for NaN too.
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise OptionError(
                "read_image: floating-point pixels must lie in [0, 1], got "
                f"[{pixels.min():g}, {pixels.max():g}]. Divide by 255 or pass uint8."
            )
        pixels = np.rint(pixels * _UINT8_MAX).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise DTypeError(
            f"read_image: pixels must be uint8, uint16, bool or floating point, got {pixels.dtype}."
        )
    if pixels.shape[2] == 4:
        return _upright_rgb(Image.fromarray(np.ascontiguousarray(pixels)))
    return _replicate(pixels)


def _replicate(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width, _ = pixels.shape
    return np.array(np.broadcast_to(pixels, (height, width, 3)), order="C")


def printable(path: str | os.PathLike[str]) -> str:
    """Give a file's name on one line, whatever bytes it holds."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
