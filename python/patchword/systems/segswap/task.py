# SPDX-License-Identifier: Apache-2.0
"""How SegSwap is trained: the configuration of a run, and the task it makes."""

from __future__ import annotations

from dataclasses import dataclass, field

from patchword.systems.segswap.composed_task import ComposedConfig, ComposedTask
from patchword.systems.segswap.config import SegSwapConfig
from patchword.training import Task, TrainingConfig


@dataclass(frozen=True)
class TrainConfig:
    """One training run of SegSwap."""

    network: SegSwapConfig = field(default_factory=SegSwapConfig)
    composed: ComposedConfig = field(default_factory=ComposedConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def create_task(config: TrainConfig) -> Task:
    """Make the task of a configuration."""
    return ComposedTask(config.network, config.composed)
