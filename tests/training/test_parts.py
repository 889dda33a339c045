# SPDX-License-Identifier: Apache-2.0
"""Learning rates, order of samples, configuration, and the command line of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from toy import ToyConfig

from patchword.cli.main import main
from patchword.errors import ConfigError
from patchword.training import OptimConfig, load_config
from patchword.training.config import to_plain, to_yaml
from patchword.training.optim import WeightAverage, create_optimizer, learning_rate_factor
from patchword.training.sampling import MicroBatches


def rates(config: OptimConfig, steps: range, total: int) -> list[float]:
    return [config.lr * learning_rate_factor(config, step, total) for step in steps]


def test_published_warm_up_starts_at_the_full_rate_and_drops_to_nothing() -> None:
    config = OptimConfig(
        lr=2e-4,
        schedule="step",
        warmup_steps=1000,
        warmup="segswap",
        milestones=(451_000,),
        gamma=0.05,
    )
    assert rates(config, range(3), 892_000) == pytest.approx([2e-4, 0.0, 2e-7])
    assert rates(config, range(1000, 1001), 892_000) == [2e-4]
    assert rates(config, range(450_999, 451_001), 892_000) == pytest.approx([2e-4, 1e-5])


def test_corrected_warm_up_rises_evenly() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4)
    assert rates(config, range(6), 10) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_ends_at_its_final_share() -> None:
    config = OptimConfig(lr=2.0, schedule="cosine", warmup_steps=2, final_factor=0.1)
    values = rates(config, range(2, 12), 11)
    assert values[0] == 2.0
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0.2)


def test_weight_decay_leaves_vectors_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    made = create_optimizer([{"params": list(model.parameters())}], OptimConfig(weight_decay=0.1))
    decays = {
        tuple(one.shape): group["weight_decay"]
        for group in made.param_groups
        for one in group["params"]
    }
    assert decays == {(3, 2): 0.1, (3,): 0.0}


def test_a_group_keeps_its_own_rate() -> None:
    model = nn.Linear(2, 2)
    groups = [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias]}]
    made = create_optimizer(groups, OptimConfig(lr=0.1))
    assert [group["initial_lr"] for group in made.param_groups] == [0.5, 0.1]


def test_running_mean_swaps_there_and_back() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average.update(model, step=100)
    average.swap(model)
    assert model.weight.item() == 0.5
    average.swap(model)
    assert model.weight.item() == 1.0


def test_every_record_comes_once_an_epoch_whoever_asks() -> None:
    def keys(process: int, processes: int, first: int = 0) -> list[list[tuple[int, int]]]:
        batches = MicroBatches(
            7,
            seed=3,
            micro_batch_size=1,
            per_step=2,
            first_step=first,
            last_step=7,
            process=process,
            processes=processes,
        )
        listed = list(batches)
        assert len(listed) == len(batches)
        return [[tuple(key) for key in batch] for batch in listed]

    alone = keys(0, 1)
    records = [key[0] for batch in alone for key in batch]
    assert sorted(records[:7]) == sorted(records[7:]) == list(range(7))
    assert records[:7] != records[7:]
    shared = [one for pair in zip(keys(0, 2), keys(1, 2), strict=True) for one in pair]
    assert shared == alone
    assert keys(0, 1, first=3) == alone[6:]


def test_yaml_and_words_fill_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("width: 4\ntraining:\n  optim:\n    lr: 0.5\n    milestones: [3, 4]\n")
    found = load_config(
        ToyConfig, source=path, overrides=["training.optim.lr=1e-3", "training.loop.seed=7"]
    )
    assert (found.width, found.training.optim.lr, found.training.loop.seed) == (4, 1e-3, 7)
    assert found.training.optim.milestones == (3, 4)
    (tmp_path / "again.yaml").write_text(to_yaml(found))
    assert load_config(ToyConfig, source=tmp_path / "again.yaml") == found
    assert to_plain(found)["training"]["optim"]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("training.optim.lrr=1", "Did you mean: 'lr'"),
        ("training.optim.lr=fast", "could not be converted to Float"),
        ("training.optim.name=lion", "expected one of"),
        ("verbose", "must read like"),
    ],
)
def test_a_wrong_word_is_explained(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(ToyConfig, overrides=[word])


def test_a_wrong_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(ToyConfig, source=tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("width: [1\n")
    with pytest.raises(ConfigError, match="is not a YAML table"):
        load_config(ToyConfig, source=tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match=r"has no configuration 'mystery', it has: .*paper"):
        load_config(ToyConfig, system="segswap", source="mystery")


def test_command_line_shows_a_shipped_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "segswap", "--config", "stage2", "--show-config"]
    assert main([*words, "published.mining.pool_size=50"]) == 0
    shown = capsys.readouterr().out
    assert "pool_size: 50" in shown
    assert "hard_negatives: 5" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "mystery"], "system must be one of"),
        (["train", "segswap", "--config", "mystery"], "has no configuration 'mystery'"),
        (["train", "segswap", "published.compat=[T99]"], "compat must name some of"),
    ],
)
def test_command_line_refuses_in_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
