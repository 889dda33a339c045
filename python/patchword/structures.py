# SPDX-License-Identifier: Apache-2.0
"""The frozen records that travel between layers; they hold data, not files or models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from patchword.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.int64]
ImageArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """Patch tokens of one or more pictures of equal size.

    Attributes:
        tokens: ``[B, N, D]`` descriptors of unit length, row-major over the grid.
        grid: ``(h, w)`` with ``h * w == N``.
        stride: Pixels of the network's input per patch.
        image_size: ``(H, W)`` of the picture as it was given.
        pixels: ``[B, 3, h * stride, w * stride]`` RGB in [0, 1] as the network saw it, or None.
        image: The picture as given, uint8 ``[H, W, 3]``, or None.
        origin: ``(x, y)`` of the described region's corner when it was cut from a larger picture.
    """

    tokens: Tensor
    grid: tuple[int, int]
    stride: float
    image_size: tuple[int, int]
    pixels: Tensor | None = field(default=None, repr=False)
    image: ImageArray | None = field(default=None, repr=False)
    origin: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        """Check that the grid covers the tokens."""
        if self.tokens.ndim != 3 or self.grid[0] * self.grid[1] != self.tokens.shape[1]:
            raise ShapeError(
                f"PatchFeatures: tokens must have shape [B, {self.grid[0] * self.grid[1]}, D] for "
                f"grid {self.grid}, got {list(self.tokens.shape)}."
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """``(H, W)`` of the network's input."""
        return round(self.grid[0] * self.stride), round(self.grid[1] * self.stride)

    @property
    def scale(self) -> tuple[float, float]:
        """``(x, y)`` factors from pixels of the network's input to pixels of the picture."""
        height, width = self.input_size
        return self.image_size[1] / width, self.image_size[0] / height

    def maps(self) -> Tensor:
        """The tokens as feature maps ``[B, D, h, w]``."""
        batch, _, channels = self.tokens.shape
        return self.tokens.transpose(1, 2).reshape(batch, channels, *self.grid)

    def to(self, device: torch.device | str) -> PatchFeatures:
        """The same features on another device."""
        return PatchFeatures(
            tokens=self.tokens.to(device),
            grid=self.grid,
            stride=self.stride,
            image_size=self.image_size,
            pixels=None if self.pixels is None else self.pixels.to(device),
            image=self.image,
            origin=self.origin,
        )


@dataclass(frozen=True, eq=False)
class CorrespondenceField:
    """Where each patch of picture 0 lies in picture 1.

    Attributes:
        points0: ``[h, w, 2]`` patch centres in picture 0, ``(x, y)`` in pixels.
        points1: ``[h, w, 2]`` the places they correspond to in picture 1, ``(x, y)`` in pixels.
        similarity: ``[h, w]`` similarity of the two patches in [-1, 1].
        evidence: ``[h, w]`` support in [0, 1]: near 1 where neighbours agree and no other place
            is as similar.
    """

    points0: FloatArray
    points1: FloatArray
    similarity: FloatArray
    evidence: FloatArray

    def at(self, points: npt.ArrayLike) -> FloatArray:
        """Read the field at points ``[M, 2]`` of picture 0 from the nearest patch.

        The offset from the patch's centre is carried over unchanged.
        """
        wanted = np.asarray(points, dtype=np.float32).reshape(-1, 2)
        step = self.points0[0, 0] * 2.0
        height, width = self.points0.shape[:2]
        column = np.clip((wanted[:, 0] / step[0]).astype(int), 0, width - 1)
        row = np.clip((wanted[:, 1] / step[1]).astype(int), 0, height - 1)
        found: FloatArray = self.points1[row, column] + wanted - self.points0[row, column]
        return found


@dataclass(frozen=True)
class MatchResult:
    """What two pictures share.

    Attributes:
        mask0: float32 ``[H, W]`` in [0, 1] at the size of picture 0: the shared region.
        mask1: The same for picture 1.
        matches: float32 ``[M, 4]``: ``x0 y0 x1 y1`` in pixels, best first.
        match_scores: float32 ``[M]`` in [0, 1], falling.
        score: How sure it is that the pictures share something, in [0, 1].
        image0: Picture 0, uint8 ``[H, W, 3]``, kept for figures, or None.
        image1: Picture 1, the same.
    """

    mask0: FloatArray
    mask1: FloatArray
    matches: FloatArray
    match_scores: FloatArray
    score: float
    image0: ImageArray | None = field(default=None, repr=False, compare=False)
    image1: ImageArray | None = field(default=None, repr=False, compare=False)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write masks, overlay and JSON to a folder; returns the paths by name."""
        from patchword.inference import writers

        written: dict[str, Path] = writers.save_match(self, folder)
        return written

    def figure(self) -> Figure:
        """Draw both pictures with masks and best matches."""
        from patchword import viz

        drawn: Figure = viz.match_figure(self)
        return drawn


@dataclass(frozen=True)
class LocateResult:
    """Where phrases lie in a picture.

    Attributes:
        texts: The phrases.
        heatmaps: float32 ``[K, H, W]`` in [0, 1], one map a phrase at the picture's size.
        labels: int64 ``[H, W]``: index of the best phrase, -1 where none answers.
        scores: float32 ``[K]`` in [0, 1]: how well the picture as a whole answers the phrase.
        image: The picture, uint8 ``[H, W, 3]``, kept for figures, or None.
    """

    texts: tuple[str, ...]
    heatmaps: FloatArray
    labels: LabelArray
    scores: FloatArray
    image: ImageArray | None = field(default=None, repr=False, compare=False)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write heat maps, labels, overlay and JSON to a folder; returns the paths by name."""
        from patchword.inference import writers

        written: dict[str, Path] = writers.save_locate(self, folder)
        return written

    def figure(self) -> Figure:
        """Draw the picture with one colour a phrase and a legend."""
        from patchword import viz

        drawn: Figure = viz.locate_figure(self)
        return drawn
