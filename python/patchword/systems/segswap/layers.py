# SPDX-License-Identifier: Apache-2.0
"""Turns an object of one picture into a scaled and rotated patch, with the map between the two."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from patchword.geometry import Matrix, scale_matrix, warp_points

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


class RejectedSceneError(Exception):
    """A drawn scene gives no usable pair and another one is to be drawn."""


@dataclass(frozen=True)
class LayerDraw:
    """Random numbers of one object.

    Attributes:
        scale_x: Factor of the width before rotation.
        scale_y: Factor of the height.
        degrees: Rotation, counter-clockwise on the screen.
        share: Size relative to the largest that fits the box.
    """

    scale_x: float
    scale_y: float
    degrees: float
    share: float


@dataclass(frozen=True)
class Layer:
    """An object ready to be pasted.

    Attributes:
        patch: ``[h, w, 3]``.
        mask: ``[h, w]``, 0 to 255.
        matrix: 3 x 3, pixels of the picture to pixels of the patch.
    """

    patch: Pixels
    mask: Mask
    matrix: Matrix


def rotation_matrix(degrees: float, size: tuple[int, int]) -> Matrix:
    """Map of points for a rotation counter-clockwise on the screen with an enlarged canvas.

    Args:
        degrees: Angle in (-90, 90).
        size: ``(H, W)`` before the rotation.

    Returns:
        3 x 3; the result's smallest x and y are zero.
    """
    angle = math.radians(abs(degrees))
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.eye(3)
    if degrees >= 0:
        matrix[:2] = [[cos, sin, 0.0], [-sin, cos, size[1] * sin]]
    else:
        matrix[:2] = [[cos, -sin, size[0] * sin], [sin, cos, 0.0]]
    return matrix


def published_rotation(degrees: float) -> tuple[float, float]:
    """Degrees by which the published code turns pixels and models them (fault T5).

    Negative angles are converted to radians, taken for degrees, and for the model's matrix
    converted once more; the pixels turn the other way.

    Returns:
        The angle of the pixels and that of the matrix, counter-clockwise positive.
    """
    if degrees >= 0:
        return degrees, degrees
    radians = math.radians(-degrees)
    return radians, -radians


def exact_layer(image: Pixels, mask: Mask, draw: LayerDraw, room: tuple[int, int]) -> Layer:
    """Scale, rotate, crop and fit an object in a single resampling with an exact matrix.

    Args:
        image: ``[S, S, 3]``.
        mask: ``[S, S]``, above 127 is the object.
        draw: Random numbers.
        room: ``(H, W)`` that the patch must fit into.

    Raises:
        RejectedSceneError: The mask is empty or the patch would have no pixel.
    """
    corners = _hull_corners(mask)
    turn = rotation_matrix(draw.degrees, (0, 0)) @ scale_matrix(draw.scale_x, draw.scale_y)
    turned = warp_points(turn, corners)
    low, high = turned.min(axis=0), turned.max(axis=0)
    width, height = high - low
    ratio = min(room[1] / width, room[0] / height) * draw.share
    shift = np.eye(3)
    shift[:2, 2] = -low
    matrix = scale_matrix(ratio, ratio) @ shift @ turn
    # A hair off: a patch that fills its room exactly must not gain a pixel by rounding.
    size = (math.ceil(height * ratio - 1e-6), math.ceil(width * ratio - 1e-6))
    if min(size) < 3:
        raise RejectedSceneError
    patch, patch_mask = _resample(image, mask, matrix, size)
    return Layer(patch, patch_mask, matrix)


def _hull_corners(mask: Mask) -> Matrix:
    """Corners of the pixels on the convex hull of a mask, ``[n, 2]``."""
    rims, _ = cv2.findContours(
        cv2.compare(mask, 127, cv2.CMP_GT), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    if not rims:
        raise RejectedSceneError
    hull = cv2.convexHull(np.concatenate(rims)).reshape(-1, 2).astype(np.float64)
    steps = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float64)
    corners: Matrix = (hull[:, None] + steps).reshape(-1, 2)
    return corners


def _resample(
    image: Pixels, mask: Mask, matrix: Matrix, size: tuple[int, int]
) -> tuple[Pixels, Mask]:
    """Draw picture and mask in the patch's frame; shrinking is averaged first."""
    shrink_x = min(1.0, float(np.hypot(matrix[0, 0], matrix[1, 0])))
    shrink_y = min(1.0, float(np.hypot(matrix[0, 1], matrix[1, 1])))
    x, y, width, height = cv2.boundingRect(cv2.compare(mask, 127, cv2.CMP_GT))
    # Some surroundings, so that gradients at the object's border are the picture's.
    margin = 2 + math.ceil(2 / min(shrink_x, shrink_y))
    left, top = max(x - margin, 0), max(y - margin, 0)
    part = (slice(top, y + height + margin), slice(left, x + width + margin))
    source, source_mask = image[part], mask[part]
    rows, columns = source_mask.shape
    small = (max(1, round(columns * shrink_x)), max(1, round(rows * shrink_y)))
    if small != (columns, rows):
        source = cv2.resize(source, small, interpolation=cv2.INTER_AREA)
        source_mask = cv2.resize(source_mask, small, interpolation=cv2.INTER_AREA)
    # small pixels -> picture pixels -> patch pixels, then from pixel corners to pixel indices.
    back = np.array([[columns / small[0], 0.0, left], [0.0, rows / small[1], top], [0.0, 0.0, 1.0]])
    whole = matrix @ back
    whole[:2, 2] += 0.5 * (whole[:2, 0] + whole[:2, 1]) - 0.5
    target = (size[1], size[0])
    patch = cv2.warpAffine(
        source, whole[:2], target, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    patch_mask = cv2.warpAffine(
        source_mask, whole[:2], target, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )
    return patch, patch_mask


def published_layer(
    image: Pixels,
    mask: Mask,
    draw: LayerDraw,
    room: tuple[int, int],
    *,
    wrong_angles: bool,
) -> Layer:
    """Scale, rotate, crop and fit an object in the published order, one resampling each.

    Args:
        image: ``[S, S, 3]``.
        mask: ``[S, S]``.
        draw: Random numbers.
        room: ``(H, W)`` that the patch must fit into.
        wrong_angles: Reproduce fault T5.

    Raises:
        RejectedSceneError: Nothing of the mask is left or the patch would have no pixel.
    """
    size = image.shape[0]
    wide, tall = int(size * draw.scale_x), int(size * draw.scale_y)
    bilinear = Image.Resampling.BILINEAR
    picture = Image.fromarray(image).resize((wide, tall), bilinear)
    cover = Image.fromarray(mask).resize((wide, tall), bilinear)
    matrix = scale_matrix(wide / size, tall / size)
    pixel_angle = model_angle = draw.degrees
    if wrong_angles:
        pixel_angle, model_angle = published_rotation(draw.degrees)
    picture = picture.rotate(pixel_angle, expand=True)
    cover = cover.rotate(pixel_angle, expand=True)
    matrix = rotation_matrix(model_angle, (tall, wide)) @ matrix
    x, y, width, height = cv2.boundingRect(cv2.compare(np.asarray(cover), 128, cv2.CMP_GT))
    if width == 0:
        raise RejectedSceneError
    picture, cover = (layer.crop((x, y, x + width, y + height)) for layer in (picture, cover))
    shift = np.eye(3)
    shift[:2, 2] = (-x, -y)
    ratio = min(room[1] / width, room[0] / height) * draw.share
    new = (int(width * ratio), int(height * ratio))
    if min(new) < 3:
        raise RejectedSceneError
    matrix = scale_matrix(new[0] / width, new[1] / height) @ shift @ matrix
    return Layer(
        np.array(picture.resize(new, bilinear)), np.array(cover.resize(new, bilinear)), matrix
    )
