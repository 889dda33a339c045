# SPDX-License-Identifier: Apache-2.0
"""InfoNCE at keypoints in plain PyTorch: pair by pair as published, and all pairs at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Run
from benchmarks.registry import Inputs

TEMPERATURE, EPSILON = 0.07, 1e-6


def _unit(vectors: Tensor, dim: int) -> Tensor:
    unit: Tensor = vectors / (vectors.norm(dim=dim, keepdim=True) + EPSILON)
    return unit


def _sampled(maps: Tensor, points: Tensor) -> Tensor:
    """Return [B, C, M] at points [B, M, 2] of [0, 1]."""
    return F.grid_sample(maps, (2 * points - 1)[:, None], align_corners=True)[:, :, 0]


def pair_by_pair(maps: Tensor, *points: Tensor) -> Tensor:
    """Return the loss as published: every pair copies the maps of its negatives."""
    query_images, query_points, key_images, key_points = points
    total = maps.new_zeros(())
    for pair in query_images.unique():
        mine = query_images == pair
        keys, spots = key_images[mine], key_points[mine].transpose(0, 1)
        queries = _sampled(maps[pair : pair + 1], query_points[mine][None])
        positive = _sampled(maps[keys[:1, 0]], spots[:1])
        negatives = _sampled(maps[keys[0, 1:]], spots[1:])
        both = _unit(torch.cat((positive, negatives)), 1)
        logits = (_unit(queries, 1) * both).sum(1).T / TEMPERATURE
        target = torch.zeros(len(logits), dtype=torch.long, device=maps.device)
        total = total + F.cross_entropy(logits, target, reduction="sum")
    return total / len(query_images)


def _table(images: Tensor, points: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Return points [batch, M, 2] image by image, and which of them each point became."""
    order = torch.argsort(images, stable=True)
    many = torch.bincount(images, minlength=batch)
    image = images[order]
    place = torch.arange(len(images), device=images.device) - (many.cumsum(0) - many)[image]
    table = points.new_zeros(batch, int(many.max()), 2).index_put((image, place), points[order])
    slot = torch.empty_like(place)
    slot[order] = place
    return table, slot


def _batched(
    maps: Tensor,
    query_images: Tensor,
    query_table: Tensor,
    query_slot: Tensor,
    key_images: Tensor,
    key_table: Tensor,
    key_slot: Tensor,
) -> Tensor:
    first, second = maps.chunk(2)
    queries = _sampled(first, query_table).transpose(1, 2)[query_images, query_slot]
    keys = _sampled(second, key_table).transpose(1, 2)[key_images, key_slot]
    keys = _unit(keys, 1).reshape(len(queries), -1, maps.shape[1])
    logits = torch.einsum("tc,tnc->tn", _unit(queries, 1), keys) / TEMPERATURE
    target = torch.zeros(len(logits), dtype=torch.long, device=maps.device)
    return F.cross_entropy(logits, target)


def step(function: Callable[..., Tensor], maps: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradient of the maps; timing runs in inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        loss = function(maps, *rest)
        return loss.detach(), torch.autograd.grad(loss, maps)[0]


def leaf(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the maps as a leaf of a graph, and the points."""
    names = ("query_images", "query_points", "key_images", "key_points")
    return (inputs["maps"].clone().requires_grad_(), *(inputs[name].clone() for name in names))


def published(inputs: Inputs) -> Run:
    """Return the step of the published form."""
    with torch.inference_mode(False):
        return partial(step, pair_by_pair, *leaf(inputs))


def prepared(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the arguments of the batched form: queries in the first half of the maps."""
    maps, query_images, query_points, key_images, key_points = leaf(inputs)
    half = len(maps) // 2
    flat = key_images.flatten() - half
    queries = _table(query_images, query_points, half)
    return maps, query_images, *queries, flat, *_table(flat, key_points.reshape(-1, 2), half)


def batched(inputs: Inputs) -> Run:
    """Return the step of all pairs at once, points in tables prepared outside the timing."""
    with torch.inference_mode(False):
        return partial(step, _batched, *prepared(inputs))


def batched_compiled(inputs: Inputs) -> Run:
    """Return the same with forward and backward compiled."""
    from torch._inductor import config

    config.cpp.threads = torch.get_num_threads()
    with torch.inference_mode(False):
        return partial(step, torch.compile(_batched, dynamic=False), *prepared(inputs))


def exact(inputs: Inputs) -> tuple[Any, Any]:
    """Return the loss and the gradient of the batched form in float64."""
    with torch.inference_mode(False):
        maps, *rest = prepared({**inputs, "maps": inputs["maps"].double()})
        rest = [t.double() if t.is_floating_point() else t for t in rest]
        return step(_batched, maps, *rest)
