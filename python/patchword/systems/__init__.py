# SPDX-License-Identifier: Apache-2.0
"""The re-implemented systems by name; each has a folder of its own, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from patchword.errors import OptionError

__all__ = ["SYSTEMS", "TRAINABLE", "load", "trainer"]

# Name of a system -> the module whose `load` makes it.
SYSTEMS: dict[str, str] = {
    "segswap": "patchword.systems.segswap",
    "sketchseg": "patchword.systems.sketchseg",
}

# Name of a system -> the module with `TrainConfig`, a frozen dataclass that has a field `training`,
# and `create_task(config) -> patchword.training.Task`.
TRAINABLE: dict[str, str] = {
    "segswap": "patchword.systems.segswap.task",
    "sketchseg": "patchword.systems.sketchseg.task",
}


def load(name: str, checkpoint: str | Path | None = None, **options: Any) -> Any:
    """A ready system: the shipped default weights, or those of a checkpoint.

    Args:
        name: One of ``patchword.systems.SYSTEMS``.
        checkpoint: A file that ``patchword convert`` or ``patchword train`` wrote; without one the
            weights that ship with the library.
        options: What that system's ``load`` takes besides, such as ``device``.

    Raises:
        OptionError: There is no such system.
        CheckpointError: The checkpoint is of another system, damaged or not to be trusted.
    """
    if name not in SYSTEMS:
        raise OptionError(
            f"load: name must be one of {sorted(SYSTEMS)}, got {name!r}. "
            "It is the name of a system, not of a file: that goes into checkpoint=."
        )
    return import_module(SYSTEMS[name]).load(checkpoint, **options)


def trainer(name: str) -> Any:
    """The module that says how a system is trained: its ``TrainConfig`` and ``create_task``.

    Raises:
        OptionError: There is no such system, or it is not trained.
    """
    if name not in TRAINABLE:
        raise OptionError(f"train: system must be one of {sorted(TRAINABLE)}, got {name!r}.")
    return import_module(TRAINABLE[name])
