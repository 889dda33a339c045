# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the room, each a sentence that names the function and the argument."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops.mask_upsample import native


def check_logits(function: str, logits: Tensor, size: tuple[int, int], mode: str) -> None:
    """Rank, element type and size of the maps, and the mode."""
    shape = logits.shape
    if len(shape) != 4:
        raise ShapeError(
            f"{function}: logits must have shape [B, C, h, w], got {list(shape)}.",
            "[B, C, h, w]",
            tuple(shape),
        )
    if not logits.dtype.is_floating_point:
        raise DTypeError(f"{function}: logits must be floating point, got {logits.dtype}.")
    if len(size) != 2 or size[0] < 0 or size[1] < 0:
        raise OptionError(f"{function}: size must be two numbers (H, W) from 0 up, got {size}.")
    if shape[2] == 0 or shape[3] == 0:
        raise ShapeError(f"{function}: logits must have at least one cell, got {list(shape)}.")
    if mode not in native.MODES:
        raise OptionError(f'{function}: mode must be "bilinear" or "bicubic", got {mode!r}.')


def check_class_mask(function: str, class_mask: Tensor | None, logits: Tensor) -> None:
    """A boolean ``[C]`` or ``[B, C]`` on the device of the maps."""
    if class_mask is None:
        return
    batch, channels = logits.shape[:2]
    if tuple(class_mask.shape) not in ((channels,), (batch, channels)):
        raise ShapeError(
            f"{function}: class_mask must have shape [{channels}] or [{batch}, {channels}], "
            f"got {list(class_mask.shape)}.",
            (channels,),
            tuple(class_mask.shape),
        )
    _check_bool(function, "class_mask", class_mask, logits)


def check_region(
    function: str, region: Tensor | None, logits: Tensor, size: tuple[int, int]
) -> Tensor | None:
    """A boolean ``[H, W]`` or ``[B, H, W]``; returned as ``[1 or B, H, W]``."""
    if region is None:
        return None
    batch = logits.shape[0]
    if tuple(region.shape) not in ((*size,), (batch, *size)):
        raise ShapeError(
            f"{function}: region must have shape {list(size)} or {[batch, *size]}, "
            f"got {list(region.shape)}.",
            (*size,),
            tuple(region.shape),
        )
    _check_bool(function, "region", region, logits)
    return region[None] if region.ndim == 2 else region


def _check_bool(function: str, name: str, mask: Tensor, logits: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise DTypeError(f"{function}: {name} must be bool, True = take part, got {mask.dtype}.")
    _check_device(function, name, mask, logits)


def _check_device(function: str, name: str, tensor: Tensor, logits: Tensor) -> None:
    if tensor.device != logits.device:
        raise DTypeError(
            f"{function}: {name} must be on {logits.device} like logits, got {tensor.device}."
        )


def check_threshold(function: str, threshold: float | Tensor, logits: Tensor) -> None:
    """A number, or a tensor ``[C]`` or ``[B, C]`` on the device of the maps."""
    if not isinstance(threshold, Tensor):
        return
    batch, channels = logits.shape[:2]
    if tuple(threshold.shape) not in ((channels,), (batch, channels)):
        raise ShapeError(
            f"{function}: threshold must be a number or have shape [{channels}] or "
            f"[{batch}, {channels}], got {list(threshold.shape)}.",
            (channels,),
            tuple(threshold.shape),
        )
    _check_device(function, "threshold", threshold, logits)


def check_temperature(function: str, temperature: float) -> float:
    """A positive number; returns its reciprocal, the factor of the values."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise OptionError(f"{function}: temperature must be positive, got {temperature}.")
    return 1.0 / temperature


_LIMITS = {dtype: (torch.iinfo(dtype).min, torch.iinfo(dtype).max) for dtype in native.LABEL_DTYPES}


def check_labels(
    function: str, label_dtype: torch.dtype, ignore_index: int | None, channels: int
) -> int:
    """The ignore value, after checking that it and every class fit the type."""
    limits = _LIMITS.get(label_dtype)
    if limits is None:
        raise DTypeError(
            f"{function}: label_dtype must be uint8, int16, int32 or int64, got {label_dtype}."
        )
    lowest, highest = limits
    if ignore_index is None:
        ignore_index = -1 if lowest < 0 else highest
    for name, value in (("class", max(channels - 1, 0)), ("ignore_index", ignore_index)):
        if not lowest <= value <= highest:
            raise OptionError(
                f"{function}: label_dtype must hold {name} {value}, got {label_dtype}."
            )
    return ignore_index


def check_target(function: str, target: Tensor, logits: Tensor) -> None:
    """An integer label map ``[B, H, W]`` on the device of the maps."""
    if target.ndim != 3 or target.shape[0] != logits.shape[0]:
        raise ShapeError(
            f"{function}: target must have shape [{logits.shape[0]}, H, W], "
            f"got {list(target.shape)}.",
            (logits.shape[0], "H", "W"),
            tuple(target.shape),
        )
    if target.dtype not in native.LABEL_DTYPES:
        raise DTypeError(
            f"{function}: target must be uint8, int16, int32 or int64, got {target.dtype}."
        )
    _check_device(function, "target", target, logits)
