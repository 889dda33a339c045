# SPDX-License-Identifier: Apache-2.0
"""Spatial pooling by the mean of the largest and the mean of the smallest values."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.weldon_pool import native
from patchword.ops.weldon_pool.reference import Plan, weldon_pool_reference

__all__ = ["refusals", "weldon_pool"]

_HALVE = ("never", "with_minimum", "always")
_TOO_LARGE = ("clamp", "legacy")


def _always(maps: Tensor) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


def _side(name: str, k: float, cells: int, too_large: str) -> tuple[int, int]:
    """How many values one side adds, and the number that it divides by."""
    if isinstance(k, float):
        if not 0 < k < 1:
            raise OptionError(
                f"weldon_pool: {name} must be a count, or a fraction between 0 and 1, got {k}."
            )
        count = max(math.floor(k * cells), 1)
        return count, count
    if k <= cells:
        return k, k
    if too_large == "clamp":
        return cells, cells
    if name == "k_max":
        return cells, k
    # A slice that starts before the first value starts counting from the end again.
    return (k - cells if k < 2 * cells else cells), k


def _plan(cells: int, k_max: float, k_min: float, alpha: float, halve: str, too_large: str) -> Plan:
    top_count, top_divisor = _side("k_max", k_max, cells, too_large)
    bottom_count, bottom_divisor = 0, 1
    if k_min != 0 and alpha != 0:
        bottom_count, bottom_divisor = _side("k_min", k_min, cells, too_large)
    half = halve == "always" or (halve == "with_minimum" and bottom_count > 0)
    factor = 2.0 if half else 1.0
    weight = alpha if bottom_count else 1.0
    return top_count, bottom_count, factor * top_divisor, factor * bottom_divisor / weight


def weldon_pool(
    maps: Tensor,
    k_max: int | float,
    k_min: int | float,
    *,
    alpha: float = 1.0,
    halve: Literal["never", "with_minimum", "always"] = "never",
    too_large: Literal["clamp", "legacy"] = "clamp",
    backend: Backend | None = None,
) -> Tensor:
    """Mean of the ``k_max`` largest plus ``alpha`` times the mean of the ``k_min`` smallest values.

    Args:
        maps: ``[B, C, h, w]``, any strides; float16/bfloat16/float32/float64.
        k_max: A count from 1 up, or a fraction of the cells between 0 and 1, rounded down, at
            least one cell.
        k_min: As ``k_max``, or 0 for no smallest values.
        alpha: Weight of the smallest; 0 leaves them out.
        halve: Divide by 2 never (DSVE-loc), where there are smallest values (the public WELDON
            and WILDCAT modules), or always.
        too_large: A count above the number of cells becomes that number (``"clamp"``), or is
            taken as the published code slices (``"legacy"``): it stays the divisor, the largest
            are all cells, the smallest are all cells too, or ``k_min - h w`` of them while
            ``k_min < 2 h w``.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`.

    Returns:
        ``[B, C]`` in the dtype of ``maps``, added up in float32.

    Raises:
        ShapeError: ``maps`` has another rank, or no cell.
        DTypeError: ``maps`` is not floating point.
        OptionError: An option is out of its range.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Differentiable once: every chosen cell gets its share, cells in both sets get both; of
        equal values the ones with the lowest index, row by row, are chosen. NaN counts as smaller
        than everything: it is among the smallest first, and makes that mean NaN. Deterministic.
        Sources: Durand, Thome and Cord, "WELDON", CVPR 2016, and "WILDCAT", CVPR 2017.

    Example:
        >>> import torch
        >>> weldon_pool(torch.arange(1.0, 10.0).reshape(1, 1, 3, 3), 2, 2)
        tensor([[10.]])
    """
    shape = maps.shape
    if len(shape) != 4:
        raise ShapeError(
            f"weldon_pool: maps must have shape [B, C, h, w], got {list(shape)}.",
            "[B, C, h, w]",
            tuple(shape),
        )
    if not maps.is_floating_point():
        raise DTypeError(f"weldon_pool: maps must be floating point, got {maps.dtype}.")
    cells = shape[2] * shape[3]
    if cells == 0:
        raise ShapeError(f"weldon_pool: maps must have at least one cell, got {list(shape)}.")
    if k_max <= 0:
        raise OptionError(f"weldon_pool: k_max must be positive, got {k_max}.")
    if k_min < 0:
        raise OptionError(f"weldon_pool: k_min must be at least 0, got {k_min}.")
    if not math.isfinite(alpha):
        raise OptionError(f"weldon_pool: alpha must be finite, got {alpha}.")
    if halve not in _HALVE:
        raise OptionError(f"weldon_pool: halve must be one of {', '.join(_HALVE)}, got {halve!r}.")
    if too_large not in _TOO_LARGE:
        raise OptionError(
            f"weldon_pool: too_large must be one of {', '.join(_TOO_LARGE)}, got {too_large!r}."
        )
    plan = _plan(cells, k_max, k_min, alpha, halve, too_large)
    chosen = _backends.choose("weldon_pool", refusals, backend, maps)
    run = native.weldon_pool_native if chosen == "native" else weldon_pool_reference
    return run(maps, plan)
