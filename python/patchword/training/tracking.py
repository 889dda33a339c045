# SPDX-License-Identifier: Apache-2.0
"""Records of a run: ``metrics.jsonl`` always, TensorBoard where installed, others when asked."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchword.errors import OptionError
from patchword.inference.atomic import make_folder, output_error, write_text
from patchword.structures import ImageArray
from patchword.training.config import TrackingConfig

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Writes scalars and pictures of one run to every place that was asked for."""

    def __init__(self, folder: Path, config: TrackingConfig, *, first_step: int = 0) -> None:
        """Open the records.

        Args:
            folder: The run's folder.
            config: Where else records go.
            first_step: Records of this step and later ones, left by a run that went on after its
                last checkpoint, are dropped: they are about to be written again.

        Raises:
            OptionError: Weights & Biases was asked for and is not installed.
            OutputError: The folder cannot be written.
        """
        make_folder(folder)
        self.path = folder / METRICS_FILE
        kept = [one for one in read_metrics(folder) if int(one["step"]) < first_step]
        write_text(self.path, "".join(json.dumps(one) + "\n" for one in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _open_tensorboard(folder, first_step) if config.tensorboard else None
        self._wandb = None if config.wandb is None else _open_wandb(folder, config.wandb)

    def log_scalars(self, scalars: Mapping[str, float], *, step: int, samples: int) -> None:
        """Record numbers after a step.

        Args:
            scalars: By tag, such as ``train/loss/total``.
            step: Optimiser steps done.
            samples: Samples seen.
        """
        plain = {
            tag: float(value) if math.isfinite(value) else None for tag, value in scalars.items()
        }
        try:
            self._file.write(json.dumps({"step": step, "samples": samples, **plain}) + "\n")
            self._file.flush()
        except OSError as error:
            raise output_error(self.path, error) from error
        if self._board is not None:
            for tag, value in scalars.items():
                self._board.add_scalar(tag, value, step)
        if self._wandb is not None:
            self._wandb.log({**scalars, "samples": samples}, step=step)

    def log_picture(self, tag: str, picture: ImageArray, *, step: int) -> None:
        """Record a picture, uint8 ``[H, W, 3]``."""
        if self._board is not None:
            self._board.add_image(tag, picture, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({tag: wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Finish all records."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read a run's records; a last line that a kill cut short is left out."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _open_tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info(
            "no TensorBoard here, so records go to %s alone; "
            'pip install "patchword[train]" brings it',
            METRICS_FILE,
        )
        return None
    return SummaryWriter(str(folder), purge_step=first_step or None)


def _open_wandb(folder: Path, project: str) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise OptionError(
            "fit: tracking.wandb needs the package wandb, which is not installed. "
            "Run pip install wandb, or leave tracking.wandb empty."
        ) from error
    return wandb.init(project=project, dir=str(folder), name=folder.name)
