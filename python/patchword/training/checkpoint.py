# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: written whole or not at all, the last few and the best kept."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchword.data.io import printable
from patchword.errors import CheckpointError
from patchword.inference.atomic import (
    make_folder,
    output_error,
    write_bytes,
    write_json,
    write_text,
)
from patchword.nn.checkpoint import read_weights, weights_bytes

FOLDER = "checkpoints"
_NAME = re.compile(r"step_(\d{8})")


class Checkpoints:
    """The checkpoints of one run, in ``<run>/checkpoints``; ``last`` and ``best`` point to two."""

    def __init__(self, run: Path, *, keep_last: int = 2) -> None:
        """Name the run's folder; nothing is written yet."""
        self.folder = run / FOLDER
        self.keep_last = max(1, keep_last)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, rising."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(one[1]) for one in found if one is not None)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after a step."""
        return self.folder / f"step_{step:08d}"

    def save(
        self,
        step: int,
        *,
        weights: Mapping[str, Tensor],
        system: str,
        header: Mapping[str, Any],
        state: Mapping[str, Any],
        config_yaml: str,
        metrics: Mapping[str, Any],
        is_best: bool = False,
    ) -> Path:
        """Write a checkpoint beside its place, move it there, and remove the oldest ones.

        Args:
            step: Optimiser steps done.
            weights: The model.
            system: Name of the system that they belong to.
            header: JSON-ready header of the weights file.
            state: Tensors and plain values that a resume needs besides.
            config_yaml: The run's configuration.
            metrics: JSON-ready.
            is_best: Make ``best`` point here.

        Raises:
            OutputError: It cannot be written; older checkpoints are untouched.
        """
        place, draft = self.path(step), self.folder / f".step_{step:08d}.tmp"
        make_folder(self.folder)
        shutil.rmtree(draft, ignore_errors=True)
        try:
            content = weights_bytes(weights, system=system, header=header)
            write_bytes(draft / "model.safetensors", content)
            buffer = io.BytesIO()
            torch.save(dict(state), buffer)
            write_bytes(draft / "state.pt", buffer.getvalue())
            write_text(draft / "config.yaml", config_yaml)
            write_json(draft / "metrics.json", dict(metrics))
            shutil.rmtree(place, ignore_errors=True)
            draft.replace(place)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise output_error(place, error) from error
        self._point("last", place)
        if is_best:
            self._point("best", place)
        self._prune()
        return place

    def load(self, *, system: str) -> tuple[int, dict[str, Tensor], dict[str, Any], dict[str, Any]]:
        """Read the newest checkpoint.

        Returns:
            Step, weights, state and metrics.

        Raises:
            CheckpointError: There is none, or a file of it is damaged or of another system.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"resume: {printable(self.folder)} holds no checkpoint.")
        place = self.path(steps[-1])
        weights, _ = read_weights(place / "model.safetensors", system=system)
        try:
            content = (place / "state.pt").read_bytes()
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            metrics = json.loads((place / "metrics.json").read_text("utf-8"))
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"resume: {printable(place)} must hold a whole checkpoint, got: {text}. "
                "Remove that folder to go on from the one before."
            ) from error
        return steps[-1], weights, state, metrics

    def _point(self, name: str, place: Path) -> None:
        link, draft = self.folder / name, self.folder / f".{name}.tmp"
        try:
            draft.unlink(missing_ok=True)
            draft.symlink_to(place.name, target_is_directory=True)
            draft.replace(link)
        except OSError as error:
            raise output_error(link, error) from error

    def _prune(self) -> None:
        kept = set(self.steps()[-self.keep_last :])
        with suppress(OSError):
            best = _NAME.fullmatch((self.folder / "best").readlink().name)
            if best is not None:
                kept.add(int(best[1]))
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)
