# SPDX-License-Identifier: Apache-2.0
"""Plain PyTorch, run eagerly or through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Run
from benchmarks.registry import Inputs

Prepare = Callable[[Inputs], tuple[Callable[..., Any], tuple[Any, ...]]]
COMPILE_MODES = {"default": None, "max-autotune": "max-autotune"}


def _bake_threads() -> None:
    """Tell the compiler the thread count; it writes it into the code and its cache's key."""
    from torch._inductor import config

    config.cpp.threads = torch.get_num_threads()


def eager(prepare: Prepare, inputs: Inputs) -> Run:
    """Return the call of an eager peer."""
    function, arguments = prepare(inputs)
    return partial(function, *arguments)


def compiled(prepare: Prepare, inputs: Inputs, mode: str = "default") -> Run:
    """Return the call of a compiled peer; its first call compiles for these exact shapes."""
    function, arguments = prepare(inputs)
    _bake_threads()
    fast = torch.compile(function, dynamic=False, mode=COMPILE_MODES[mode])
    return partial(fast, *arguments)


def _mutual(descriptors0: Tensor, descriptors1: Tensor) -> Tensor:
    scores = descriptors0 @ descriptors1.T
    forward, backward = scores.argmax(1), scores.argmax(0)
    kept = backward[forward] == torch.arange(len(forward), device=forward.device)
    return torch.where(kept, forward, -1)


def mutual(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Mutual nearest neighbours from the whole score matrix."""
    return _mutual, (inputs["descriptors0"], inputs["descriptors1"])


def _best_of_block(block: Tensor, descriptors1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scores = block @ descriptors1.T
    value, backward = scores.max(0)
    return scores.argmax(1), value, backward


def _mutual_blocks(
    step: Callable[..., Any], rows: int, descriptors0: Tensor, descriptors1: Tensor
) -> Tensor:
    count = len(descriptors1)
    best = torch.full((count,), -torch.inf, device=descriptors1.device)
    backward = torch.full((count,), -1, device=descriptors1.device)
    parts = []
    for start in range(0, len(descriptors0), rows):
        forward, value, index = step(descriptors0[start : start + rows], descriptors1)
        backward = torch.where(value > best, index + start, backward)
        best = torch.maximum(best, value)
        parts.append(forward)
    chosen = torch.cat(parts)
    kept = backward[chosen] == torch.arange(len(chosen), device=chosen.device)
    return torch.where(kept, chosen, -1)


def mutual_blocks(inputs: Inputs) -> Run:
    """Mutual nearest neighbours in blocks of 256 rows, whose scores stay in the cache."""
    sets = inputs["descriptors0"], inputs["descriptors1"]
    return partial(_mutual_blocks, _best_of_block, 256, *sets)


def mutual_blocks_compiled(inputs: Inputs) -> Run:
    """The same with the step over one block compiled."""
    _bake_threads()
    step = torch.compile(_best_of_block, dynamic=False)
    sets = inputs["descriptors0"], inputs["descriptors1"]
    return partial(_mutual_blocks, step, 256, *sets)


def _softmax_map(patches: Tensor, queries_t: Tensor, scale: float) -> Tensor:
    return torch.softmax(scale * (F.normalize(patches, dim=-1, eps=1e-12) @ queries_t), dim=-1)


def softmax_map(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Similarity maps in the inputs' own type, queries normalised and transposed beforehand."""
    queries = F.normalize(inputs["queries"], dim=-1).T.contiguous()
    return _softmax_map, (inputs["patches"], queries, inputs["scale"])


def _softmax_map_upcast(patches: Tensor, queries_t: Tensor, scale: float) -> Tensor:
    return _softmax_map(patches.float(), queries_t, scale).to(patches.dtype)


def softmax_map_upcast(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Similarity maps of half inputs computed in float32, which many CPUs do faster."""
    queries = F.normalize(inputs["queries"].float(), dim=-1).T.contiguous()
    return _softmax_map_upcast, (inputs["patches"], queries, inputs["scale"])


def _labels(logits: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(logits, size=size, mode=mode, align_corners=False).argmax(1)


def labels(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Upsample and take the argmax, from contiguous NCHW logits."""
    return _labels, (inputs["logits"], inputs["size"], inputs["mode"])


def labels_channels_last(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Upsample and take the argmax, from channels-last logits."""
    logits = inputs["logits"].to(memory_format=torch.channels_last)
    return _labels, (logits, inputs["size"], inputs["mode"])


def _masks(logits: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(logits, size=size, mode=mode, align_corners=False) > 0.5


def masks(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Upsample and threshold at 0.5."""
    return _masks, (inputs["logits"], inputs["size"], inputs["mode"])


def _sample(features: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(features, grid, mode="bilinear", align_corners=False)[:, :, 0].mT


def _grid(inputs: Inputs) -> Tensor:
    """Return grid_sample's normalised coordinates [1,1,M,2], prepared outside the timing."""
    height, width = inputs["features"].shape[2:]
    extent = inputs["points"].new_tensor([width, height]) * inputs["stride"]
    grid: Tensor = (2 * inputs["points"] / extent - 1)[:, None]
    return grid


def grid_sample(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Sample with grid_sample in the layout the row gives."""
    return _sample, (inputs["features"], _grid(inputs))


def _plain_add(value: Tensor) -> Tensor:
    return torch.add(value, value)


def plain_add(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """One ATen addition of four numbers."""
    return _plain_add, (torch.ones(4, device=inputs["device"]),)
