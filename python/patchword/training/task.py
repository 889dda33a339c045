# SPDX-License-Identifier: Apache-2.0
"""What a system brings to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from patchword.structures import ImageArray

Losses = Mapping[str, Tensor]


class Task(ABC):
    """A model, its samples and its losses; the loop does the rest.

    Attributes:
        system: Name of the system, written into each checkpoint.
        model: The network whose parameters are trained and saved. Frozen parts that need no saving
            stay outside, for instance in the dataset or in the task.
    """

    system: str
    model: nn.Module

    @abstractmethod
    def dataset(self) -> Dataset[Any]:
        """Give the samples: ``len()`` records, read by :class:`~patchword.training.SampleKey`."""

    @abstractmethod
    def collate(self, samples: list[Any]) -> Any:
        """Join samples to a batch that has ``to(device)``."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any, step: int) -> Losses:
        """Compute the losses of one micro-batch.

        Args:
            model: :attr:`model` as the loop wrapped it. Call it as a whole, ``model(...)`` and not
                a part of it, so that precision and other processes are taken care of.
            batch: From :meth:`collate`, on the device.
            step: Number of the optimiser step, from 0.

        Returns:
            Scalars by name; ``"total"`` is minimised, all are recorded.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give groups for the optimiser; a group without ``lr`` gets that of the configuration."""
        return [{"params": [one for one in self.model.parameters() if one.requires_grad]}]

    def prepare(self, device: Any) -> None:  # noqa: B027  # nothing to move is the rule
        """Move what stays outside the model to the device; called once, before the first step."""

    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: B027  # the same
        """Do what must happen before a step, on every process alike, such as mining negatives."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the model, which is in evaluation mode; called on the main process alone."""
        return {}

    def pictures(self, model: nn.Module) -> dict[str, ImageArray]:
        """Draw what the model does, uint8 ``[H, W, 3]`` by name; on the main process alone."""
        return {}

    def metadata(self) -> dict[str, Any]:
        """Give what travels in the header of the weights file, JSON-ready: configuration, ..."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Give the state, tensors and plain values, that an exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # the same
        """Take a state back."""
