# SPDX-License-Identifier: Apache-2.0
"""Training-free evidence for tokens, and how the transformer takes it in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.nn.cross_transformer import CrossTransformer, CrossTransformerConfig
from patchword.nn.match_prior import PRIOR_CHANNELS, match_prior


def maps(height: int, width: int, seed: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(batch, 16, height, width, generator=generator), dim=1)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_turned_grid_finds_every_partner_and_its_turn(turns: int) -> None:
    first = maps(9, 9, 0)
    second = torch.rot90(first, turns, (2, 3))
    found, back = match_prior(first, second)
    number = torch.arange(81).reshape(9, 9)
    partner = torch.empty(81, dtype=torch.long)
    partner[torch.rot90(number, turns, (0, 1)).flatten()] = torch.arange(81)
    x, y = (partner % 9 + 0.5) / 9, (partner // 9 + 0.5) / 9
    torch.testing.assert_close(found.places[0], torch.stack([x, y], dim=1))
    inner = torch.zeros(9, 9, dtype=torch.bool)
    inner[2:-2, 2:-2] = True
    cos, sin = found.channels[0, :, 9], found.channels[0, :, 10]
    angle = torch.tensor(-turns * torch.pi / 2)
    # Surroundings may lie a patch beside, so the next of the eight turns agrees as well.
    likeness = (cos * angle.cos() + sin * angle.sin())[inner.flatten()]
    assert (likeness > 0.7).all()
    assert (found.channels[0, inner.flatten(), 5] == 2.0).all()  # all neighbours support
    assert back.channels.shape == (1, 81, PRIOR_CHANNELS)


def test_exchanging_the_pictures_exchanges_the_evidence() -> None:
    first, second = maps(5, 7, 0, batch=2), maps(6, 4, 1, batch=2)
    one, two = match_prior(first, second)
    two_again, one_again = match_prior(second, first)
    torch.testing.assert_close(one.channels, one_again.channels)
    torch.testing.assert_close(two.places, two_again.places)
    assert one.channels.shape == (2, 35, PRIOR_CHANNELS)
    assert ((one.places > 0) & (one.places < 1)).all()


def test_hidden_cells_are_nobodys_partner() -> None:
    first, second = maps(4, 4, 0), maps(4, 4, 0)
    valid = torch.ones(1, 16, dtype=torch.bool)
    valid[0, 5] = False
    found, _ = match_prior(first, second, None, valid)
    hidden = torch.tensor([(1 + 0.5) / 4, (1 + 0.5) / 4])
    assert not (found.places[0] == hidden).all(dim=1).any()


def transformer() -> CrossTransformer:
    torch.manual_seed(0)
    config = CrossTransformerConfig(
        channels=16, width=16, heads=2, hidden=16, pattern="ICIC", prior=True
    )
    return CrossTransformer(config).eval()


def test_coordinates_start_from_the_partner() -> None:
    network = transformer()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    first, second = maps(6, 6, 0), maps(6, 6, 1)
    out, _ = network(first, second)
    places = match_prior(first, second)[0].places[0].T.reshape(2, 6, 6)
    torch.testing.assert_close(out[0, :2], places, atol=1e-5, rtol=0)


def test_every_way_through_the_network_is_the_same() -> None:
    network = transformer()
    first, second = maps(5, 6, 0), maps(4, 7, 1, batch=3)
    whole0, whole1 = network(first, second)
    one, many = network.embed(first), network.embed(second)
    state0, state1 = network.before_last(one, many)
    cells = torch.tensor([[0, 7, 29]]).expand(3, -1)
    rows = network.last_at(state0, state1, cells)
    wanted = whole0.flatten(2).transpose(1, 2)[:, [0, 7, 29]]
    torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-5)
    single0, single1 = network.relate(one, many[1:2])
    torch.testing.assert_close(single0[0], whole0[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(single1[0], whole1[1], atol=1e-5, rtol=1e-5)
