# SPDX-License-Identifier: Apache-2.0
"""Optimisers, the learning rate as a function of the step, and a running mean of weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from patchword.training.config import OptimConfig


def create_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser of a configuration.

    Vectors (biases, norms) get no weight decay: pulling a norm's scale to zero regularises nothing.

    Args:
        groups: From :meth:`~patchword.training.Task.parameter_groups`.
        config: See :class:`OptimConfig`.
    """
    split: list[dict[str, Any]] = []
    for group in groups:
        parameters: list[nn.Parameter] = list(group["params"])
        rest = {key: value for key, value in group.items() if key != "params"}
        if config.weight_decay == 0.0 or "weight_decay" in group:
            split.append({**rest, "params": parameters})
            continue
        matrices = [one for one in parameters if one.ndim > 1]
        vectors = [one for one in parameters if one.ndim <= 1]
        split.append({**rest, "params": matrices, "weight_decay": config.weight_decay})
        split.append({**rest, "params": vectors, "weight_decay": 0.0})
    split = [group for group in split if group["params"]]
    made: torch.optim.Optimizer
    if config.name == "sgd":
        made = torch.optim.SGD(split, lr=config.lr, momentum=config.betas[0])
    elif config.name == "adam":
        made = torch.optim.Adam(split, lr=config.lr, betas=config.betas, eps=config.eps)
    else:
        made = torch.optim.AdamW(
            split, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0
        )
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    return made


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps: int
) -> float:
    """Set the rate of every group for a step; returns the factor on their highest rates."""
    factor = learning_rate_factor(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return factor


def learning_rate_factor(config: OptimConfig, step: int, steps: int) -> float:
    """Share in [0, 1] of the highest learning rate at which a step is done.

    Being a function of the step alone, it needs no state to resume.

    Args:
        config: See :class:`OptimConfig`.
        step: Number of the step, from 0.
        steps: Steps of the whole run, where ``cosine`` ends.
    """
    if step < config.warmup_steps and config.warmup == "segswap":
        # Deviation: the published loop sets the rate after each iteration k to lr * k / 1000, so
        # that iteration 0 still runs at the full rate and iteration 1 at none.
        return 1.0 if step == 0 else (step - 1) / config.warmup_steps
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "step":
        return config.gamma ** sum(step >= milestone for milestone in config.milestones)
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return config.final_factor + (1.0 - config.final_factor) * wave
    return 1.0


class WeightAverage:
    """Exponential running mean of a model's parameters and floating-point buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's present weights."""
        self.decay = decay
        self.mean = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step; early ones count more, to forget the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.mean[name].lerp_(value, 1 - decay)
            else:
                self.mean[name].copy_(value)

    def swap(self, model: nn.Module) -> None:
        """Exchange the mean and the model's weights; a second call undoes it."""
        present = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.mean)
        self.mean = present

    def state_dict(self) -> dict[str, Tensor]:
        """The mean by name."""
        return self.mean

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take a mean back."""
        for name, value in state.items():
            self.mean[name].copy_(value)
