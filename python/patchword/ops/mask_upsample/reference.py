# SPDX-License-Identifier: Apache-2.0
"""Upsampled maps and what is made of them, in plain torch: the definition behind the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# The kinds of output that have the shape of the upsampled maps.
MAP_OUTPUTS = ("logits", "sigmoid", "softmax", "minmax", "binary")

# A map whose values spread less than this, relative to the largest, is constant up to rounding.
CONSTANT_SPAN = 4e-6


class Reading(NamedTuple):
    """How maps are read at another size, checked: what every output of the room depends on."""

    size: tuple[int, int]
    """``(H, W)``."""
    mode: str
    """``"bilinear"`` or ``"bicubic"``."""
    align_corners: bool
    class_mask: Tensor | None
    """bool ``[C]`` or ``[B, C]``, True = take part."""
    region: Tensor | None
    """bool ``[1 or B, H, W]``, True = evaluate."""

    def upsample(self, logits: Tensor) -> Tensor:
        """The upsampled maps, as :func:`upsample` makes them."""
        return upsample(logits, self.size, mode=self.mode, align_corners=self.align_corners)


def upsample(logits: Tensor, size: tuple[int, int], *, mode: str, align_corners: bool) -> Tensor:
    """``[B, C, H, W]`` in float64 for float64 maps, else in float32."""
    batch, channels = logits.shape[:2]
    if batch * channels * size[0] * size[1] == 0:
        compute_dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return logits.new_zeros((batch, channels, *size), dtype=compute_dtype)
    compute = logits.double() if logits.dtype == torch.float64 else logits.float()
    height, width = logits.shape[2:]
    # An axis that keeps its size is copied: its neighbours must not come in with a weight of 0,
    # which would spread NaN. Its cells become channels.
    if (height, width) == size:
        return compute
    if width == size[1]:
        folded = compute.permute(0, 1, 3, 2).reshape(batch, channels * width, height, 1)
        out = _interpolate(folded, (size[0], 1), mode, align_corners)
        return out.reshape(batch, channels, width, size[0]).transpose(2, 3).contiguous()
    if height == size[0]:
        folded = compute.reshape(batch, channels * height, 1, width)
        out = _interpolate(folded, (1, size[1]), mode, align_corners)
        return out.reshape(batch, channels, *size)
    return _interpolate(compute, size, mode, align_corners)


def _interpolate(values: Tensor, size: tuple[int, int], mode: str, align_corners: bool) -> Tensor:
    out: Tensor = torch.nn.functional.interpolate(
        values, size=size, mode=mode, align_corners=align_corners
    )
    return out


def _per_class(values: Tensor | None, like: Tensor) -> Tensor | None:
    """``[C]`` or ``[B, C]`` made to broadcast against ``[B, C, H, W]``."""
    if values is None:
        return None
    return values.expand(like.shape[0], like.shape[1])[:, :, None, None]


def _minmax(values: Tensor, region: Tensor | None) -> Tensor:
    counted = ~values.isnan()
    if region is not None:
        counted = counted & region[:, None]
    if values.numel() == 0:
        return values
    low = torch.where(counted, values, torch.inf).amin((2, 3), keepdim=True)
    high = torch.where(counted, values, -torch.inf).amax((2, 3), keepdim=True)
    span = high - low
    varies = span > CONSTANT_SPAN * torch.maximum(low.abs(), high.abs())
    scaled = (values - low) / torch.where(varies, span, 1.0)
    return torch.where(varies | values.isnan(), scaled, 0.0)


def finish_maps(
    values: Tensor,
    *,
    output: str,
    threshold: float | Tensor = 0.5,
    class_mask: Tensor | None = None,
    region: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Turn upsampled ``values [B, C, H, W]`` into one of ``MAP_OUTPUTS``.

    Excluded classes and pixels outside the region become 0 (False). ``region`` is
    ``[B or 1, H, W]``.
    """
    live = _per_class(class_mask, values)
    if output == "binary":
        limit = threshold
        if isinstance(threshold, Tensor):
            limit = threshold.float().expand(values.shape[:2])[:, :, None, None]
        out = values > limit
    elif output == "sigmoid":
        out = torch.sigmoid(values * scale)
    elif output == "minmax":
        out = _minmax(values, region)
    elif output == "softmax":
        scores = values * scale
        out = torch.softmax(scores if live is None else scores.masked_fill(~live, -torch.inf), 1)
    else:
        out = values
    zero = torch.zeros((), dtype=out.dtype, device=out.device)
    if live is not None:
        out = torch.where(live, out, zero)
    if region is not None:
        out = torch.where(region[:, None], out, zero)
    return out


def finish_labels(
    values: Tensor,
    *,
    label_dtype: torch.dtype,
    ignore_index: int,
    class_mask: Tensor | None = None,
    region: Tensor | None = None,
) -> Tensor:
    """Lowest class of the largest value, ``[B, H, W]``; NaN never wins."""
    batch, channels, height, width = values.shape
    if channels == 0:
        return values.new_full((batch, height, width), ignore_index, dtype=label_dtype)
    eligible = ~values.isnan()
    live = _per_class(class_mask, values)
    if live is not None:
        eligible = eligible & live
    best = torch.where(eligible, values, -torch.inf).amax(1, keepdim=True)
    labels = (eligible & (values == best)).to(torch.uint8).argmax(1).to(label_dtype)
    decided = eligible.any(1)
    if region is not None:
        decided = decided & region
    return torch.where(decided, labels, torch.full_like(labels, ignore_index))


def finish_confidence(
    values: Tensor,
    *,
    class_mask: Tensor | None = None,
    region: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Softmax probability of the best class, ``[B, H, W]``; 0 where no class takes part."""
    batch, channels, height, width = values.shape
    if channels == 0:
        return values.new_zeros((batch, height, width))
    out = finish_maps(values, output="softmax", class_mask=class_mask, scale=scale).amax(1)
    if region is not None:
        out = torch.where(region, out, torch.zeros_like(out))
    return out


def maps(
    logits: Tensor, reading: Reading, output: str, threshold: float | Tensor, scale: float
) -> Tensor:
    """One of ``MAP_OUTPUTS``, ``[B, C, H, W]``, in the dtype of ``logits`` or bool."""
    out = finish_maps(
        reading.upsample(logits),
        output=output,
        threshold=threshold,
        class_mask=reading.class_mask,
        region=reading.region,
        scale=scale,
    )
    return out if output == "binary" else out.to(logits.dtype)


def labels(logits: Tensor, reading: Reading, label_dtype: torch.dtype, ignore_index: int) -> Tensor:
    """Labels of the upsampled maps, ``[B, H, W]``."""
    return finish_labels(
        reading.upsample(logits),
        label_dtype=label_dtype,
        ignore_index=ignore_index,
        class_mask=reading.class_mask,
        region=reading.region,
    )


def labels_confidence(
    logits: Tensor, reading: Reading, label_dtype: torch.dtype, ignore_index: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Labels and the softmax probability of each, both ``[B, H, W]``."""
    values = reading.upsample(logits)
    kept = {"class_mask": reading.class_mask, "region": reading.region}
    chosen = finish_labels(
        values.detach(), label_dtype=label_dtype, ignore_index=ignore_index, **kept
    )
    return chosen, finish_confidence(values, scale=scale, **kept)


def confusion(logits: Tensor, target: Tensor, reading: Reading, ignore_index: int) -> Tensor:
    """``[C, C]`` int64 counts; rows are target classes, columns labels."""
    channels = logits.shape[1]
    found = labels(logits, reading, torch.int64, -1)
    wanted = target.long()
    counted = (found >= 0) & (wanted >= 0) & (wanted < channels) & (wanted != ignore_index)
    pairs = wanted[counted] * channels + found[counted]
    return torch.bincount(pairs, minlength=channels * channels).reshape(channels, channels)
