# SPDX-License-Identifier: Apache-2.0
"""Where an object is in its photograph: polygons, run lengths, mask files, or drawn at random."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from patchword.data.io import printable, read_image
from patchword.errors import ConfigError, DatasetError

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]
_SEED_SIDE = 64


class Outline(Protocol):
    """Anything that can say which pixels of its photograph belong to an object."""

    def mask(self, photograph: Pixels) -> Mask:
        """Give ``[H, W]`` of 0 and 255 for the photograph ``[H, W, 3]``."""
        ...


@dataclass(frozen=True)
class PolygonOutline:
    """Flat polygons ``x0 y0 x1 y1 ...`` in pixels of the photograph; the object is their union."""

    polygons: tuple[tuple[float, ...], ...]

    def mask(self, photograph: Pixels) -> Mask:
        """Fill the polygons, outline included."""
        canvas = Image.new("L", (photograph.shape[1], photograph.shape[0]), 0)
        pen = ImageDraw.Draw(canvas)
        for polygon in self.polygons:
            pen.polygon(polygon, outline=255, fill=255)
        return np.array(canvas)


@dataclass(frozen=True)
class RunLengthOutline:
    """COCO run lengths, compressed or not."""

    size: tuple[int, int]
    counts: str | bytes | tuple[int, ...]

    def mask(self, photograph: Pixels) -> Mask:
        """Decode the runs.

        Raises:
            ConfigError: pycocotools is not installed.
            DatasetError: The runs are of another size than the photograph.
        """
        if self.size != photograph.shape[:2]:
            raise DatasetError(
                "RunLengthOutline: run lengths must have the size of their picture, "
                f"{photograph.shape[:2]}, got {self.size}."
            )
        try:
            from pycocotools import mask as coco_mask
        except ImportError as error:
            raise ConfigError(
                "RunLengthOutline: run-length masks need pycocotools. Install patchword[train]."
            ) from error
        runs: Any = {"size": list(self.size), "counts": self.counts}
        if isinstance(self.counts, tuple):
            runs = coco_mask.frPyObjects({**runs, "counts": list(self.counts)}, *self.size)
        with warnings.catch_warnings():
            # Built against an older NumPy, it says so on every call.
            warnings.simplefilter("ignore", DeprecationWarning)
            decoded: Mask = np.ascontiguousarray(coco_mask.decode(runs)) * np.uint8(255)
        return decoded


@dataclass(frozen=True)
class MaskFileOutline:
    """A mask picture of the photograph's size; above half brightness is the object."""

    path: Path

    def mask(self, photograph: Pixels) -> Mask:
        """Read the file.

        Raises:
            DatasetError: It cannot be read or has another size than its photograph.
        """
        values = read_image(self.path)[:, :, 0]
        if values.shape != photograph.shape[:2]:
            raise DatasetError(
                f"MaskFileOutline: mask {printable(self.path)} must have the size of its "
                f"picture, {photograph.shape[:2]}, got {values.shape}.",
                path=self.path,
            )
        return np.where(values > 127, np.uint8(255), np.uint8(0))


@dataclass(frozen=True)
class BlobOutline:
    """A smooth closed curve drawn at random: an object where nobody has marked one.

    Attributes:
        seed: What the curve is drawn from.
        center: ``(x, y)`` relative to width and height.
        radius: Mean radius relative to the shorter side.
    """

    seed: int
    center: tuple[float, float]
    radius: float

    def mask(self, photograph: Pixels) -> Mask:
        """Draw and fill the curve."""
        height, width = photograph.shape[:2]
        rng = np.random.default_rng(self.seed)
        angles = np.linspace(0.0, 2 * np.pi, 72, endpoint=False)
        waves = np.arange(1, 6)
        strength = rng.normal(0.0, 0.28, 5) / waves
        phases = rng.uniform(0.0, 2 * np.pi, 5)
        wobble = 1.0 + np.cos(angles[:, None] * waves + phases) @ strength
        radius = self.radius * min(height, width) * np.clip(wobble, 0.35, 1.8)
        stretch = np.exp(rng.uniform(-0.45, 0.45))
        turn = rng.uniform(0.0, np.pi)
        x, y = radius * np.cos(angles) * stretch, radius * np.sin(angles) / stretch
        points = np.stack(
            [
                x * np.cos(turn) - y * np.sin(turn) + self.center[0] * width,
                x * np.sin(turn) + y * np.cos(turn) + self.center[1] * height,
            ],
            axis=-1,
        )
        canvas = np.zeros((height, width), np.uint8)
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 255)
        return canvas


@dataclass(frozen=True)
class RegionOutline:
    """A connected piece of similar colour around a random point: borders follow the picture.

    Attributes:
        seed: What competing points are drawn from.
        center: ``(x, y)`` relative to width and height.
        num_seeds: Points that the picture is divided among; more make smaller pieces.
    """

    seed: int
    center: tuple[float, float]
    num_seeds: int

    def mask(self, photograph: Pixels) -> Mask:
        """Divide a small copy of the picture among the points and take the middle one's piece."""
        height, width = photograph.shape[:2]
        side = (_SEED_SIDE, _SEED_SIDE)
        small = cv2.resize(photograph, side, interpolation=cv2.INTER_AREA)
        color = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
        ticks = (np.arange(_SEED_SIDE, dtype=np.float32) + 0.5) / _SEED_SIDE
        place = np.stack(np.meshgrid(ticks, ticks), axis=-1)
        rng = np.random.default_rng(self.seed)
        points = np.vstack([[self.center], rng.uniform(0, 1, (self.num_seeds - 1, 2))])
        cells = np.clip((points * _SEED_SIDE).astype(int), 0, _SEED_SIDE - 1)
        # Colours of one object differ by tens of Lab units; a picture's width counts as 200.
        features = np.concatenate([color, place * 200.0], axis=-1).reshape(-1, 5)
        blurred = cv2.blur(color, (5, 5))[cells[:, 1], cells[:, 0]]
        centers = np.concatenate([blurred, points * 200.0], axis=1).astype(np.float32)
        distance = (centers**2).sum(axis=1) - 2.0 * features @ centers.T
        mine = (distance.argmin(axis=1) == 0).reshape(side).astype(np.uint8)
        mine[cells[0, 1], cells[0, 0]] = 1
        _, labels = cv2.connectedComponents(mine, connectivity=4)
        piece = np.where(labels == labels[cells[0, 1], cells[0, 0]], np.uint8(255), np.uint8(0))
        large = cv2.resize(piece, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.where(large > 127, np.uint8(255), np.uint8(0))


def dilate_cross(mask: Mask, steps: int) -> Mask:
    """Dilate by a 4-connected cross ``steps`` times: everything within that city-block distance.

    One distance transform of the object's surroundings instead of ``steps`` passes over the
    picture.
    """
    if steps <= 0:
        return mask
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return mask
    top, left = max(y - steps, 0), max(x - steps, 0)
    place = (slice(top, y + height + steps), slice(left, x + width + steps))
    outside = np.where(mask[place] > 0, np.uint8(0), np.uint8(1))
    distance = cv2.distanceTransform(outside, cv2.DIST_L1, 3)
    dilated = mask.copy()
    dilated[place] = np.where(distance <= steps, np.uint8(255), np.uint8(0))
    return dilated
