# SPDX-License-Identifier: Apache-2.0
"""What ``patchword train sketchseg`` trains: one of two recipes."""

from __future__ import annotations

from patchword.systems.sketchseg.train_config import TrainConfig
from patchword.training import Task

__all__ = ["TrainConfig", "create_task"]


def create_task(config: TrainConfig) -> Task:
    """Build the task of the recipe that the configuration names."""
    if config.recipe == "paper":
        from patchword.systems.sketchseg.published_task import PublishedTask

        return PublishedTask(config.paper, config.training.loop)
    from patchword.systems.sketchseg.small_task import SmallTask

    return SmallTask(config.small, config.training.loop)
