# SPDX-License-Identifier: Apache-2.0
"""Files that appear complete or not at all, also when the process or the machine dies."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchword.data.io import printable
from patchword.errors import OutputError


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path``; on a clean exit flush, fsync and rename it there.

    The folder is made if needed.

    Raises:
        OutputError: The folder cannot be made or the file cannot be written.
    """
    # A fixed name, so that a run repeated after a kill overwrites what the kill left behind.
    temporary = path.with_name(f".{path.name}.tmp")
    make_folder(path.parent)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise output_error(path, error) from error
        raise


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a whole file as :func:`open_atomic` does.

    Raises:
        OutputError: The folder cannot be made or the file cannot be written.
    """
    with open_atomic(path) as file:
        file.write(content)
    return path


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents; an existing one is fine.

    Raises:
        OutputError: It cannot be made, for instance because a file stands in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    return folder


def output_error(path: Path, error: OSError) -> OutputError:
    """Say in one sentence why ``path`` cannot be written."""
    reason = error.strerror or str(error)
    return OutputError(f"write: {printable(path)} cannot be written: {reason}.")


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text as :func:`write_bytes` does; lone surrogates become question marks."""
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> Path:
    """Write indented strict JSON (no NaN) as :func:`write_bytes` does."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_image(
    path: Path,
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    *,
    palette: NDArray[np.uint8] | None = None,
) -> Path:
    """Write PNG (exact) or JPEG (quality 90), by suffix, as :func:`write_bytes` does.

    Args:
        path: Ends in ``.png`` or ``.jpg``.
        pixels: ``[H, W]`` or ``[H, W, 3]`` uint8, or ``[H, W]`` uint16 (PNG only).
        palette: ``[n, 3]`` colours; then ``pixels`` are indices into it.
    """
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    if path.suffix == ".png":
        image.save(buffer, "PNG", compress_level=4)
    else:
        image.save(buffer, "JPEG", quality=90, subsampling=0)
    return write_bytes(path, buffer.getvalue())
