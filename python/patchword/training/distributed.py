# SPDX-License-Identifier: Apache-2.0
"""Device, precision and data parallelism: the only module that knows Hugging Face Accelerate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from patchword.errors import ConfigError, OptionError
from patchword.training.config import LoopConfig

_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Processes:
    """This process among those that ``torchrun`` started, or alone.

    Attributes:
        index: Number of this process.
        count: Number of processes.
        device: Where this process computes.
    """

    def __init__(self, loop: LoopConfig, device: torch.device | str | None = None) -> None:
        """Join the other processes.

        Args:
            loop: Its precision and batch sizes are used.
            device: ``cpu`` keeps off a GPU; None takes what is there, one GPU a process.

        Raises:
            OptionError: Accelerate is not installed.
            ConfigError: The micro-batches of a step cannot be shared equally.
        """
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise OptionError(
                'fit: training needs the package accelerate. Run pip install "patchword[train]".'
            ) from error
        on_cpu = device is not None and torch.device(device).type == "cpu"
        self._accelerator: Any = Accelerator(
            mixed_precision=_PRECISION[loop.precision],
            cpu=on_cpu,
            step_scheduler_with_optimizer=False,
        )
        self.index = int(self._accelerator.process_index)
        self.count = int(self._accelerator.num_processes)
        self.device: torch.device = self._accelerator.device
        micro = loop.micro_batch_size if loop.micro_batch_size is not None else loop.batch_size
        if micro < 1 or loop.batch_size % micro:
            raise ConfigError(
                f"fit: micro_batch_size must divide batch_size {loop.batch_size}, got {micro}."
            )
        self.micro_batch_size = micro
        self.micro_batches = loop.batch_size // micro
        if self.micro_batches % self.count:
            raise ConfigError(
                f"fit: a step of {self.micro_batches} micro-batches cannot be shared by "
                f"{self.count} processes. Choose another micro_batch_size or number of processes."
            )

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.index == 0

    def wrap(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Move the model to the device and make it share gradients and precision."""
        wrapped, prepared = self._accelerator.prepare(model, optimizer)
        return wrapped, prepared

    def holding_gradients(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Keep gradients to this process inside; for all but the last micro-batch of a step."""
        return self._accelerator.no_sync(model)

    def backward(self, loss: Tensor) -> None:
        """Backpropagate, scaled where half precision needs it."""
        self._accelerator.backward(loss)

    def clip(self, parameters: list[nn.Parameter], norm: float | None) -> float:
        """Scale gradients down to a norm; returns the norm that they had."""
        limit = float("inf") if norm is None else norm
        self._accelerator.unscale_gradients()
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        told = torch.tensor([float(flag)], device=self.device)
        return bool(self._accelerator.reduce(told, "sum").item() > 0)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        if self.count == 1:
            return values
        averaged: Tensor = self._accelerator.reduce(values, "mean")
        return averaged

    def wait(self) -> None:
        """Wait until every process has come here."""
        self._accelerator.wait_for_everyone()

    def scaler_state(self) -> dict[str, Any]:
        """State of the gradient scaler; empty without half precision."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else dict(scaler.state_dict())

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Take a gradient scaler's state back."""
        if state and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)
