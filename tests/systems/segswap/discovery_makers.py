# SPDX-License-Identifier: Apache-2.0
"""Made-up outputs of pairs, pictures and a model that relates them, for the tests of discovery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchword.geometry import patch_centers
from patchword.systems.segswap.graph import (
    PairNodes,
)
from patchword.systems.segswap.relations import (
    PairOutputs,
)

GRID = (10, 10)


def identity_flow(grid: tuple[int, int] = GRID) -> np.ndarray:
    return (patch_centers(grid) / grid[::-1]).T.reshape(2, *grid)


def output(mask: np.ndarray, flow: np.ndarray | None = None) -> np.ndarray:
    flow = identity_flow(mask.shape) if flow is None else flow
    return np.concatenate([flow, mask[None]]).astype(np.float32)


def outputs_of(
    pairs: list[tuple[int, int]],
    maps: list[tuple[np.ndarray, np.ndarray]],
    scores: list[tuple[float, float]],
) -> PairOutputs:
    return PairOutputs(
        np.array(pairs, dtype=np.int64),
        np.stack([first for first, _ in maps]),
        np.stack([second for _, second in maps]),
        np.array(scores, dtype=np.float64),
    )


def blank() -> np.ndarray:
    return np.zeros(GRID)


def ramp() -> np.ndarray:
    image = np.zeros((80, 96, 3), np.uint8)
    image[..., 0] = np.arange(96, dtype=np.uint8) * 2
    image[..., 1] = 255 - image[..., 0]
    return image


def triangle(shift: int) -> tuple[PairOutputs, list[PairNodes]]:
    """Pairs 01, 02 and 12; cell (3, 3) everywhere, but 2 -> 1 misses by ``shift`` columns."""
    back = identity_flow()
    back[0] += shift / GRID[1]
    plain = output(np.full(GRID, 0.9))
    third = (plain, output(np.full(GRID, 0.9), back))
    outputs = outputs_of(
        [(0, 1), (0, 2), (1, 2)], [(plain, plain), (plain, plain), third], [(20, 20)] * 3
    )
    cell = np.array([[3, 3]])
    return outputs, [PairNodes(0, cell, cell, np.ones(1)), PairNodes(1, cell, cell, np.ones(1))]


def disc(center: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a textured green ground, and its mask."""
    rng = np.random.default_rng(center[0])
    image = rng.integers(0, 60, (160, 160, 3), dtype=np.uint8)
    image[..., 1] += 120
    rows, columns = np.mgrid[0:160, 0:160]
    mask = (rows - center[1]) ** 2 + (columns - center[0]) ** 2 < 40**2
    image[mask] = (220, 30, 40)
    return image, mask


class Reds:
    """Relates red cells to red cells of the other picture, offset by their centres of mass."""

    def __init__(self) -> None:
        self.calls = 0

    def fingerprint(self) -> str:
        return "reds"

    def describe(self, image: np.ndarray) -> np.ndarray:
        cells = np.asarray(image)[:160, :160].reshape(10, 16, 10, 16, 3).mean(axis=(1, 3))
        return (cells[..., 0] > 150) & (cells[..., 1] < 80)

    def features(self, described: np.ndarray) -> Tensor:
        return torch.ones(100, 1)

    def relate(self, first: list[np.ndarray], second: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        found = []
        for own, other in ((first, second), (second, first)):
            side = []
            for a, b in zip(own, other, strict=True):
                shift = np.argwhere(b).mean(axis=0) - np.argwhere(a).mean(axis=0)
                flow = identity_flow() + shift[::-1, None, None] / 10
                side.append(output(np.where(a, 0.95, 0.02), flow))
            found.append(torch.from_numpy(np.stack(side)))
        return found[0], found[1]


def internet(folder: Path, classes: tuple[str, ...] = ("Car100",)) -> Path:
    for name in classes:
        (folder / name / "GroundTruth").mkdir(parents=True)
        for k, center in enumerate(((64, 80), (80, 64), (96, 96))):
            image, mask = disc(center)
            Image.fromarray(image).save(folder / name / f"{k:04d}.png")
            Image.fromarray(mask).save(folder / name / "GroundTruth" / f"{k:04d}.png")
    return folder
