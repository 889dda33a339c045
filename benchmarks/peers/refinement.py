# SPDX-License-Identifier: Apache-2.0
"""Mask refinement as it is written in PyTorch: every neighbour stacked, or one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.registry import Inputs

RING = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def _shifted(maps: Tensor, dilations: tuple[int, ...]) -> list[Tensor]:
    height, width = maps.shape[-2:]
    views = []
    for d in dilations:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        for dy, dx in RING:
            y, x = d + dy * d, d + dx * d
            views.append(padded[..., y : y + height, x : x + width])
    return views


def _weights(image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    around = torch.stack(_shifted(image, dilations), 2)
    centre = image[:, :, None]
    values = torch.cat((around, centre.expand(-1, -1, len(dilations), -1, -1)), 2)
    sigma = values.std(2, keepdim=True)
    return torch.softmax(-((around - centre).abs() / (1e-8 + 0.1 * sigma)).mean(1), 1)


def _stacked(image: Tensor, masks: Tensor, dilations: tuple[int, ...], iterations: int) -> Tensor:
    weights = _weights(image, dilations)[:, None]
    for _ in range(iterations):
        masks = (torch.stack(_shifted(masks, dilations), 2) * weights).sum(2)
    return masks


def _one_at_a_time(
    image: Tensor, masks: Tensor, dilations: tuple[int, ...], iterations: int
) -> Tensor:
    weights = _weights(image, dilations).unbind(1)
    for _ in range(iterations):
        total = torch.zeros_like(masks)
        for view, weight in zip(_shifted(masks, dilations), weights, strict=True):
            total.addcmul_(view, weight[:, None])
        masks = total
    return masks


def _arguments(inputs: Inputs) -> tuple[Any, ...]:
    return inputs["image"], inputs["masks"], inputs["dilations"], inputs["iterations"]


def stacked(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """All neighbours of a step in one tensor, then the weighted sum, as in the published code."""
    return _stacked, _arguments(inputs)


def one_at_a_time(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Neighbours added one after the other, without the large tensor."""
    return _one_at_a_time, _arguments(inputs)
