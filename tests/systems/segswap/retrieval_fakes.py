# SPDX-License-Identifier: Apache-2.0
"""A scorer whose answers can be worked out by hand: it compares mean colours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from patchword.systems.segswap.protocols.scorer import CandidateScores


class ColourScorer:
    """Score = 1 - mean absolute difference of the mean colours; points at the cell itself."""

    def __init__(self, name: str = "colour") -> None:
        self.name = name
        self.encoded = 0
        self.normalisations: list[str] = []

    def fingerprint(self) -> str:
        return self.name

    def encode(self, image, normalisation="correct") -> Tensor:
        self.encoded += 1
        self.normalisations.append(normalisation)
        height, width = (-(-side // 16) for side in image.shape[:2])
        mean = torch.from_numpy(np.asarray(image, np.float32).mean(axis=(0, 1)) / 255)
        return mean[:, None, None].repeat(1, height, width)

    def embed(self, descriptors: Tensor) -> Tensor:
        return descriptors

    def score(self, query: Tensor, cells: Tensor, candidates: list[Tensor]) -> CandidateScores:
        mean = query[:, cells].mean(dim=1)
        other = torch.stack([candidate.mean(dim=(1, 2)) for candidate in candidates])
        height, width = cells.shape
        rows = (torch.arange(height) + 0.5) / height
        columns = (torch.arange(width) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        points = torch.stack([x, y], dim=-1).expand(len(other), height, width, 2)
        return CandidateScores(
            scores=1 - (other - mean).abs().mean(dim=1),
            points=points,
            masks=cells.float().expand(len(other), height, width),
        )
