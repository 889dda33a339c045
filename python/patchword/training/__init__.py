# SPDX-License-Identifier: Apache-2.0
"""The training loop, its checkpoints and its records; it knows no system by name."""

from __future__ import annotations

from patchword.training.config import (
    LoopConfig,
    OptimConfig,
    TrackingConfig,
    TrainingConfig,
    load_config,
)
from patchword.training.loop import FitResult, fit
from patchword.training.sampling import SampleKey
from patchword.training.task import Losses, Task

__all__ = [
    "FitResult",
    "LoopConfig",
    "Losses",
    "OptimConfig",
    "SampleKey",
    "Task",
    "TrackingConfig",
    "TrainingConfig",
    "fit",
    "load_config",
]
