# SPDX-License-Identifier: Apache-2.0
"""Reads the photographs that pairs are made of, and keeps the last ones decoded."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from patchword.data.io import printable, read_image
from patchword.errors import DatasetError
from patchword.systems.segswap.recipe import STRIDE

Pixels = npt.NDArray[np.uint8]
_DEFAULT_BYTES = 256 * 2**20


class PictureCache:
    """Decoded photographs, the least recently used dropped first.

    It pays for small collections, where every photograph is used many times; for a large one it
    costs its memory and nothing else.
    """

    def __init__(self, max_bytes: int = _DEFAULT_BYTES) -> None:
        """Keep at most ``max_bytes`` of pixels."""
        self.max_bytes = max_bytes
        self._kept: OrderedDict[tuple[Path, int], Pixels] = OrderedDict()
        self._bytes = 0

    def read(self, path: Path) -> Pixels:
        """Give a photograph at its own size, ``[H, W, 3]``; it must not be changed.

        Raises:
            DatasetError: It cannot be read or is smaller than a patch.
        """
        kept = self._find((path, 0))
        if kept is not None:
            return kept
        pixels = read_image(path)
        if min(pixels.shape[:2]) < STRIDE:
            raise DatasetError(
                f"read_image: {printable(path)}: picture must be at least {STRIDE} pixels high "
                f"and wide, got {pixels.shape[1]} x {pixels.shape[0]}.",
                path=path,
            )
        return self._keep((path, 0), pixels)

    def squashed(self, path: Path, size: int) -> Pixels:
        """Give a photograph resized to ``size`` x ``size`` whatever its shape.

        Raises:
            DatasetError: See :meth:`read`.
        """
        kept = self._find((path, size))
        if kept is not None:
            return kept
        return self._keep((path, size), squash(self.read(path), size))

    def _find(self, key: tuple[Path, int]) -> Pixels | None:
        pixels = self._kept.get(key)
        if pixels is not None:
            self._kept.move_to_end(key)
        return pixels

    def _keep(self, key: tuple[Path, int], pixels: Pixels) -> Pixels:
        pixels.flags.writeable = False
        self._kept[key] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return pixels


def squash(pixels: Pixels, size: int) -> Pixels:
    """Resize to ``size`` x ``size``, bilinear with Pillow, whatever the shape."""
    image = Image.fromarray(pixels)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))
