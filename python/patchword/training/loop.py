# SPDX-License-Identifier: Apache-2.0
"""``fit``: the one loop that trains every system."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from patchword import __version__
from patchword.data.io import printable
from patchword.errors import CheckpointError, ConfigError, PatchwordError
from patchword.inference.atomic import make_folder, write_json, write_text
from patchword.inference.interrupt import stop_on_signal
from patchword.inference.progress import Progress, silent
from patchword.training.checkpoint import Checkpoints
from patchword.training.config import TrainingConfig, flatten, to_yaml
from patchword.training.distributed import Processes
from patchword.training.optim import WeightAverage, create_optimizer, set_learning_rate
from patchword.training.sampling import MicroBatches, mixed_seed
from patchword.training.task import Task
from patchword.training.tracking import Tracker

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        folder: The run's folder.
        steps: Optimiser steps done in all.
        interrupted: A signal ended it early; the same call with ``resume`` goes on.
        losses: Losses of the last recorded step, by name.
        metrics: The last validation.
    """

    folder: Path
    steps: int
    interrupted: bool
    losses: dict[str, float]
    metrics: dict[str, float]


def fit(
    task: Task,
    config: TrainingConfig,
    folder: str | Path,
    *,
    whole_config: object | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    progress: Progress = silent,
) -> FitResult:
    """Train a task and leave a run folder behind.

    The folder holds ``config.yaml``, ``env.json``, ``metrics.jsonl``, TensorBoard's event files and
    ``checkpoints/``. What happens in a step follows from the configuration, the seed and the step's
    number alone: a run that was interrupted and resumed, or shared by several processes, gives the
    losses of an undisturbed one. Start several processes with ``torchrun``.

    Args:
        task: What is trained.
        config: How.
        folder: The run's folder.
        whole_config: The system's configuration that holds ``config``; it is what is written down
            and compared on resume. By default ``config`` itself.
        resume: Go on from the newest checkpoint in ``folder``, or begin where there is none.
        device: ``cpu`` keeps off a GPU; None takes what is there.
        progress: Wraps the loop over steps.

    Raises:
        ConfigError: The folder holds a run of another configuration, or one that was not asked to
            be resumed; or numbers in ``config`` contradict each other.
        CheckpointError: The newest checkpoint is damaged or of another system.
        OutputError: The folder cannot be written.
        PatchwordError: The loss became NaN or infinite.
    """
    processes = Processes(config.loop, device)
    run = _Run(
        task, config, Path(folder), whole_config if whole_config is not None else config, processes
    )
    with stop_on_signal("step") as stop:
        return run.train(resume, progress, stop)


class _Run:
    """What one call of :func:`fit` holds on to."""

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        folder: Path,
        whole_config: object,
        processes: Processes,
    ) -> None:
        self.task, self.config, self.loop = task, config, config.loop
        self.folder, self.whole_config, self.processes = folder, whole_config, processes
        self.checkpoints = Checkpoints(folder, keep_last=config.loop.keep_last)
        self.step = 0
        self.best: float | None = None
        self.metrics: dict[str, float] = {}
        self.losses: dict[str, float] = {}

    def train(self, resume: bool, progress: Progress, stop: object) -> FitResult:
        self._claim_folder(resume)
        self._build()
        if resume and self.checkpoints.steps():
            self._load()
        tracker = (
            Tracker(self.folder, self.config.tracking, first_step=self.step + 1 if self.step else 0)
            if self.processes.is_main
            else None
        )
        batches = iter(self._batches())
        interrupted = False
        try:
            for _ in progress(range(self.step, self.loop.steps), total=self.loop.steps - self.step):
                self._advance(batches, tracker)
                interrupted = self.processes.any(bool(stop))
                last = interrupted or self.step == self.loop.steps
                self._report(tracker, last)
                if interrupted:
                    break
        finally:
            if tracker is not None:
                tracker.close()
        return FitResult(self.folder, self.step, interrupted, self.losses, self.metrics)

    def _build(self) -> None:
        torch.manual_seed(mixed_seed(self.loop.seed))
        optimizer = create_optimizer(self.task.parameter_groups(), self.config.optim)
        self.model, self.optimizer = self.processes.wrap(self.task.model, optimizer)
        self.task.prepare(self.processes.device)
        decay = self.loop.ema_decay
        self.average = None if decay is None else WeightAverage(self.task.model, decay)
        self.parameters = [one for group in optimizer.param_groups for one in group["params"]]

    def _batches(self) -> DataLoader[Any]:
        dataset = self.task.dataset()
        sampler = MicroBatches(
            len(dataset),  # type: ignore[arg-type]  # torch's Dataset does not promise a length
            seed=self.loop.seed,
            micro_batch_size=self.processes.micro_batch_size,
            per_step=self.processes.micro_batches,
            first_step=self.step,
            last_step=self.loop.steps,
            process=self.processes.index,
            processes=self.processes.count,
        )
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.task.collate,
            num_workers=self.loop.num_workers,
            pin_memory=self.processes.device.type == "cuda",
            worker_init_fn=_calm_worker,
        )

    def _advance(self, batches: Iterator[Any], tracker: Tracker | None) -> None:
        """One optimiser step."""
        begin = time.perf_counter()
        seed, mine = self.loop.seed, self.processes.micro_batches // self.processes.count
        torch.manual_seed(mixed_seed(seed, self.step, self.processes.micro_batches))
        self.task.before_step(self.task.model, self.step)
        factor = set_learning_rate(self.optimizer, self.config.optim, self.step, self.loop.steps)
        self.model.train()
        sums: dict[str, Tensor] = {}
        waited = 0.0
        for number in range(mine):
            before = time.perf_counter()
            batch = next(batches).to(self.processes.device)
            waited += time.perf_counter() - before
            torch.manual_seed(
                mixed_seed(seed, self.step, number * self.processes.count + self.processes.index)
            )
            held = number + 1 < mine
            with self.processes.holding_gradients(self.model) if held else nullcontext():
                losses = self.task.losses(self.model, batch, self.step)
                self.processes.backward(losses["total"] / mine)
            for name, value in losses.items():
                part = value.detach().float() / mine
                sums[name] = sums[name] + part if name in sums else part
        norm = self.processes.clip(self.parameters, self.config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.task.model, self.step)
        self.step += 1
        self._record(sums, norm, factor, tracker, (begin, waited))

    def _record(
        self,
        sums: dict[str, Tensor],
        norm: float,
        factor: float,
        tracker: Tracker | None,
        clock: tuple[float, float],
    ) -> None:
        due = self.step % self.loop.log_every == 0 or self.step in (1, self.loop.steps)
        if not due:
            return
        values = self.processes.mean(torch.stack(list(sums.values())))
        self.losses = dict(zip(sums, values.tolist(), strict=True))
        if tracker is not None:
            spent = time.perf_counter() - clock[0]
            scalars = {f"train/loss/{name}": value for name, value in self.losses.items()}
            scalars |= {
                "train/learning_rate": self.config.optim.lr * factor,
                "grad/norm": norm,
                "time/step_s": spent,
                "time/data_s": clock[1],
            }
            tracker.log_scalars(scalars, step=self.step, samples=self.step * self.loop.batch_size)
        if not math.isfinite(self.losses["total"]):
            raise PatchwordError(
                f"fit: the loss must be finite, got {self.losses['total']} at step {self.step}. "
                "Lower optim.lr or set optim.clip_norm, and resume from the last checkpoint."
            )

    def _report(self, tracker: Tracker | None, last: bool) -> None:
        """Validate, draw and save, where due."""
        loop = self.loop

        def due(every: int) -> bool:
            return every > 0 and (self.step % every == 0 or self.step == loop.steps)

        validate, draw = due(loop.validate_every), due(loop.picture_every)
        save = last or due(loop.save_every)
        if not (validate or draw or save):
            return
        if self.processes.is_main:
            assert tracker is not None
            raw = _cpu_copy(self.task.model) if self.average is not None else None
            if self.average is not None:
                self.average.swap(self.task.model)
            self.task.model.eval()
            is_best = self._validate(tracker) if validate else False
            if draw:
                for name, picture in self.task.pictures(self.task.model).items():
                    tracker.log_picture(name, picture, step=self.step)
            if save or is_best:
                self._save(raw, is_best)
            if self.average is not None:
                self.average.swap(self.task.model)
        self.processes.wait()

    def _validate(self, tracker: Tracker) -> bool:
        with torch.no_grad():
            self.metrics = self.task.validate(self.task.model)
        tracker.log_scalars(
            {f"val/{name}": value for name, value in self.metrics.items()},
            step=self.step,
            samples=self.step * self.loop.batch_size,
        )
        name = self.loop.best_metric
        if name is None:
            return False
        if name not in self.metrics:
            raise ConfigError(
                f"fit: best_metric must be one of {', '.join(self.metrics)}, got {name!r}."
            )
        value = -self.metrics[name] if self.loop.best_is_lower else self.metrics[name]
        if math.isnan(value) or (self.best is not None and value <= self.best):
            return False
        self.best = value
        return True

    def _save(self, raw: dict[str, Tensor] | None, is_best: bool) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.processes.scaler_state(),
            "task": self.task.state_dict(),
            # With a running mean the weights file holds the mean; training goes on from these.
            "raw": raw,
        }
        self.checkpoints.save(
            self.step,
            weights=self.task.model.state_dict(),
            system=self.task.system,
            header={**self.task.metadata(), "step": self.step},
            state=state,
            config_yaml=to_yaml(self.whole_config),
            metrics={"step": self.step, "losses": self.losses, "validation": self.metrics},
            is_best=is_best,
        )

    def _load(self) -> None:
        step, weights, state, metrics = self.checkpoints.load(system=self.task.system)
        try:
            self.task.model.load_state_dict(weights)
            if self.average is not None:
                self.average.load_state_dict(self.task.model.state_dict())
                self.task.model.load_state_dict(state["raw"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.processes.load_scaler_state(state["scaler"])
            self.task.load_state_dict(state["task"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"resume: {printable(self.checkpoints.path(step))} does not fit this model: "
                f"{str(error).splitlines()[0]}."
            ) from error
        self.step, self.best = step, state["best"]
        self.losses, self.metrics = metrics["losses"], metrics["validation"]

    def _claim_folder(self, resume: bool) -> None:
        """Write the configuration down, or compare with what is there; alike on every process."""
        place = self.folder / CONFIG_FILE
        if place.is_file():
            self._compare(place, resume)
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(
                f"fit: the run folder must be new, empty or of the same run, but "
                f"{printable(self.folder)} holds other files. Choose another."
            )
        self.processes.wait()
        if self.processes.is_main:
            make_folder(self.folder)
            write_text(place, to_yaml(self.whole_config))
            write_json(self.folder / "env.json", _environment(self.processes))
        self.processes.wait()

    def _compare(self, place: Path, resume: bool) -> None:
        from omegaconf import OmegaConf

        if not resume:
            raise ConfigError(
                f"fit: {printable(self.folder)} already holds a run. "
                "Pass --resume to go on with it, or choose another folder."
            )
        # Both as YAML holds them, where a tuple is a list.
        texts = place.read_text("utf-8"), to_yaml(self.whole_config)
        old, new = (flatten(OmegaConf.to_container(OmegaConf.create(text))) for text in texts)
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if changed:
            raise ConfigError(
                f"fit: {printable(self.folder)} holds a run of another configuration (different: "
                f"{', '.join(changed)}). Choose another folder or go back to its settings."
            )


def _cpu_copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _calm_worker(_: int) -> None:
    """One thread a worker: several of them share the cores with the main process."""
    torch.set_num_threads(1)
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(0)


def _environment(processes: Processes) -> dict[str, Any]:
    return {
        "patchword": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(processes.device),
        "processes": processes.count,
    }
