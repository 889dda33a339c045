# SPDX-License-Identifier: Apache-2.0
"""SegSwap's training on tiny pictures; as a program, one process of a ``torchrun`` pair."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.nn.cross_transformer import CrossTransformerConfig
from patchword.systems.segswap.config import SegSwapConfig
from patchword.systems.segswap.published_task import PairsConfig, PublishedConfig, PublishedTask
from patchword.training import LoopConfig, OptimConfig, TrackingConfig, TrainingConfig, fit


class ColourBackbone:
    """Random directions of each patch's colours, 64 channels: no weights, distinct patches."""

    name = "xfeat"
    stride = 16
    multiple = 32
    fill = 0.5

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        generator = torch.Generator().manual_seed(0)
        self.directions = torch.randn(64, 3 * 16, generator=generator)

    def describe(self, pixels: Tensor) -> Tensor:
        small = F.pixel_unshuffle(F.avg_pool2d(pixels - 0.5, 4), 4)
        return F.normalize(torch.einsum("dc,bchw->bdhw", self.directions, small), dim=1)


def toy_task(photographs: Path, seed: int = 0, **options: Any) -> PublishedTask:
    """A tiny transformer on pieces of a folder's photographs, 96 pixels wide."""
    torch.manual_seed(0)
    sizes = {"channels": 64, "width": 32, "heads": 2, "hidden": 32, "pattern": "ICIN"}
    network = SegSwapConfig(backbone="xfeat", transformer=CrossTransformerConfig(**sizes))
    pairs = PairsConfig(images=str(photographs), size=96, length=40, style=0.0, warp=0.0)
    config = PublishedConfig(pairs=pairs, negatives=4, validation_pairs=2, **options)
    return PublishedTask(network, config, seed=seed, backbone=ColourBackbone())


def toy_config(steps: int = 6, **loop: Any) -> TrainingConfig:
    """Six pairs a step in two micro-batches."""
    settings = {"batch_size": 6, "micro_batch_size": 3, "log_every": 1, "save_every": 3, **loop}
    return TrainingConfig(
        loop=LoopConfig(steps=steps, **settings),
        optim=OptimConfig(name="adam", lr=2e-3),
        tracking=TrackingConfig(tensorboard=False),
    )


if __name__ == "__main__":
    fit(toy_task(Path(sys.argv[1])), toy_config(), Path(sys.argv[2]), device="cpu")
