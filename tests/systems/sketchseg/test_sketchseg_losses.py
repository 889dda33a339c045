# SPDX-License-Identifier: Apache-2.0
"""Losses and masks of the published training equal hand-computed values."""

import pytest
import torch

from patchword.errors import OptionError, ShapeError
from patchword.systems.sketchseg.losses import (
    MaskThreshold,
    category_mask,
    hard_triplet,
    masked_sketch,
    own_similarity,
    stroke_image,
)

ANCHORS = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
TEXTS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])


@pytest.mark.parametrize(
    ("labels", "expected"), [([0, 1, 2], 1 / 3), ([0, 0, 1], 0.0), ([0, 0, 0], 0.0)]
)
def test_triplet(labels, expected):
    # Distances [[1, 1, 2], [1, 1, 2], [1, 3, 0]].
    assert hard_triplet(ANCHORS, TEXTS, torch.tensor(labels)).item() == pytest.approx(expected)


def test_without_a_negative_nothing_is_learned():
    anchors = ANCHORS.clone().requires_grad_()
    hard_triplet(anchors, TEXTS, torch.zeros(3, dtype=torch.int64)).backward()
    assert torch.equal(anchors.grad, torch.zeros_like(anchors))


def test_own_caption_is_a_negative_only_as_published():
    # Two pairs of one sketch share caption and picture; the third has its own.
    anchors = torch.tensor([[0.0, 0.0], [0.0, 0.0], [5.0, 5.0]], requires_grad=True)
    texts = torch.tensor([[0.0, 1.0], [0.0, 1.0], [5.0, 5.0]])
    labels, groups = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])
    published = hard_triplet(anchors, texts, labels)
    assert published.item() == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert hard_triplet(anchors, texts, labels, groups=groups).item() == 0.0


def test_triplet_refuses_other_shapes():
    with pytest.raises(ShapeError, match=r"must be \[B, D\]"):
        hard_triplet(ANCHORS, TEXTS[:2], torch.tensor([0, 1, 2]))


def test_threshold_starts_where_published_and_stays_in_range():
    assert MaskThreshold(0.4)().item() == pytest.approx(0.69934, abs=1e-5)
    assert 0.4 <= MaskThreshold(-50.0)().item() < MaskThreshold(50.0)().item() <= 0.9


def test_threshold_moves_by_noise_alone_or_learns():
    still = MaskThreshold(0.4, noise=0.5)
    assert not list(still.parameters())
    before = still.theta.clone()
    still.drift(torch.Generator().manual_seed(1))
    assert still.theta != before
    learning = MaskThreshold(0.4, gradient="straight_through")
    maps = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(2))
    category_mask(maps, learning(), gradient="straight_through").sum().backward()
    assert learning.theta.grad < 0


def test_mask_by_column_or_as_a_whole():
    maps = torch.tensor([[[0.0, 10.0], [1.0, 20.0]], [[3.0, 1.0], [2.0, 5.0]]])
    half = torch.tensor(0.5)
    column = category_mask(maps, half, minmax="column")
    assert column.tolist() == [[[0, 0], [1, 1]], [[1, 0], [0, 1]]]
    assert category_mask(maps, half)[0].tolist() == [[0, 1], [0, 1]]


def test_a_constant_column_is_empty_not_nan():
    maps = torch.tensor([[[1.0, 0.0], [1.0, 2.0]]])
    assert category_mask(maps, torch.tensor(0.5), minmax="column").tolist() == [[[0, 0], [0, 1]]]


def test_straight_through_keeps_the_values():
    maps = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hard = category_mask(maps, torch.tensor(0.6))
    soft = category_mask(maps, torch.tensor(0.6), gradient="straight_through")
    torch.testing.assert_close(hard, soft.detach())
    assert not hard.requires_grad
    soft.sum().backward()
    assert maps.grad.abs().sum() > 0


def test_own_similarity_pairs_rows_and_stretches():
    features = torch.tensor([[[0.0], [1.0], [2.0], [3.0]], [[5.0], [5.0], [5.0], [5.0]]])
    maps = own_similarity(features, torch.tensor([[1.0], [1.0]]), (2, 2), (4, 4))
    expected = [0.0, 0.08333, 0.25, 0.33333]
    torch.testing.assert_close(maps[0, 0], torch.tensor(expected), atol=1e-4, rtol=0)
    assert maps[0, 3, 3] == 1
    assert torch.equal(maps[1], torch.zeros(4, 4))


def test_strokes_and_their_masked_sketch():
    picture = torch.tensor([[[1.0, 0.2], [0.5, 0.9]]]).expand(1, 3, 2, 2)
    strokes = stroke_image(picture)
    assert strokes.tolist() == [[[0, 1], [1, 0]]]
    mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert masked_sketch(strokes, mask).tolist() == [[[1, 0], [1, 1]]]
    assert masked_sketch(strokes, mask * 0).min() == 1


def test_unknown_options():
    with pytest.raises(OptionError, match='"none" or "straight_through"'):
        MaskThreshold(gradient="soft")
    with pytest.raises(OptionError, match='"column" or "global"'):
        category_mask(torch.ones(1, 2, 2), torch.tensor(0.5), minmax="row")
