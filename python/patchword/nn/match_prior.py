# SPDX-License-Identifier: Apache-2.0
"""What matching without training says about each patch, as input for a network that is trained.

For every patch the most similar patches of the other picture are tried as its partner, each with
several turns and scales of the surroundings; the partner whose surroundings agree best is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PRIOR_CHANNELS = 16
_CANDIDATES = 6
_TURNS = 8
_SCALES = (0.75, 1.0, 1.33)
# A ring of patches around the one in question, (down, right).
_NEAR = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
_RING = (*_NEAR, (0, 2), (2, 0), (0, -2), (-2, 0))


@dataclass(frozen=True, eq=False)
class MatchPrior:
    """Evidence for the patches of one picture.

    Attributes:
        channels: ``[B, N, PRIOR_CHANNELS]``: similarities, agreement of the surroundings, place of
            the partner, turn and scale, and how well the way back agrees.
        places: ``[B, N, 2]`` x, y of the partner as shares of the other picture's width and height.
    """

    channels: Tensor
    places: Tensor


@torch.no_grad()
def match_prior(
    maps0: Tensor,
    maps1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
) -> tuple[MatchPrior, MatchPrior]:
    """Match two batches of feature maps without training.

    Args:
        maps0: ``[B, C, h0, w0]``, cells of unit length.
        maps1: ``[B, C, h1, w1]``.
        valid0: bool ``[B, h0 * w0]``, True where cells of picture 0 can be partners; None for all.
        valid1: The same for picture 1.

    Returns:
        Evidence for the patches of picture 0 and of picture 1. Not differentiable. Deterministic.
    """
    rows0, rows1 = (maps.float().flatten(2).transpose(1, 2) for maps in (maps0, maps1))
    # What all patches of both pictures have in common tells no two of them apart.
    mean = torch.cat([rows0, rows1], dim=1).mean(dim=1, keepdim=True)
    rows0, rows1 = F.normalize(rows0 - mean, dim=2), F.normalize(rows1 - mean, dim=2)
    similarity = rows0 @ rows1.transpose(1, 2)
    grid0, grid1 = (maps0.shape[2], maps0.shape[3]), (maps1.shape[2], maps1.shape[3])
    if valid0 is not None:
        similarity = similarity.masked_fill(~valid0[:, :, None], -1.0)
    if valid1 is not None:
        similarity = similarity.masked_fill(~valid1[:, None, :], -1.0)
    found0 = _partners(similarity, grid0, grid1)
    found1 = _partners(similarity.transpose(1, 2).contiguous(), grid1, grid0)
    return (
        _describe(found0, found1, grid0, grid1),
        _describe(found1, found0, grid1, grid0),
    )


@dataclass(frozen=True, eq=False)
class _Partners:
    """Best partner of each patch: flat index, similarity, agreement, margin, turn, log scale."""

    index: Tensor
    similarity: Tensor
    first: Tensor
    agreement: Tensor
    margin: Tensor
    turn: Tensor
    log_scale: Tensor


def _partners(similarity: Tensor, grid0: tuple[int, int], grid1: tuple[int, int]) -> _Partners:
    batch, count0, count1 = similarity.shape
    (height0, width0), width1 = grid0, grid1[1]
    # Surroundings may lie a patch beside where a turn and a scale put them.
    near = F.max_pool2d(similarity.reshape(batch * count0, 1, *grid1), 3, 1, 1)
    near = F.pad(near.reshape(batch, height0, width0, *grid1), (4, 4, 4, 4, 2, 2, 2, 2))
    sizes = near.shape[1:]
    flat = near.flatten()
    best = similarity.topk(min(_CANDIDATES, count1), dim=2)
    row, column = best.indices // width1, best.indices % width1  # [B, N0, K]
    numbers = torch.arange(count0, device=similarity.device)[None, :, None]
    which = torch.arange(batch, device=similarity.device)[:, None, None]
    # Place in `flat` of every patch with every partner.
    base = (which * sizes[0] + numbers // width0 + 2) * sizes[1] + numbers % width0 + 2
    base = ((base * sizes[2] + row + 4) * sizes[3] + column + 4).flatten()
    moves = [(down * sizes[1] + right) * sizes[2] * sizes[3] for down, right in _RING]
    agreement = similarity.new_full((len(base),), -1.0)
    pose = torch.zeros_like(base)
    poses = [(2 * math.pi * step / _TURNS, scale) for step in range(_TURNS) for scale in _SCALES]
    for number, (angle, scale) in enumerate(poses):
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        total = torch.zeros_like(agreement)
        for move, (down, right) in zip(moves, _RING, strict=True):
            there = round(sin * right + cos * down) * sizes[3] + round(cos * right - sin * down)
            total += flat.index_select(0, base + (move + there))
        total /= len(_RING)
        wins = total > agreement
        agreement = torch.where(wins, total, agreement)
        pose = torch.where(wins, number, pose)
    agreement, pose = agreement.view_as(best.values), pose.view_as(best.indices)
    table = agreement.new_tensor(poses)
    quality = agreement + 0.5 * best.values
    chosen = quality.argmax(dim=2, keepdim=True)

    def pick(values: Tensor) -> Tensor:
        return values.gather(2, chosen)[..., 0]

    gap = torch.maximum(
        (row - pick(row)[..., None]).abs(), (column - pick(column)[..., None]).abs()
    )
    kept = table[pick(pose)]
    rival = quality.masked_fill(gap <= 2, -1.0).amax(dim=2)
    return _Partners(
        pick(best.indices),
        pick(best.values),
        best.values[..., 0],
        pick(agreement),
        (pick(quality) - rival).clamp(max=1.0),
        kept[..., 0],
        kept[..., 1].log(),
    )


def _describe(
    own: _Partners, other: _Partners, grid0: tuple[int, int], grid1: tuple[int, int]
) -> MatchPrior:
    places = _centers(own.index, grid1)
    numbers = torch.arange(own.index.shape[1], device=own.index.device)
    home = _centers(numbers, grid0)
    back = _centers(other.index.gather(1, own.index), grid0)
    cells0 = torch.tensor([grid0[1], grid0[0]], device=places.device)
    detour = ((back - home) * cells0).norm(dim=2)
    support = _support(own, grid0, grid1)
    columns = [
        4 * own.similarity,
        4 * own.first,
        4 * own.agreement,
        4 * own.margin.clamp(0, 0.5),
        4 * other.agreement.gather(1, own.index),
        2 * support,
        2 * support.gather(1, numbers.expand_as(support)) * own.agreement,
        2 * torch.exp(-((detour / 1.5) ** 2)),
        detour.clamp(max=8) / 4,
        own.turn.cos(),
        own.turn.sin(),
        3 * own.log_scale,
    ]
    channels = torch.stack(columns, dim=2)
    channels = torch.cat([channels, 4 * places - 2, 2 * (places - home)], dim=2)
    return MatchPrior(channels, places)


def _support(own: _Partners, grid0: tuple[int, int], grid1: tuple[int, int]) -> Tensor:
    """Share of a patch's neighbours whose partners lie where its turn and scale put them."""
    batch = own.index.shape[0]
    height, width = grid0
    row = (own.index // grid1[1]).reshape(batch, height, width).float()
    column = (own.index % grid1[1]).reshape(batch, height, width).float()
    angle, scale = (one.reshape(batch, height, width) for one in (own.turn, own.log_scale.exp()))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    around_row, around_column = (F.pad(one, (2,) * 4, value=-1e4) for one in (row, column))
    total = torch.zeros_like(row)
    for down, right in _RING:
        rows = slice(2 + down, 2 + down + height)
        columns = slice(2 + right, 2 + right + width)
        away_row = around_row[:, rows, columns] - (row + sin * right + cos * down)
        away_column = around_column[:, rows, columns] - (column + cos * right - sin * down)
        total += (away_row**2 + away_column**2 < 1.5**2).float()
    return (total / len(_RING)).flatten(1)


def _centers(index: Tensor, grid: tuple[int, int]) -> Tensor:
    """Centres ``[..., 2]`` x, y of cells, as shares of width and height."""
    x = (index % grid[1] + 0.5) / grid[1]
    y = (torch.div(index, grid[1], rounding_mode="floor") + 0.5) / grid[0]
    return torch.stack([x, y], dim=-1)
