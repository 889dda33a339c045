# SPDX-License-Identifier: Apache-2.0
"""Heat maps of texts whose top units are folded into one vector."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from patchword import _library
from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.folded_heatmap import native
from patchword.ops.folded_heatmap.reference import fold_units_reference, folded_heatmap_reference

__all__ = ["FoldedHeatmap", "fold_units", "folded_heatmap", "refusals"]


class FoldedHeatmap(NamedTuple):
    """Heat maps, the cells of their maxima, and the cells above a threshold.

    Attributes:
        heat: ``[B, T, h, w]``, float32 (float64 from float64 maps).
        location: int64 ``[B, T, 2]``: column and row of the largest value, (-1, -1) where every
            value is NaN.
        mask: bool ``[B, T, h, w]``, or None without a threshold.
    """

    heat: Tensor
    location: Tensor
    mask: Tensor | None


def _refuse(maps: Tensor, text: Tensor, projection: Tensor | None = None) -> str | None:
    if maps.ndim == 2:
        return native.refuse_fold(maps, text)
    return native.refuse_heatmap(maps, text, projection)


def _always(maps: Tensor, text: Tensor, projection: Tensor | None = None) -> None:
    return None


# fold_units asks with (text, projection), folded_heatmap with (maps, text, projection).
refusals: dict[Backend, _backends.Refusal] = {"native": _refuse, "reference": _always}


def _check_tensor(function: str, name: str, tensor: Tensor, like: Tensor) -> None:
    if not tensor.is_floating_point():
        raise DTypeError(f"{function}: {name} must be floating point, got {tensor.dtype}.")
    if tensor.device != like.device:
        raise DTypeError(f"{function}: {name} must be on {like.device}, got {tensor.device}.")
    if _library.wants_gradient(tensor):
        raise OptionError(
            f"{function}: {name} must not require a gradient, since there is none. "
            f"Pass {name}.detach() or use torch.no_grad()."
        )


def _check_fold(function: str, text: Tensor, projection: Tensor, top_units: int) -> None:
    if projection.ndim != 2 or projection.shape[0] != text.shape[-1]:
        raise ShapeError(
            f"{function}: projection must have shape [{text.shape[-1]}, D], "
            f"got {list(projection.shape)}.",
            (text.shape[-1], "D"),
            tuple(projection.shape),
        )
    _check_tensor(function, "projection", projection, text)
    if not 1 <= top_units <= text.shape[-1]:
        raise OptionError(
            f"{function}: top_units must be from 1 to the {text.shape[-1]} units of text, "
            f"got {top_units}."
        )


def fold_units(
    text: Tensor, projection: Tensor, top_units: int = 180, *, backend: Backend | None = None
) -> Tensor:
    """Fold the top units of texts into vectors that a map can be multiplied with.

    ``folded = sum over the top_units largest entries t_u of |t_u| projection[u]``.

    Args:
        text: Embeddings ``[T, E]``, float16/bfloat16/float32/float64.
        projection: ``[E, D]``: the matrix that takes ``D`` map channels to ``E`` units.
        top_units: How many units take part, from 1 to ``E``: the largest by value, not by
            magnitude; of equal ones those with the lowest index.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`.

    Returns:
        ``[T, D]``, float32 (float64 where an input is float64).

    Raises:
        ShapeError: Rank or sizes do not fit.
        DTypeError: An element type or device does not fit.
        OptionError: ``top_units`` is out of range, or a gradient is asked for.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Not differentiable. Deterministic. Where fewer than ``top_units`` entries are positive,
        negative ones enter by their magnitude, as in the published code.

    Example:
        >>> import torch
        >>> text = torch.tensor([[0.1, -0.9, 0.3, 0.2]])
        >>> rows = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 2]]
        >>> fold_units(text, torch.tensor(rows), 2)
        tensor([[0.0000, 0.3000, 0.3000, 0.4000]])
    """
    name = "fold_units"
    if text.ndim != 2:
        raise ShapeError(
            f"{name}: text must have shape [T, E], got {list(text.shape)}.",
            "[T, E]",
            tuple(text.shape),
        )
    _check_tensor(name, "text", text, text)
    _check_fold(name, text, projection, top_units)
    chosen = _backends.choose(name, refusals, backend, text, projection)
    if chosen == "native":
        return native.fold_units_native(text, projection, top_units)
    return _fold_plainly(text, projection, top_units)


def _fold_plainly(text: Tensor, projection: Tensor, top_units: int) -> Tensor:
    wide = torch.float64 in (text.dtype, projection.dtype)
    text, projection = (t.double() if wide else t.float() for t in (text, projection))
    return fold_units_reference(text, projection, top_units)


def folded_heatmap(
    maps: Tensor,
    text: Tensor,
    projection: Tensor | None = None,
    top_units: int = 180,
    *,
    threshold: float | None = None,
    above: Literal["minimum", "zero"] = "minimum",
    ties: Literal["row", "column"] = "row",
    backend: Backend | None = None,
) -> FoldedHeatmap:
    """Where texts are in images: ``heat[b, t, p] = folded[t] . maps[b, :, p]``.

    Args:
        maps: Activations ``[B, D, h, w]`` before pooling, any strides;
            float16/bfloat16/float32/float64.
        text: Embeddings ``[T, E]`` for every image, or ``[B, T, E]``. Without ``projection``:
            folded vectors ``[T, D]`` or ``[B, T, D]`` of :func:`fold_units`.
        projection: ``[E, D]``, as for :func:`fold_units`; its bias is not used.
        top_units: As for :func:`fold_units`: 180 for heat maps and pointing, 10 for masks in the
            published evaluation. Unused without ``projection``.
        threshold: Also return the mask of the cells above this share of the way from the smallest
            to the largest value of their map.
        above: ``"minimum"``: ``heat > min + threshold (max - min)``; ``"zero"``:
            ``heat > threshold (max - min)``, as the published code does.
        ties: Of equal largest values the one in the first row, then column, or in the first
            column, then row, as the published pointing game does.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`.

    Returns:
        Heat maps, the places of their maxima, and the mask.

    Raises:
        ShapeError: Rank or sizes do not fit, or the maps have no cell.
        DTypeError: An element type or device does not fit.
        OptionError: An option is out of its range, or a gradient is asked for.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Not differentiable. Deterministic. NaN is no maximum and in no mask. Source: Engilberge
        et al., "Finding beans in burgers", CVPR 2018.

    Example:
        >>> import torch
        >>> maps = torch.arange(16.0).reshape(1, 4, 2, 2)
        >>> result = folded_heatmap(maps, torch.tensor([[0, 0.3, 0.3, 0.4]]), threshold=0.5)
        >>> result.heat[0, 0]
        tensor([[ 8.4000,  9.4000],
                [10.4000, 11.4000]])
        >>> result.location, result.mask[0, 0]
        (tensor([[[1, 1]]]), tensor([[False, False],
                [ True,  True]]))
    """
    name = "folded_heatmap"
    if maps.ndim != 4:
        raise ShapeError(
            f"{name}: maps must have shape [B, D, h, w], got {list(maps.shape)}.",
            "[B, D, h, w]",
            tuple(maps.shape),
        )
    batch, channels, height, width = maps.shape
    if height * width == 0:
        raise ShapeError(f"{name}: maps must have at least one cell, got {list(maps.shape)}.")
    _check_tensor(name, "maps", maps, maps)
    _check_tensor(name, "text", text, maps)
    if text.ndim not in (2, 3) or (text.ndim == 3 and text.shape[0] != batch):
        raise ShapeError(
            f"{name}: text must have shape [T, E] or [{batch}, T, E], got {list(text.shape)}.",
            (batch, "T", "E"),
            tuple(text.shape),
        )
    if projection is not None:
        _check_fold(name, text, projection, top_units)
    wide = text if projection is None else projection
    if wide.shape[-1] != channels:
        raise ShapeError(
            f"{name}: {'text' if projection is None else 'projection'} must have the {channels} "
            f"channels of maps in its last dimension, got {wide.shape[-1]}.",
            channels,
            wide.shape[-1],
        )
    if threshold is not None and not math.isfinite(threshold):
        raise OptionError(f"{name}: threshold must be finite, got {threshold}.")
    if above not in ("minimum", "zero"):
        raise OptionError(f'{name}: above must be "minimum" or "zero", got {above!r}.')
    if ties not in ("row", "column"):
        raise OptionError(f'{name}: ties must be "row" or "column", got {ties!r}.')
    chosen = _backends.choose(name, refusals, backend, maps, text, projection)
    folded = text
    if projection is not None:
        fold = native.fold_units_native if chosen == "native" else _fold_plainly
        folded = fold(text.flatten(0, -2), projection, top_units)
        folded = folded.reshape(*text.shape[:-1], channels)
    if folded.ndim == 2:
        folded = folded[None]
    options = (threshold, above == "minimum", ties == "column")
    if chosen == "native":
        heat, location, mask = native.folded_heatmap_native(maps, folded, *options)
    else:
        compute = maps if maps.dtype == torch.float64 else maps.float()
        heat, location, mask = folded_heatmap_reference(compute, folded, *options)
    return FoldedHeatmap(heat, location, None if threshold is None else mask)
