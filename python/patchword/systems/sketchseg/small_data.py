# SPDX-License-Identifier: Apache-2.0
"""Composed scenes as the small network sees them: ink at its own size, and labelled points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from patchword.data.strokes import render_strokes
from patchword.systems.sketchseg.compose import (
    CANVAS,
    DrawingLibrary,
    Scene,
    SceneConfig,
    compose_scene,
    scene_generator,
)
from patchword.training import SampleKey

# Scenes are composed as asked for; the number only tells how many make an epoch.
_EPOCH = 65536
# Lines are drawn at twice the input's side and averaged, so that their edges are soft.
_OVERSAMPLING = 2
_MAX_THICKNESS = 5
# Softened lines are paler; networks see them this much darker, up to full black.
_MIN_GAIN, _MAX_GAIN, _GAIN = 1.0, 2.5, 1.75


@dataclass(frozen=True, eq=False)
class PointSample:
    """One scene.

    Attributes:
        ink: float32 ``[1, S, S]`` in [0, 1].
        points: float32 ``[P, 2]`` (x, y) in [-1, 1]: ink pixels.
        labels: int64 ``[P]``: classes of the points.
    """

    ink: Tensor
    points: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class PointBatch:
    """Scenes of one size: ``ink [B, 1, S, S]``, ``points [B, P, 2]``, ``labels [B, P]``."""

    ink: Tensor
    points: Tensor
    labels: Tensor

    @classmethod
    def join(cls, samples: Sequence[PointSample]) -> PointBatch:
        """Stack samples."""
        return cls(
            torch.stack([one.ink for one in samples]),
            torch.stack([one.points for one in samples]),
            torch.stack([one.labels for one in samples]),
        )

    def to(self, device: Any) -> PointBatch:
        """Move to a device."""
        return PointBatch(self.ink.to(device), self.points.to(device), self.labels.to(device))


class ComposedScenes(Dataset[PointSample]):
    """Scenes without end; number ``draw`` is the same in every run with the same seed."""

    def __init__(
        self,
        library: DrawingLibrary,
        config: SceneConfig,
        *,
        sizes: Sequence[int],
        points: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Keep the drawings.

        Args:
            library: Drawings that scenes are made of; labels are places in its words.
            config: How scenes are composed.
            sizes: Sides of ``ink``; scenes of one batch share theirs.
            points: Points of a scene.
            batch_size: Scenes of a batch.
            seed: Of all that is random.
        """
        self.library, self.config, self.sizes = library, config, tuple(sizes)
        self.points, self.batch_size, self.seed = points, batch_size, seed
        self.index = {word: place for place, word in enumerate(library.words())}

    def __len__(self) -> int:
        """A number of scenes to call an epoch."""
        return _EPOCH

    def __getitem__(self, key: SampleKey) -> PointSample:
        """Compose and draw a scene."""
        batch = scene_generator(self.seed, key.draw // self.batch_size)
        size = self.sizes[int(batch.integers(len(self.sizes)))]
        rng = np.random.default_rng([self.seed, key.draw, 1])
        scene = compose_scene(self.library, rng, self.config)
        return self._draw(scene, size, rng)

    def _draw(self, scene: Scene, size: int, rng: np.random.Generator) -> PointSample:
        side = size * _OVERSAMPLING
        thickest = max(3, round(_MAX_THICKNESS * min(1.0, size / 192)))
        thickness = int(rng.integers(2, thickest + 1))
        ink = np.zeros((side, side), dtype=np.uint8)
        found: list[NDArray[np.int64]] = []
        labels: list[int] = []
        for number in sorted(set(scene.objects)):
            chosen = [i for i, one in enumerate(scene.objects) if one == number]
            strokes = [scene.strokes[i] * np.float32(side / CANVAS) for i in chosen]
            drawn = render_strokes(strokes, (side, side), thickness, antialias=True)
            np.maximum(ink, drawn, out=ink)
            lit = np.flatnonzero(drawn > 127)
            if lit.size:
                found.append(lit)
                labels.append(self.index[scene.labels[chosen[0]]])
        shares = np.sort(np.arange(self.points) % len(found))
        places = np.concatenate(
            [
                part[rng.integers(0, part.size, int((shares == i).sum()))]
                for i, part in enumerate(found)
            ]
        )
        rows, columns = np.divmod(places, side)
        points = (np.stack([columns, rows], axis=1) + 0.5) / side * 2 - 1
        gain = rng.uniform(_MIN_GAIN, _MAX_GAIN)
        return PointSample(
            ink=_soften(torch.from_numpy(ink), gain),
            points=torch.from_numpy(points.astype(np.float32)),
            labels=torch.tensor(labels)[torch.from_numpy(shares)],
        )


def network_ink(ink: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """Bring ink of any resolution to the network's input as in training.

    Large pictures are reduced by the maximum over cells first, so that a line one pixel wide is
    still a line at a sixteenth of the size.

    Args:
        ink: ``[H, W]``, true on a line.
        size: ``(h, w)`` that the network sees.

    Returns:
        float32 ``[1, h, w]`` in [0, 1].
    """
    target = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    pixels = torch.from_numpy(ink)[None, None].float() * 255.0
    if ink.shape[0] >= target[0] and ink.shape[1] >= target[1]:
        fine = F.adaptive_max_pool2d(pixels, target)
    else:
        fine = F.interpolate(pixels, size=target, mode="bilinear", antialias=True)
    return _soften(fine[0, 0], _GAIN)


def _soften(ink: Tensor, gain: float) -> Tensor:
    """Average 2 x 2 cells of ``[H, W]`` in 0..255 and darken: ``[1, H / 2, W / 2]`` in [0, 1]."""
    averaged = F.avg_pool2d(ink[None].float() / 255.0, _OVERSAMPLING)
    return (averaged * gain).clamp(0.0, 1.0)
