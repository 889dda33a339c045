# SPDX-License-Identifier: Apache-2.0
"""Top and bottom means, joint label counts and folded heat maps as written in PyTorch and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Run
from benchmarks.registry import Inputs

Prepared = tuple[Callable[..., Any], tuple[Any, ...]]


def _topk(maps: Tensor, k_max: int, k_min: int) -> Tensor:
    cells = maps.flatten(2)
    pooled = cells.topk(k_max, dim=-1, sorted=False).values.mean(-1)
    if k_min:
        pooled = pooled + cells.topk(k_min, dim=-1, largest=False, sorted=False).values.mean(-1)
    return pooled


def _sort(maps: Tensor, k_max: int, k_min: int) -> Tensor:
    ordered = maps.flatten(2).sort(dim=-1, descending=True).values
    pooled = ordered[..., :k_max].mean(-1)
    return pooled + ordered[..., -k_min:].mean(-1) if k_min else pooled


def trainable(maps: Tensor) -> Tensor:
    """Return a copy that gradients can reach although rows are measured in inference mode."""
    with torch.inference_mode(False):
        return maps.clone().requires_grad_()


def gradient_of(pool: Callable[..., Tensor], maps: Tensor, *options: Any) -> Tensor:
    """Return the gradient of the sum of the pooled maps."""
    with torch.inference_mode(False), torch.enable_grad():
        return torch.autograd.grad(pool(maps, *options).sum(), maps)[0]


def _pooling_arguments(inputs: Inputs) -> tuple[Any, ...]:
    return inputs["maps"], inputs["k_max"], inputs["k_min"]


def topk(inputs: Inputs) -> Prepared:
    """Two calls of topk, unsorted."""
    return _topk, _pooling_arguments(inputs)


def sort(inputs: Inputs) -> Prepared:
    """One sort, two slices: the published form."""
    return _sort, _pooling_arguments(inputs)


def _amax(maps: Tensor) -> Tensor:
    return maps.amax((2, 3))


def amax(inputs: Inputs) -> Prepared:
    """The maximum of every map."""
    return _amax, (inputs["maps"],)


def topk_gradient(inputs: Inputs) -> Prepared:
    """Two calls of topk and the gradient of the sum of the result."""
    maps, *options = _pooling_arguments(inputs)
    return partial(gradient_of, _topk), (trainable(maps), *options)


def sort_gradient(inputs: Inputs) -> Prepared:
    """One sort and the gradient of the sum of the result."""
    maps, *options = _pooling_arguments(inputs)
    return partial(gradient_of, _sort), (trainable(maps), *options)


def _bincount(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    kept = target < classes
    bins = target[kept].long() * classes + prediction[kept]
    return torch.bincount(bins, minlength=classes**2).view(classes, classes)


def bincount(inputs: Inputs) -> Prepared:
    """The usual form: drop ignored pixels, then torch.bincount of the pairs."""
    return _bincount, (inputs["prediction"], inputs["target"], inputs["classes"])


def _numpy_bincount(prediction: Any, target: Any, classes: int) -> Any:
    kept = target < classes
    bins = target[kept].astype(np.int64) * classes + prediction[kept]
    return np.bincount(bins, minlength=classes**2).reshape(classes, classes)


def numpy_bincount(inputs: Inputs) -> Run:
    """The same with numpy.bincount."""
    arrays = inputs["prediction"].numpy(), inputs["target"].numpy()
    return partial(_numpy_bincount, *arrays, inputs["classes"])


def _heat(maps: Tensor, folded: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    heat = folded @ maps.flatten(2)
    low, high = heat.aminmax(dim=-1, keepdim=True)
    mask = heat > low + threshold * (high - low)
    return heat.unflatten(-1, maps.shape[2:]), heat.argmax(-1), mask.unflatten(-1, maps.shape[2:])


def _folded(
    maps: Tensor, text: Tensor, projection: Tensor, top: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    best = text.topk(top, dim=-1, sorted=False)
    weights = torch.zeros_like(text).scatter_(-1, best.indices, best.values.abs())
    return _heat(maps, weights @ projection, threshold)


def _unfolded(
    maps: Tensor, text: Tensor, projection: Tensor, top: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    best = text.topk(top, dim=-1, sorted=False)
    weights = torch.zeros_like(text).scatter_(-1, best.indices, best.values.abs())
    units = projection @ maps.flatten(2)
    return _heat(units.unflatten(-1, maps.shape[2:]), weights, threshold)


def _heat_arguments(inputs: Inputs) -> tuple[Any, ...]:
    return tuple(inputs[name] for name in ("maps", "text", "projection", "top", "threshold"))


def folded(inputs: Inputs) -> Prepared:
    """Fold by a masked product, then multiply, argmax and compare."""
    return _folded, _heat_arguments(inputs)


def unfolded(inputs: Inputs) -> Prepared:
    """The published order: the whole projection of every cell, then the weighted sum."""
    return _unfolded, _heat_arguments(inputs)
