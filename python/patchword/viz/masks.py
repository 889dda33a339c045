# SPDX-License-Identifier: Apache-2.0
"""Translucent regions with contours on a picture; opencv stays inside this file and RGB outside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from patchword.viz.style import SHARED, Color

ALPHA = 0.5
CONTOUR_LEVEL = 0.5
_CONTOUR_PX = 2
_FADE = 0.75


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize ``[H, W, 3]`` to ``size = (H, W)``, averaging when it gets smaller."""
    import cv2

    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size[::-1], interpolation=method), dtype=np.uint8)


def resize_mask(mask: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a soft mask ``[H, W]`` to ``size = (H, W)`` bilinearly."""
    import cv2

    resized = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)


def resize_labels(labels: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Resize a label map ``[H, W]`` to ``size = (H, W)`` by nearest centres."""
    rows = ((np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]).astype(np.int64)
    picked: NDArray[np.int64] = labels[rows[:, None], columns[None, :]]
    return picked


def overlay_mask(
    image: NDArray[np.uint8], mask: NDArray[np.floating], color: Color, *, quiet: bool = False
) -> NDArray[np.uint8]:
    """Tint ``image`` ``[H, W, 3]`` by ``ALPHA * mask`` and trace where the mask crosses one half.

    ``quiet`` fades the colours outside, so that a region shows on ground of its own colour.
    """
    soft = np.clip(np.nan_to_num(mask), 0, 1)[..., None].astype(np.float32)
    ground = image.astype(np.float32)
    if quiet:
        grey = 0.8 * ground.mean(axis=2, keepdims=True) + 0.2 * 255
        ground += (grey - ground) * np.float32(_FADE) * (1 - soft)
    weight = soft * np.float32(ALPHA)
    tinted = ground * (1 - weight) + np.asarray(color, dtype=np.float32) * weight
    out: NDArray[np.uint8] = np.rint(tinted).astype(np.uint8)
    _trace(out, np.asarray(mask) >= CONTOUR_LEVEL, color)
    return out


def overlay_labels(
    image: NDArray[np.uint8], labels: NDArray[np.int64], colors: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Tint each labelled region (label ``k >= 0``) with ``colors[k]`` and trace its border."""
    weight = np.where(labels >= 0, np.float32(ALPHA), np.float32(0))[..., None]
    table = np.vstack([colors, np.zeros((1, 3), np.uint8)])
    # Label -1 reads the last row, whose weight is 0.
    tinted = image * (1 - weight) + table[labels] * weight
    out: NDArray[np.uint8] = np.rint(tinted).astype(np.uint8)
    for k in present_labels(labels):
        red, green, blue = (int(c) for c in colors[k])
        _trace(out, labels == k, (red, green, blue))
    return out


def outline_box(
    image: NDArray[np.uint8], box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """Draw the border of a box ``x0 y0 x1 y1`` in pixels on a copy of ``image``."""
    region = np.zeros(image.shape[:2], dtype=np.bool_)
    x0, y0, x1, y1 = (round(value) for value in box)
    region[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    out = image.copy()
    _trace(out, region, SHARED)
    return out


def present_labels(labels: NDArray[np.int64]) -> list[int]:
    """List the labels ``k >= 0`` that occur."""
    found: list[int] = np.flatnonzero(np.bincount(labels.ravel() + 1)[1:]).tolist()
    return found


def _trace(image: NDArray[np.uint8], region: NDArray[np.bool_], color: Color) -> None:
    import cv2

    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # A white edge under the coloured one keeps it visible on any ground.
    cv2.drawContours(image, contours, -1, (255, 255, 255), _CONTOUR_PX + 2, cv2.LINE_AA)
    cv2.drawContours(image, contours, -1, color, _CONTOUR_PX, cv2.LINE_AA)
