# SPDX-License-Identifier: Apache-2.0
"""Pairs for the default weights: cut-outs pasted into both pictures, regions, and warped scenes.

The published recipe pastes an object of one photograph into another. Here the shared thing may also
be foreign to both pictures, be joined by decoys that only one picture has, or be the whole scene,
since the default weights shall serve `match` on any two pictures.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from patchword.data.folders import list_images
from patchword.data.io import read_image
from patchword.errors import DatasetError
from patchword.geometry import Matrix, patch_centers, warp_points
from patchword.structures import FloatArray, ImageArray

STRIDE = 16
FINE_STRIDE = 4
_CUTOUT_SIDE = 320
_PHOTO_SIDE = 640


@dataclass(frozen=True)
class CompositeConfig:
    """Numbers that composed pairs depend on.

    Attributes:
        photographs: Folder of backgrounds.
        cutouts: Folders of PNG pictures whose alpha channel is the object, drawn equally often.
        size: Side of both pictures in pixels, a multiple of 32.
        object_min: Smallest side of the square that has a shared object's area, in pixels.
        object_max: Largest one.
        angle: Largest turn of an object in one picture against the other, degrees.
        scale: Largest factor between an object's sizes in the two pictures.
        scene: Share of pairs that show one scene twice, warped.
        region: Share of pairs that share a smooth random piece of some photograph.
        second: Probability of a second shared object.
        decoy: Probability, for each picture, of an object that the other one lacks.
    """

    photographs: str = "photographs"
    cutouts: tuple[str, ...] = ("cutouts",)
    size: int = 256
    object_min: float = 36.0
    object_max: float = 150.0
    angle: float = 50.0
    scale: float = 1.7
    scene: float = 0.12
    region: float = 0.18
    second: float = 0.15
    decoy: float = 0.45


@dataclass(frozen=True, eq=False)
class CompositePair:
    """Two pictures and what they share.

    Attributes:
        images: Two pictures, uint8 ``[S, S, 3]``.
        masks: Two soft masks, float32 ``[S, S]`` in [0, 1], of what the other one shows too.
        flows: Two maps ``[h, w, 2]`` of the cells' places in the other picture, as shares of its
            width and height; meaningful where the mask is not zero.
    """

    images: tuple[ImageArray, ImageArray]
    masks: tuple[FloatArray, FloatArray]
    flows: tuple[FloatArray, FloatArray]


def is_held_out(path: Path) -> bool:
    """Whether a file serves validation, not training: one in eight, by its name."""
    return zlib.crc32(path.name.encode()) % 8 == 0


class PairComposer:
    """Composes pairs from two folders; what a pair shows follows from its number and the seed."""

    def __init__(self, config: CompositeConfig, *, held_out: bool = False, seed: int = 0) -> None:
        """List the pictures.

        Args:
            config: See :class:`CompositeConfig`.
            held_out: Use the held-out files alone, or all others.
            seed: Of everything random.

        Raises:
            DatasetError: A folder holds too few pictures.
        """
        self.config, self.seed = config, seed
        self.photographs = _listed(config.photographs, held_out)
        self.cutouts = [_listed(folder, held_out) for folder in config.cutouts]
        self._cache: dict[Path, ImageArray] = {}

    def __call__(self, number: int) -> CompositePair:
        """Compose the pair of a number."""
        rng = np.random.default_rng((self.seed, number))
        kind = rng.random()
        if kind < self.config.scene:
            pair = self._scene(rng)
        else:
            pair = self._objects(rng, pieces=kind < self.config.scene + self.config.region)
        if rng.random() < 0.5:
            return pair
        return CompositePair(pair.images[::-1], pair.masks[::-1], pair.flows[::-1])

    def _read(self, path: Path, side: int, *, alpha: bool = False) -> ImageArray:
        if path not in self._cache:
            if alpha:
                picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
                    raise DatasetError(
                        f"compose: {path.name} must be a PNG picture with an alpha channel.",
                        path=path,
                    )
                picture = np.ascontiguousarray(picture[..., [2, 1, 0, 3]])
            else:
                picture = read_image(path)
            factor = side / max(picture.shape[:2])
            if factor < 1:
                size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
                picture = cv2.resize(
                    picture, (max(1, size[0]), max(1, size[1])), interpolation=cv2.INTER_AREA
                )
            self._cache[path] = picture
        return self._cache[path]

    def _background(self, rng: np.random.Generator) -> ImageArray:
        """A random cut of a random photograph at the pair's size."""
        picture = self._read(self.photographs[rng.integers(len(self.photographs))], _PHOTO_SIDE)
        height, width = picture.shape[:2]
        share = np.sqrt(rng.uniform(0.2, 1.0))
        wide = min(width, max(32, int(share * width * rng.uniform(0.85, 1.18))))
        high = min(height, max(32, int(share * height * rng.uniform(0.85, 1.18))))
        x, y = rng.integers(width - wide + 1), rng.integers(height - high + 1)
        cut = picture[y : y + high, x : x + wide]
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        side = self.config.size
        method = cv2.INTER_AREA if min(cut.shape[:2]) > side else cv2.INTER_LINEAR
        drawn: ImageArray = cv2.resize(
            np.ascontiguousarray(cut), (side, side), interpolation=method
        )
        return drawn

    def _scene(self, rng: np.random.Generator) -> CompositePair:
        """One photograph seen twice, by different maps."""
        side = self.config.size
        scene = self._background(rng)
        corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], dtype=np.float32)
        images, maps = [], []
        for _ in range(2):
            turn = _similarity(
                rng.uniform(-25, 25),
                rng.uniform(0.85, 1.45),
                (side / 2, side / 2),
                tuple(side / 2 + rng.uniform(-0.15, 0.15, 2) * side),
            )
            bent = (corners + rng.uniform(-0.08, 0.08, (4, 2)) * side).astype(np.float32)
            matrix = cv2.getPerspectiveTransform(corners, bent) @ turn
            drawn = _warp(scene, matrix, side, border=(127, 127, 127))
            images.append(_finished(drawn, rng))
            maps.append(matrix)
        there = maps[1] @ np.linalg.inv(maps[0])
        seen = [_warp(np.full((side, side), 255, np.uint8), one, side) / 255.0 for one in maps]
        masks = (
            seen[0] * _warp(seen[1].astype(np.float32), np.linalg.inv(there), side),
            seen[1] * _warp(seen[0].astype(np.float32), there, side),
        )
        flows = (self._flow(there), self._flow(np.linalg.inv(there)))
        return _pair(images, list(masks), list(flows))

    def _objects(self, rng: np.random.Generator, *, pieces: bool) -> CompositePair:
        """One or two objects pasted into two pictures, with decoys."""
        side, config = self.config.size, self.config
        canvases = [_recolored(self._background(rng), rng, 0.3) for _ in range(2)]
        masks = [np.zeros((side, side), np.float32) for _ in range(2)]
        grid = side // STRIDE
        flows = [np.zeros((grid, grid, 2), np.float32) for _ in range(2)]
        best = [np.zeros((grid, grid), np.float32) for _ in range(2)]
        for picture in range(2):
            if rng.random() < config.decoy:
                canvases[picture], _ = self._paste(rng, canvases[picture], self._cutout(rng))[:2]
        for _ in range(2 if rng.random() < config.second else 1):
            cutout = self._piece(rng) if pieces else self._cutout(rng)
            base = np.exp(rng.uniform(np.log(config.object_min), np.log(config.object_max)))
            ratio = np.exp(rng.uniform(-1, 1) * np.log(config.scale) / 2)
            turn = rng.uniform(-config.angle, config.angle) / 2
            upright = rng.normal(0, 8)
            placed = []
            for picture, sign in ((0, 1.0), (1, -1.0)):
                canvases[picture], alpha, matrix = self._paste(
                    rng,
                    canvases[picture],
                    cutout,
                    area_side=float(base * ratio**sign),
                    angle=float(upright + sign * turn),
                )
                masks[picture] *= 1 - alpha
                placed.append((alpha, matrix))
            there = placed[1][1] @ np.linalg.inv(placed[0][1])
            for picture, matrix in ((0, there), (1, np.linalg.inv(there))):
                alpha = placed[picture][0]
                masks[picture] = np.maximum(masks[picture], alpha)
                weight = _cells(alpha, STRIDE)
                wins = weight > best[picture]
                flows[picture][wins] = self._flow(matrix)[wins]
                best[picture] = np.maximum(best[picture], weight)
        images = [_finished(canvas, rng) for canvas in canvases]
        return _pair(images, masks, flows)

    def _cutout(self, rng: np.random.Generator) -> ImageArray:
        folder = self.cutouts[rng.integers(len(self.cutouts))]
        return self._read(folder[rng.integers(len(folder))], _CUTOUT_SIDE, alpha=True)

    def _piece(self, rng: np.random.Generator) -> ImageArray:
        """A random smooth piece of a photograph as a cut-out."""
        side = self.config.size
        noise = cv2.resize(
            rng.normal(size=(5, 5)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC
        )
        rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
        bump = np.exp(-(rows**2 + columns**2) / 0.08) + 0.12 * noise
        alpha = cv2.GaussianBlur(((bump > 0.5) * 255).astype(np.uint8), (3, 3), 0)
        return np.dstack([self._background(rng), alpha])

    def _paste(
        self,
        rng: np.random.Generator,
        canvas: ImageArray,
        cutout: ImageArray,
        *,
        area_side: float | None = None,
        angle: float | None = None,
    ) -> tuple[ImageArray, FloatArray, Matrix]:
        """Draw a cut-out somewhere inside a canvas: the canvas, where it covers, the map used."""
        config, side = self.config, self.config.size
        if area_side is None:
            area_side = float(
                np.exp(rng.uniform(np.log(config.object_min), np.log(config.object_max)))
            )
        if angle is None:
            angle = float(rng.uniform(-config.angle, config.angle))
        height, width = cutout.shape[:2]
        solid = max(1.0, float((cutout[..., 3] > 127).sum()))
        factor = min(area_side / np.sqrt(solid), 0.95 * side / np.hypot(height, width))
        rows, columns = np.nonzero(cutout[..., 3] > 127)
        points = (
            np.stack([columns, rows], axis=1).astype(np.float64) if len(rows) else np.zeros((1, 2))
        )
        turned = warp_points(_similarity(angle, factor, (0.0, 0.0), (0.0, 0.0)), points)
        low, high = turned.min(axis=0), turned.max(axis=0)
        room = np.maximum(side - (high - low), 1.0)
        shift = rng.uniform(0, 1, 2) * room - low
        matrix = _similarity(angle, factor, (0.0, 0.0), (float(shift[0]), float(shift[1])))
        shrunk = cutout
        if factor < 0.5:
            # Area averaging first: a plain warp would alias.
            small = (max(2, round(width * factor)), max(2, round(height * factor)))
            shrunk = cv2.resize(cutout, small, interpolation=cv2.INTER_AREA)
        rescale = np.diag([width / shrunk.shape[1], height / shrunk.shape[0], 1.0])
        drawn = _warp(np.ascontiguousarray(shrunk), matrix @ rescale, side)
        alpha = drawn[..., 3:].astype(np.float32) / 255.0
        if rng.random() < 0.5:
            alpha = cv2.GaussianBlur(alpha, (3, 3), 0)[..., None]
        mixed = drawn[..., :3] * alpha + canvas * (1 - alpha)
        return mixed.round().astype(np.uint8), alpha[..., 0], matrix

    def _flow(self, matrix: Matrix) -> FloatArray:
        grid, side = self.config.size // STRIDE, self.config.size
        places = warp_points(matrix, patch_centers((grid, grid), STRIDE)) / side
        flow: FloatArray = np.nan_to_num(places, nan=-1.0).reshape(grid, grid, 2).astype(np.float32)
        return flow


def _listed(folder: str, held_out: bool) -> list[Path]:
    chosen = [path for path in sorted(list_images(Path(folder))) if is_held_out(path) == held_out]
    if len(chosen) < 2:
        raise DatasetError(
            f"compose: {folder} must hold at least two pictures "
            f"{'held out' if held_out else 'to train on'}, got {len(chosen)}.",
            path=folder,
        )
    return chosen


def _pair(
    images: list[ImageArray], masks: list[npt.NDArray[np.floating]], flows: list[FloatArray]
) -> CompositePair:
    soft = [one.astype(np.float32) for one in masks]
    return CompositePair((images[0], images[1]), (soft[0], soft[1]), (flows[0], flows[1]))


def _similarity(
    degrees: float, factor: float, center: tuple[float, ...], target: tuple[float, ...]
) -> Matrix:
    """Turn and scale about ``center``, then move it to ``target``; continuous pixel coordinates."""
    angle = np.deg2rad(degrees)
    turn = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = np.array(target) - turn @ np.array(center)
    return matrix


def _warp(
    picture: npt.NDArray[Any],
    matrix: Matrix,
    side: int,
    border: tuple[int, ...] | int = 0,
) -> npt.NDArray[Any]:
    """Draw a picture under a map of continuous coordinates, onto a square."""
    # OpenCV counts pixel centres at whole numbers.
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    shifted = half @ matrix @ np.linalg.inv(half)
    drawn: npt.NDArray[Any] = cv2.warpPerspective(
        picture, shifted, (side, side), flags=cv2.INTER_LINEAR, borderValue=border
    )
    return drawn


def _cells(mask: FloatArray, stride: int) -> FloatArray:
    """Mean over square cells."""
    side = mask.shape[0] // stride
    mean: FloatArray = mask.reshape(side, stride, side, stride).mean(axis=(1, 3))
    return mean


def _recolored(image: ImageArray, rng: np.random.Generator, strength: float) -> ImageArray:
    gain = np.exp(rng.uniform(-strength, strength) * 0.6 + rng.uniform(-0.1, 0.1, 3) * strength)
    shift = rng.uniform(-40, 40) * strength
    bright = (image.astype(np.float32) - 127) * gain + 127 + shift
    out: ImageArray = bright.clip(0, 255).astype(np.uint8)
    return out


def _finished(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """What a camera and a file do to the whole picture."""
    image = _recolored(image, rng, 0.3)
    if rng.random() < 0.2:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 1.2)))
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(2, 7), image.shape)
        image = (image + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(50, 95))
        code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), dtype=np.uint8)
    return image
