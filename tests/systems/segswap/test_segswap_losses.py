# SPDX-License-Identifier: Apache-2.0
"""Losses and mining of SegSwap against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from patchword.errors import DatasetError, OptionError
from patchword.nn.cross_transformer import CrossTransformer, CrossTransformerConfig
from patchword.systems.segswap import mining
from patchword.systems.segswap.losses import (
    accuracies,
    certain_cells,
    correspondence_loss,
    in_batch_negatives,
    mask_loss,
    transport,
)
from patchword.systems.segswap.mining import MiningConfig, hard_share, mine, pool_pairs, score_pool


def two_cells() -> tuple[torch.Tensor, torch.Tensor]:
    """One map whose two certain cells err by (.1, .2) and (.3, 0)."""
    targets = torch.zeros(1, 3, 2, 2)
    targets[0, :2] = 0.5
    targets[0, 2, 0] = 0.8
    outputs = targets.clone()
    outputs[0, :2, 0, 0] += torch.tensor([0.1, 0.2])
    outputs[0, :2, 0, 1] += torch.tensor([-0.3, 0.0])
    outputs[0, :2, 1] = 0.0
    return outputs, targets


@pytest.mark.parametrize("compat", [False, True])
def test_coordinates_are_learned_from_certain_cells(compat: bool) -> None:
    outputs, targets = two_cells()
    error = correspondence_loss(outputs, targets, compat=compat)
    assert error.item() == pytest.approx(0.15)
    masks = mask_loss([torch.tensor([0.9, 0.2])], [torch.tensor([1.0, 0.0])])
    assert masks.item() == pytest.approx(0.164252, abs=1e-6)
    assert (masks + 8 * error).item() == pytest.approx(1.364252, abs=1e-6)


def test_small_objects_count_as_much_as_large_ones_unless_compat() -> None:
    targets = torch.zeros(2, 3, 2, 2)
    targets[0, 2] = 1.0
    targets[1, 2, 0, 0] = 1.0
    outputs = targets.clone()
    outputs[1, 0, 0, 0] = 0.4
    assert correspondence_loss(outputs, targets).item() == pytest.approx((0 + 0.2) / 2)
    assert correspondence_loss(outputs, targets, compat=True).item() == pytest.approx(0.4 / 10)


def test_certain_cells_forgive_rounding_and_empty_maps_unless_compat() -> None:
    masks = torch.tensor([[[1.0, 0.9995], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert certain_cells(masks).sum(dim=(1, 2)).tolist() == [2, 0]
    assert certain_cells(masks, compat=True).sum(dim=(1, 2)).tolist() == [1, 4]


def test_negatives_are_shifts_of_the_batch() -> None:
    first, second = in_batch_negatives(5, 15)
    assert first == [0, 1, 2, 3, 4] * 3
    assert second == [1, 2, 3, 4, 0, 2, 3, 4, 0, 1, 3, 4, 0, 1, 2]
    with pytest.raises(OptionError, match="5 pairs give at most 20"):
        in_batch_negatives(5, 21)


def test_identity_coordinates_transport_a_mask_unchanged() -> None:
    mask = torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid((torch.arange(4) + 0.5) / 4, (torch.arange(6) + 0.5) / 6, indexing="ij")
    output = torch.stack([x, y, torch.zeros_like(x)])[None]
    torch.testing.assert_close(transport(mask, output), mask)


def test_transport_passes_gradients_to_mask_and_coordinates() -> None:
    mask = torch.rand(1, 4, 4, requires_grad=True)
    output = torch.full((1, 3, 4, 4), 0.4, requires_grad=True)
    transport(mask, output).sum().backward()
    assert mask.grad is not None
    assert output.grad is not None
    assert mask.grad.abs().sum() > 0
    assert output.grad[:, :2].abs().sum() > 0


def test_accuracies_count_both_kinds() -> None:
    targets = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[[0.9, 0.2], [0.7, 0.1]]])
    found = accuracies(masks, targets, torch.tensor([[[0.6, 0.1]]]))
    assert found.positive.item() == 1.0
    assert found.negative.item() == pytest.approx(3 / 5)


def test_a_pool_of_500_gives_124750_pairs_in_3899_batches() -> None:
    first, second = pool_pairs(500)
    assert len(first) == 124_750
    assert (first < second).all()
    assert len(first.split(32)) == 3_899
    assert len(first) == 3_898 * 32 + 14


def test_weak_scores_count_as_nothing() -> None:
    probabilities, hard = hard_share(torch.tensor([0.04, 0.05, 0.1, 0.2, 0.15]))
    assert probabilities.tolist() == pytest.approx([0, 0.1, 0.2, 0.4, 0.3])
    assert hard == 2


def network() -> CrossTransformer:
    torch.manual_seed(0)
    sizes = CrossTransformerConfig(channels=8, width=16, heads=2, hidden=16, pattern="ICIN")
    return CrossTransformer(sizes)


def test_pool_scores_equal_the_plain_way() -> None:
    transformer = network().eval()
    features = torch.nn.functional.normalize(torch.randn(5, 8, 3, 3), dim=1)
    scores = score_pool(transformer, features)
    plain = []
    for i in range(5):
        for j in range(i + 1, 5):
            out0, out1 = transformer(features[i : i + 1], features[j : j + 1])
            plain.append((out0[:, 2].mean() + out1[:, 2].mean()).item())
    assert scores.tolist() == pytest.approx(plain, rel=1e-5)


def test_a_pool_with_few_hard_pairs_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [torch.tensor([0.2] * 10 + [0.0] * 35), torch.tensor([0.2] * 11 + [0.0] * 34)]
    monkeypatch.setattr(mining, "score_pool", lambda *_: answers.pop(0))

    def draw(rng: np.random.Generator, size: int) -> tuple[list[int], torch.Tensor]:
        return rng.choice(100, size, replace=False).tolist(), torch.zeros(size, 8, 3, 3)

    transformer = network().train()
    pool = mine(transformer, MiningConfig(5, pool_size=10), epoch=3, seed=0, draw=draw)
    assert (pool.attempt, pool.steps, pool.epoch) == (1, 11, 3)
    assert len(pool.records) == 10
    assert transformer.training
    first, second = pool.draw(5, torch.Generator().manual_seed(0))
    assert first.shape == second.shape == (5, 8, 3, 3)


def test_a_pool_serves_at_most_the_published_hundred_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "score_pool", lambda *_: torch.full((300,), 0.5))
    draw = lambda rng, size: (list(range(size)), torch.zeros(size, 8, 3, 3))  # noqa: E731
    assert mine(network(), MiningConfig(5), epoch=0, seed=0, draw=draw).steps == 100


def test_a_network_that_separates_everything_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mining, "score_pool", lambda *_: torch.zeros(45))
    draw = lambda rng, size: (list(range(size)), torch.zeros(size, 8, 3, 3))  # noqa: E731
    with pytest.raises(DatasetError, match="none of 100 did"):
        mine(network(), MiningConfig(5, pool_size=10), epoch=0, seed=0, draw=draw)


def test_random_crops_keep_their_size_and_come_from_the_picture() -> None:
    image = np.full((40, 60, 3), 77, np.uint8)
    crop = mining.random_crop(image, 32, np.random.default_rng(0))
    assert crop.shape == (32, 32, 3)
    assert (crop == 77).all()
    assert math.isclose(crop.mean(), 77)
