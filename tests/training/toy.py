# SPDX-License-Identifier: Apache-2.0
"""A task that trains in milliseconds; as a program, one process of a ``torchrun`` pair."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from patchword.training import (
    LoopConfig,
    Losses,
    OptimConfig,
    SampleKey,
    Task,
    TrackingConfig,
    TrainingConfig,
    fit,
)


@dataclass(frozen=True)
class ToyBatch:
    inputs: Tensor
    targets: Tensor

    def to(self, device: Any) -> ToyBatch:
        return ToyBatch(self.inputs.to(device), self.targets.to(device))


class Points(Dataset[tuple[Tensor, Tensor]]):
    """Noisy samples of a linear map; the noise follows from the draw."""

    def __len__(self) -> int:
        return 13

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor]:
        record = torch.Generator().manual_seed(key.record)
        noise = torch.Generator().manual_seed(key.draw)
        inputs = torch.randn(3, generator=record)
        targets = inputs.flip(0) + 0.01 * torch.randn(3, generator=noise)
        return inputs, targets


class ToyTask(Task):
    """A two-layer network with dropout, so that a wrong random state shows."""

    system = "toy"

    def __init__(self, *, broken_after: int | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        self.broken_after = broken_after
        self.seen = 0

    def dataset(self) -> Points:
        return Points()

    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> ToyBatch:
        inputs, targets = zip(*samples, strict=True)
        return ToyBatch(torch.stack(inputs), torch.stack(targets))

    def before_step(self, model: nn.Module, step: int) -> None:
        self.seen += 1

    def losses(self, model: nn.Module, batch: ToyBatch, step: int) -> Losses:
        error = F.mse_loss(model(batch.inputs), batch.targets)
        if self.broken_after is not None and step >= self.broken_after:
            error = error * float("nan")
        return {"total": error, "error": error}

    def validate(self, model: nn.Module) -> dict[str, float]:
        samples = [Points()[SampleKey(i, 0)] for i in range(13)]
        batch = self.collate(samples)
        return {"error": float(F.mse_loss(model(batch.inputs), batch.targets))}

    def pictures(self, model: nn.Module) -> dict[str, np.ndarray]:
        return {"weights": np.full((8, 8, 3), 128, np.uint8)}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@dataclass(frozen=True)
class ToyConfig:
    width: int = 16
    training: TrainingConfig = field(default_factory=TrainingConfig)


def config(steps: int = 12, **loop: Any) -> TrainingConfig:
    """Four samples a step in two micro-batches, a record each step, no event files."""
    settings: dict[str, Any] = {"micro_batch_size": 2, "log_every": 1, "save_every": 4, **loop}
    return TrainingConfig(
        loop=LoopConfig(steps=steps, batch_size=4, **settings),
        optim=OptimConfig(lr=1e-2, weight_decay=0.01, schedule="cosine", warmup_steps=3),
        tracking=TrackingConfig(tensorboard=False),
    )


if __name__ == "__main__":
    fit(ToyTask(), config(), Path(sys.argv[1]), device="cpu")
