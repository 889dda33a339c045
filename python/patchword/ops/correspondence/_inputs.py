# SPDX-License-Identifier: Apache-2.0
"""The arguments that all matchers share: checked once, brought to ``[P, N, D]``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops.correspondence.native import METRICS


@dataclass(frozen=True)
class Side:
    """Best candidate of every row of one set."""

    indices: Tensor
    """``[P, N]`` int64, -1 for none."""

    scores: Tensor
    """``[P, N]``."""

    second: Tensor
    """``[P, N]`` second-best score, -inf for none; empty when nobody asked."""


@dataclass(frozen=True)
class Pairs:
    """Checked inputs of a matcher with a batch dimension."""

    descriptors: tuple[Tensor, Tensor]
    metric: str
    lengths: tuple[Tensor | None, Tensor | None]
    valid: tuple[Tensor | None, Tensor | None]
    batched: bool
    scale: float = 1.0
    terms: tuple[Tensor | None, Tensor | None] = (None, None)
    """Added to the scores of every row of set 0 and of set 1."""

    def strip(self, tensor: Tensor) -> Tensor:
        """Drop the batch dimension again where the caller gave none."""
        return tensor if self.batched else tensor[0]

    def with_terms(self, scale: float, term0: Tensor | None, term1: Tensor | None) -> Pairs:
        """Return the same pairs with scores ``scale * s + term0 + term1``."""
        return replace(self, scale=scale, terms=(term0, term1))


def _check_option(
    name: str,
    argument: str,
    value: Tensor,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    like: Tensor,
) -> None:
    if tuple(value.shape) != shape:
        raise ShapeError(
            f"{name}: {argument} must have shape {list(shape)}, got {list(value.shape)}.",
            shape,
            tuple(value.shape),
        )
    if value.dtype != dtype or value.device != like.device:
        raise DTypeError(
            f"{name}: {argument} must be {dtype} on {like.device}, "
            f"got {value.dtype} on {value.device}."
        )


def check(
    name: str,
    descriptors: tuple[Tensor, Tensor],
    metric: str,
    lengths: tuple[Tensor | None, Tensor | None],
    valid: tuple[Tensor | None, Tensor | None],
) -> None:
    """Check shapes, element types, devices and the metric; never looks at values."""
    if metric not in METRICS:
        raise OptionError(f'{name}: metric must be "cosine", "dot" or "l2", got {metric!r}.')
    descriptors0, descriptors1 = descriptors
    shape0, shape1 = descriptors0.shape, descriptors1.shape
    rank = len(shape0)
    if rank not in (2, 3):
        raise ShapeError(
            f"{name}: descriptors0 must have shape [N, D] or [P, N, D], got {list(shape0)}.",
            "[N, D] or [P, N, D]",
            tuple(shape0),
        )
    if len(shape1) != rank or shape1[-1] != shape0[-1] or (rank == 3 and shape1[0] != shape0[0]):
        wanted = [*shape0[:-2], "M", shape0[-1]]
        raise ShapeError(
            f"{name}: descriptors1 must have shape {wanted} beside descriptors0 "
            f"{list(shape0)}, got {list(shape1)}.",
            tuple(wanted),
            tuple(shape1),
        )
    dtype = descriptors0.dtype
    if not dtype.is_floating_point or dtype != descriptors1.dtype:
        raise DTypeError(
            f"{name}: descriptors must share one floating-point dtype, "
            f"got {dtype} and {descriptors1.dtype}."
        )
    if descriptors0.device != descriptors1.device:
        raise DTypeError(
            f"{name}: descriptors must be on one device, "
            f"got {descriptors0.device} and {descriptors1.device}."
        )
    for i, side in enumerate(descriptors):
        if (length := lengths[i]) is not None:
            batch = side.shape[0] if rank == 3 else 1
            _check_option(name, f"lengths{i}", length, torch.int64, (batch,), side)
        if (mask := valid[i]) is not None:
            shape = tuple(side.shape[:-1])
            _check_option(name, f"valid{i}", mask, torch.bool, shape, side)


def with_batch(
    descriptors: tuple[Tensor, Tensor],
    metric: str,
    lengths: tuple[Tensor | None, Tensor | None],
    valid: tuple[Tensor | None, Tensor | None],
) -> Pairs:
    """Checked inputs with a batch dimension, which is added where there is none."""
    if descriptors[0].ndim == 3:
        return Pairs(descriptors, metric, lengths, valid, True)
    a, b = descriptors
    masks = [None if mask is None else mask[None] for mask in valid]
    return Pairs((a[None], b[None]), metric, lengths, (masks[0], masks[1]), False)
