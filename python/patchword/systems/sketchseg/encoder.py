# SPDX-License-Identifier: Apache-2.0
"""What segmentation needs of a network: sketches and words as vectors that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from patchword.structures import ImageArray


@dataclass(frozen=True)
class SegmentOptions:
    """How scores of patches become labels of ink pixels.

    Attributes:
        scores: ``"minmax"`` stretches each category's scores to [0, 1] over the patches, as
            published, so that every category claims some patch; ``"cosine"`` keeps the
            similarities, so that an absent category may stay empty.
        mode: Interpolation to the sketch's size; the published code is bilinear, its documentation
            bicubic.
        threshold: An ink pixel whose best score is below stays unassigned; None assigns all.
        ink: Which pixels are ink: ``"luma"``: darker than ``ink_level``; ``"red_zero"`` and
            ``"not_white"``: the rules of the published demonstration and application.
        ink_level: Grey level from which on a pixel is paper, for ``"luma"``.
    """

    scores: Literal["minmax", "cosine"] = "minmax"
    mode: Literal["bilinear", "bicubic"] = "bicubic"
    threshold: float | None = None
    ink: Literal["luma", "red_zero", "not_white"] = "luma"
    ink_level: int = 128


@dataclass(frozen=True, eq=False)
class SketchFeatures:
    """An encoded sketch, to be compared with any words.

    Attributes:
        patches: ``[N, D]`` float32, row-major over the grid, scaled so that the product with
            the vectors of words is the score.
        grid: ``(h, w)`` with ``h * w == N``.
    """

    patches: Tensor
    grid: tuple[int, int]


class SketchEncoder(Protocol):
    """A network for sketches and one for words, in one space.

    Attributes:
        defaults: Options that suit its scores.
        device: Where it runs.
    """

    defaults: SegmentOptions
    device: torch.device

    def encode_images(self, images: Sequence[ImageArray]) -> list[SketchFeatures]:
        """Encode sketches, uint8 ``[H, W, 3]`` of any sizes, dark on light."""
        ...

    def encode_text(self, words: Sequence[str]) -> Tensor:
        """Encode category names to ``[C, D]`` float32 on the encoder's device."""
        ...
