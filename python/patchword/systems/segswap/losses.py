# SPDX-License-Identifier: Apache-2.0
"""SegSwap's losses, as functions of tensors.

Targets are ``[P, 3, h, w]``: x and y in the other picture as shares of its width and height, and
the soft mask. Outputs of the network have the same layout.

Source: Shen et al., arXiv:2110.15904, and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.errors import OptionError

_EDGE = 1e-7
# A cell is certain when its mask is this near to the largest one of its picture.
_CERTAIN = 1e-3


def in_batch_negatives(positives: int, negatives: int) -> tuple[list[int], list[int]]:
    """Which pictures of different pairs meet as pairs that share nothing.

    First pictures 0, 1, 2, ... meet second pictures shifted by one, then by two, and so on.

    Args:
        positives: Pairs in the batch.
        negatives: How many are wanted; at most ``positives * (positives - 1)`` exist.

    Returns:
        Numbers of the first and of the second pictures.

    Raises:
        OptionError: More are wanted than exist.
    """
    if not 0 <= negatives <= positives * (positives - 1):
        raise OptionError(
            f"in_batch_negatives: {positives} pairs give at most {positives * (positives - 1)} "
            f"negatives, got {negatives}."
        )
    first = [number % positives for number in range(negatives)]
    second = [(n % positives + n // positives + 1) % positives for n in range(negatives)]
    return first, second


def transport(mask: Tensor, output: Tensor) -> Tensor:
    """The other picture's mask, read where this picture's coordinates point.

    Args:
        mask: ``[P, h1, w1]`` of the other picture.
        output: ``[P, 3, h, w]`` of this one.

    Returns:
        ``[P, h, w]``, bilinear, zero outside; differentiable in both.
    """
    places = output[:, :2].permute(0, 2, 3, 1) * 2.0 - 1.0
    read = F.grid_sample(mask[:, None], places, mode="bilinear", align_corners=False)
    return read[:, 0].clamp(_EDGE, 1.0 - _EDGE)


def mask_loss(predicted: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Binary cross-entropy, one mean over every cell of every map, with soft targets."""
    given = torch.cat([one.flatten() for one in predicted]).float()
    # Half precision has no such logarithms, and autocast refuses the function.
    with torch.autocast(given.device.type, enabled=False):
        return F.binary_cross_entropy(given, torch.cat([one.flatten() for one in wanted]).float())


def certain_cells(masks: Tensor, *, compat: bool = False) -> Tensor:
    """Cells ``[M, h, w]`` whose coordinates are learned from: those surely inside the object.

    Args:
        masks: ``[M, h, w]`` soft masks.
        compat: Exact equality with the map's largest value, as published (trap T13): one single
            cell for thin objects, and every cell of a map without object.
    """
    largest = masks.amax(dim=(1, 2), keepdim=True)
    if compat:
        return masks == largest
    return (masks >= largest - _CERTAIN) & (largest > _CERTAIN)


def correspondence_loss(
    outputs: Tensor, targets: Tensor, *, compat: bool = False, beyond: Tensor | None = None
) -> Tensor:
    """Mean absolute error of the coordinates of certain cells.

    Args:
        outputs: ``[M, 3, h, w]``, both pictures of all positive pairs.
        targets: The same shape.
        compat: One mean over the whole batch, as published, where large objects rule (trap T13);
            otherwise the mean of each map's own mean.
        beyond: ``[M, h, w]`` weights of cells instead of :func:`certain_cells`.
    """
    error = (outputs[:, :2] - targets[:, :2]).abs().sum(dim=1)
    cells = certain_cells(targets[:, 2], compat=compat).float() if beyond is None else beyond
    if compat:
        return (cells * error).sum() / (2.0 * cells.sum()).clamp(min=1.0)
    counts = cells.sum(dim=(1, 2))
    means = (cells * error).sum(dim=(1, 2)) / (2.0 * counts).clamp(min=1e-6)
    return means.sum() / (counts > 0).sum().clamp(min=1)


@dataclass(frozen=True)
class Accuracies:
    """Published measures of a batch: shares of cells on the right side of one half."""

    positive: Tensor
    negative: Tensor


@torch.no_grad()
def accuracies(masks: Tensor, targets: Tensor, negatives: Tensor | None) -> Accuracies:
    """Count cells.

    Args:
        masks: ``[M, h, w]`` of the positive pairs.
        targets: The same shape, soft.
        negatives: ``[M', h, w]`` masks of pairs that share nothing, or None.
    """
    inside = certain_cells(targets)
    right = (masks > 0.5)[inside].float().sum()
    wrong = (masks < 0.5)[~inside].float().sum()
    total = (~inside).sum()
    if negatives is not None:
        wrong = wrong + (negatives < 0.5).sum()
        total = total + negatives.numel()
    return Accuracies(right / inside.sum().clamp(min=1), wrong / total.clamp(min=1))
