# SPDX-License-Identifier: Apache-2.0
"""Pastes a patch into a picture without a visible seam.

Seamless cloning after Pérez, Gangnet and Blake (2003), in the discrete form of OpenCV's
``seamlessClone(NORMAL_CLONE)``: gradients of the patch inside the mask less three pixels and of
the picture elsewhere, the picture's own values on the rim of the mask's bounding box. OpenCV
solves it by Fourier transforms of twice the size, whose time depends on the factors of that size;
here it is products with sine matrices, whose time depends on the size alone.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[np.uint8]
_ERODE = 3
_FEATHER = 3.0


def bounding_box(mask: npt.NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Box ``x0 y0 x1 y1``, half-open, of the pixels that are not zero; None if there are none."""
    x, y, width, height = cv2.boundingRect(mask)
    return (x, y, x + width, y + height) if width and height else None


def paste(
    patch: Pixels, mask: Pixels, background: Pixels, corner: tuple[int, int], *, blend: str
) -> Pixels:
    """Blend a patch into a picture with its top-left pixel exactly at ``corner``.

    Args:
        patch: ``[h, w, 3]``.
        mask: ``[h, w]``, above 127 belongs to the object.
        background: ``[H, W, 3]``; not changed.
        corner: ``(x, y)`` in ``background``; the whole patch lies inside.
        blend: ``"poisson"``, ``"opencv"`` or ``"feather"``.

    Returns:
        A new picture ``[H, W, 3]``.
    """
    x, y = corner
    binary = np.where(mask > 127, np.uint8(255), np.uint8(0))
    if blend == "feather":
        result = background.copy()
        place = (slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]))
        inner = cv2.erode(binary, np.ones((3, 3), np.uint8), borderValue=0)
        alpha = cv2.GaussianBlur(inner, (0, 0), _FEATHER / 2)[:, :, None] / np.float32(255)
        mixed = patch * alpha + background[place] * (1 - alpha)
        result[place] = np.rint(mixed).astype(np.uint8)
        return result
    box = bounding_box(binary)
    if box is None or min(box[2] - box[0], box[3] - box[1]) < _ERODE:
        return background.copy()
    if blend == "opencv":
        return _paste_opencv(patch, binary, background, (x, y), box)
    x0, y0, x1, y1 = box
    result = background.copy()
    place = (slice(y + y0, y + y1), slice(x + x0, x + x1))
    result[place] = clone(patch[y0:y1, x0:x1], binary[y0:y1, x0:x1], background[place])
    return result


def _paste_opencv(
    patch: Pixels,
    mask: Pixels,
    background: Pixels,
    corner: tuple[int, int],
    box: tuple[int, int, int, int],
) -> Pixels:
    """Call OpenCV so that the patch lands exactly at ``corner``.

    OpenCV drops the outermost ring of the mask and centres the bounding box of the rest, so a ring
    is added for it to drop and the centre is that of the box.
    """
    rim = 2
    framed = cv2.copyMakeBorder(patch, rim, rim, rim, rim, cv2.BORDER_REPLICATE)
    framed_mask = cv2.copyMakeBorder(mask, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=0)
    x0, y0, x1, y1 = box
    center = (corner[0] + x0 + (x1 - x0) // 2, corner[1] + y0 + (y1 - y0) // 2)
    cloned: Pixels = cv2.seamlessClone(framed, background, framed_mask, center, cv2.NORMAL_CLONE)
    return cloned


def clone(patch: Pixels, mask: Pixels, background: Pixels) -> Pixels:
    """Solve for the blended picture on one box; all three arguments have its height and width.

    Args:
        patch: ``[h, w, 3]``.
        mask: ``[h, w]``, 0 or 255.
        background: ``[h, w, 3]``; its outermost ring is kept.
    """
    height, width = mask.shape
    if min(height, width) < 3:
        return background.copy()
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(
        mask, kernel, iterations=_ERODE, borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    chosen = (inner > 0).astype(np.float32)[:, :, None]
    below = background.astype(np.float32)
    lead = patch - below
    # What is to be added to the background has zeros on the rim and, inside the mask, the
    # gradients of patch minus background.
    along_x = (lead[1:-1, 1:] - lead[1:-1, :-1]) * chosen[1:-1, :-1]
    along_y = (lead[1:, 1:-1] - lead[:-1, 1:-1]) * chosen[:-1, 1:-1]
    divergence = along_x[:, 1:] - along_x[:, :-1]
    divergence += along_y[1:] - along_y[:-1]
    below[1:-1, 1:-1] += solve_poisson(torch.from_numpy(divergence)).numpy()
    # OpenCV cuts fractions off, so we do.
    return np.clip(below, 0, 255, out=below).astype(np.uint8)


def solve_poisson(right: Tensor) -> Tensor:
    """Solve the five-point Laplacian ``[h, w, C]`` with zeros around it, by its eigenvectors."""
    height, width = right.shape[:2]
    along_x = _analyse(right.transpose(0, 1).contiguous())
    spectrum = _analyse(along_x.transpose(0, 1).contiguous())
    spectrum /= (_eigenvalues(height)[:, None] + _eigenvalues(width))[:, :, None]
    along_y = _synthesise(spectrum)
    return _synthesise(along_y.transpose(0, 1).contiguous()).transpose(0, 1)


def _analyse(values: Tensor) -> Tensor:
    """Sine transform over axis 0; waves that are even about the middle come first, then odd ones.

    Splitting by symmetry halves the work of the matrix products.
    """
    count = len(values)
    even, odd = _sines(count)
    half = count // 2
    front, back = values[:half], values[count - half :].flip(0)
    folded = front + back
    if count % 2:
        folded = torch.cat([folded, values[half : half + 1]])
    parts = (even.T @ folded.flatten(1), odd.T @ (front - back).flatten(1))
    return torch.cat(parts).view(values.shape)


def _synthesise(spectrum: Tensor) -> Tensor:
    """Undo :func:`_analyse`."""
    count = len(spectrum)
    even, odd = _sines(count)
    half = count // 2
    flat = spectrum.flatten(1)
    symmetric, skew = even @ flat[: even.shape[1]], odd @ flat[even.shape[1] :]
    outer = symmetric[:half]
    parts = [outer + skew, symmetric[half:], (outer - skew).flip(0)]
    return torch.cat(parts).view(spectrum.shape)


@lru_cache(maxsize=256)
def _sines(count: int) -> tuple[Tensor, Tensor]:
    """First half of the orthonormal sine waves of ``count`` points: even ones and odd ones."""
    places = np.arange(1, count - count // 2 + 1)
    waves = np.arange(1, count + 1)
    matrix = np.sqrt(2.0 / (count + 1)) * np.sin(np.pi / (count + 1) * np.outer(places, waves))
    rows = torch.from_numpy(matrix.astype(np.float32))
    return rows[:, 0::2].contiguous(), rows[: count // 2, 1::2].contiguous()


@lru_cache(maxsize=1024)
def _eigenvalues(count: int) -> Tensor:
    """Eigenvalues of the second difference, in the order of :func:`_analyse`."""
    values = 2.0 * np.cos(np.pi / (count + 1) * np.arange(1, count + 1)) - 2.0
    return torch.from_numpy(np.concatenate([values[0::2], values[1::2]]).astype(np.float32))
