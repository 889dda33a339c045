# SPDX-License-Identifier: Apache-2.0
"""The loop: it learns, resumes exactly, shares a run between processes, and refuses plainly."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrun import run_processes
from toy import ToyConfig, ToyTask, config

from patchword.errors import CheckpointError, ConfigError, OutputError, PatchwordError
from patchword.nn.checkpoint import read_weights
from patchword.training import OptimConfig, TrackingConfig, TrainingConfig, fit
from patchword.training.checkpoint import Checkpoints
from patchword.training.tracking import read_metrics

TOY = Path(__file__).with_name("toy.py")


def losses(folder: Path) -> list[float]:
    """Recorded losses by step, in full precision."""
    found = [one["train/loss/total"] for one in read_metrics(folder) if "train/loss/total" in one]
    assert len(found) > 0
    return found


def test_the_loss_falls_and_the_run_is_recorded(tmp_path: Path) -> None:
    result = fit(ToyTask(), config(60, validate_every=20), tmp_path / "run", device="cpu")
    recorded = losses(tmp_path / "run")
    assert result.steps == len(recorded) == 60
    assert sum(recorded[-10:]) < 0.6 * sum(recorded[:10])
    assert result.metrics["error"] < 1.0
    assert json.loads((tmp_path / "run" / "env.json").read_text())["processes"] == 1
    weights, header = read_weights(
        tmp_path / "run/checkpoints/last/model.safetensors", system="toy"
    )
    assert header["step"] == 60
    assert set(weights) == set(ToyTask().model.state_dict())


def test_an_interrupted_run_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(12, ema_decay=0.9, validate_every=4, best_metric="error", best_is_lower=True)
    fit(ToyTask(), whole, tmp_path / "whole", device="cpu")

    task = ToyTask()
    plain, sent = task.losses, list[int]()

    def with_signal(model: Any, batch: Any, step: int) -> Any:
        if step == 6 and not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGINT)
        return plain(model, batch, step)

    monkeypatch.setattr(task, "losses", with_signal)
    broken = fit(task, whole, tmp_path / "parts", device="cpu")
    assert broken.interrupted
    assert broken.steps == 7
    again = ToyTask()
    done = fit(again, whole, tmp_path / "parts", device="cpu", resume=True)
    assert not done.interrupted
    assert again.seen == 12
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ours, theirs = (
        read_weights(tmp_path / name / "checkpoints/last/model.safetensors", system="toy")[0]
        for name in ("parts", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_and_one_give_the_same_losses(tmp_path: Path) -> None:
    fit(ToyTask(), config(), tmp_path / "one", device="cpu")
    run_processes(TOY, tmp_path / "two")
    assert json.loads((tmp_path / "two" / "env.json").read_text())["processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_micro_batches_do_not_change_the_mean_gradient(tmp_path: Path) -> None:
    def without_dropout(micro: int, name: str) -> list[float]:
        task = ToyTask()
        task.model[2].p = 0.0
        fit(task, config(6, micro_batch_size=micro), tmp_path / name, device="cpu")
        return losses(tmp_path / name)

    assert without_dropout(1, "a") == pytest.approx(without_dropout(4, "b"), rel=1e-5)


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = config(
        16, keep_last=2, validate_every=2, save_every=2, best_metric="error", best_is_lower=False
    )
    fit(ToyTask(), settings, run, device="cpu")
    kept = Checkpoints(run).steps()
    # The error is largest at the first validation: that one stays beside the last two.
    assert kept == [2, 14, 16]
    assert (run / "checkpoints/best").resolve().name == "step_00000002"
    assert (run / "checkpoints/last").resolve().name == "step_00000016"


def test_a_folder_in_use_is_refused_unless_resumed(tmp_path: Path) -> None:
    fit(ToyTask(), config(2), tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match=r"already holds a run\. Pass --resume"):
        fit(ToyTask(), config(2), tmp_path / "run", device="cpu")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        fit(ToyTask(), config(2), tmp_path / "other", device="cpu")


def test_a_run_of_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    first = ToyConfig(training=config(2))
    fit(ToyTask(), first.training, tmp_path / "run", whole_config=first, device="cpu")
    changed = replace(first, width=8, training=replace(first.training, optim=OptimConfig(lr=5e-2)))
    with pytest.raises(ConfigError, match=r"another configuration \(different: .*width"):
        fit(
            ToyTask(),
            changed.training,
            tmp_path / "run",
            whole_config=changed,
            resume=True,
            device="cpu",
        )


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    fit(ToyTask(), config(4), tmp_path / "run", device="cpu")
    path = tmp_path / "run/checkpoints/last" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"must (be a whole|hold a whole)"):
        fit(ToyTask(), config(4), tmp_path / "run", resume=True, device="cpu")


def test_a_malicious_state_is_not_executed(tmp_path: Path) -> None:
    fit(ToyTask(), config(4), tmp_path / "run", device="cpu")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"step": Evil()}, tmp_path / "run/checkpoints/last/state.pt")
    with pytest.raises(CheckpointError):
        fit(ToyTask(), config(4), tmp_path / "run", resume=True, device="cpu")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_system_is_refused(tmp_path: Path) -> None:
    fit(ToyTask(), config(4), tmp_path / "run", device="cpu")
    other = ToyTask()
    other.system = "another"
    with pytest.raises(CheckpointError, match='"toy", not "another"'):
        fit(other, config(4), tmp_path / "run", resume=True, device="cpu")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(PatchwordError, match="must be finite, got nan at step 4"):
        fit(ToyTask(broken_after=3), config(), tmp_path / "run", device="cpu")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        fit(ToyTask(), config(2), tmp_path / "file" / "run", device="cpu")


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> Path:
        raise OutputError(f"write: {path} cannot be written: No space left on device.")

    fit(ToyTask(), config(4), tmp_path / "run", device="cpu")
    before = Checkpoints(tmp_path / "run").steps()
    monkeypatch.setattr("patchword.training.checkpoint.write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        fit(ToyTask(), config(4), tmp_path / "run2", device="cpu")
    assert Checkpoints(tmp_path / "run").steps() == before
    assert Checkpoints(tmp_path / "run2").steps() == []
    assert not list((tmp_path / "run2/checkpoints").iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batch_size": 3}, "must divide batch_size 4"),
        ({"best_metric": "mystery", "validate_every": 1}, "best_metric must be one of error"),
    ],
)
def test_numbers_that_contradict_each_other(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(ToyTask(), config(2, **settings), tmp_path / "run", device="cpu")


def test_tensorboard_gets_scalars_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = config(4, validate_every=2, picture_every=2)
    settings = TrainingConfig(settings.loop, settings.optim, TrackingConfig(tensorboard=True))
    fit(ToyTask(), settings, tmp_path / "run", device="cpu")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [one.step for one in events.Scalars("train/loss/total")] == [1, 2, 3, 4]
    assert "val/error" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["weights"]
