# SPDX-License-Identifier: Apache-2.0
"""How SegSwap is trained: the configuration of a run, and the task it makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from patchword.systems.segswap.composed_task import ComposedConfig, ComposedTask
from patchword.systems.segswap.config import SegSwapConfig
from patchword.systems.segswap.published_task import PublishedConfig, PublishedTask
from patchword.training import Task, TrainingConfig


@dataclass(frozen=True)
class TrainConfig:
    """One training run of SegSwap.

    Attributes:
        recipe: ``published``: the published losses and pairs; ``composed``: what the weights that
            ship were trained with.
        network: What is trained.
        published: Of the recipe of that name.
        composed: Of the other one.
        training: Steps, optimiser, records.
    """

    recipe: Literal["published", "composed"] = "published"
    network: SegSwapConfig = field(default_factory=SegSwapConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)
    composed: ComposedConfig = field(default_factory=ComposedConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def create_task(config: TrainConfig) -> Task:
    """Make the task of a configuration; data are opened when training begins."""
    if config.recipe == "composed":
        return ComposedTask(config.network, config.composed)
    return PublishedTask(config.network, config.published, seed=config.training.loop.seed)
