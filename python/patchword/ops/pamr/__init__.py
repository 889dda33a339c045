# SPDX-License-Identifier: Apache-2.0
"""Masks refined along the edges of their picture (PAMR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword import _library
from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.pamr import native
from patchword.ops.pamr.reference import pamr_reference

__all__ = ["pamr", "refusals"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _always(image: Tensor, masks: Tensor, dilations: Sequence[int] = ()) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


def _check_maps(image: Tensor, masks: Tensor) -> None:
    for name, maps in (("image", image), ("masks", masks)):
        if maps.ndim != 4:
            raise ShapeError(
                f"pamr: {name} must have shape [B, channels, h, w], got {list(maps.shape)}.",
                "[B, channels, h, w]",
                tuple(maps.shape),
            )
        if maps.dtype not in _FLOATS:
            raise DTypeError(f"pamr: {name} must be floating point, got {maps.dtype}.")
        if _library.wants_gradient(maps):
            raise OptionError(
                f"pamr: {name} must not require a gradient, since refinement has none. "
                f"Pass {name}.detach()."
            )
    if image.shape[0] != masks.shape[0]:
        raise ShapeError(
            f"pamr: image must have the batch size {masks.shape[0]} of masks, "
            f"got {image.shape[0]}.",
            masks.shape[0],
            image.shape[0],
        )
    if masks.device != image.device:
        raise DTypeError(f"pamr: masks must be on {image.device} like image, got {masks.device}.")
    if 0 in image.shape[1:]:
        raise ShapeError(
            f"pamr: image must have at least one channel and pixel, got {list(image.shape)}."
        )
    if 0 in masks.shape[2:]:
        raise ShapeError(f"pamr: masks must have at least one cell, got {list(masks.shape)}.")


def _check_live(live: Tensor | None, masks: Tensor) -> Tensor | None:
    if live is None:
        return None
    batch, channels = masks.shape[:2]
    if tuple(live.shape) not in ((channels,), (batch, channels)):
        raise ShapeError(
            f"pamr: live must have shape [{channels}] or [{batch}, {channels}], "
            f"got {list(live.shape)}.",
            (batch, channels),
            tuple(live.shape),
        )
    if live.dtype != torch.bool:
        raise DTypeError(f"pamr: live must be bool, True = refine, got {live.dtype}.")
    if live.device != masks.device:
        raise DTypeError(f"pamr: live must be on {masks.device} like masks, got {live.device}.")
    return live.expand(batch, channels)


def pamr(
    image: Tensor,
    masks: Tensor,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    iterations: int = 10,
    *,
    live: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Masks pulled to the edges of their picture: pixel-adaptive mask refinement.

    Every value becomes, ``iterations`` times, the weighted mean of its eight neighbours at each
    dilation. A neighbour weighs ``softmax(-mean_k |I_k(p) - I_k(q)| / (1e-8 + 0.1 sigma_k(p)))``
    over all neighbours, ``sigma_k`` being the sample deviation of the neighbours and, once per
    dilation, the pixel itself, which gets no weight. Beyond the border the border is read.

    Args:
        image: ``[B, K, H, W]``, any number of channels, float16/bfloat16/float32/float64;
            magnitudes up to 1e15. The published networks pass RGB in [0, 1].
        masks: ``[B, C, h, w]``; of another size than the image, they are first resized to it
            (bilinear, corners aligned), as the published code does.
        dilations: Steps from a pixel to its neighbours, in pixels, each at least 1.
        iterations: How often; 0 returns the (resized) masks.
        live: bool ``[C]`` or ``[B, C]``, True = refine. Other channels cost nothing and are 0.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`.

    Returns:
        ``[B, C, H, W]`` in the dtype of ``masks``, computed in float32.

    Raises:
        ShapeError: Rank or sizes do not fit, or there is no pixel.
        DTypeError: An element type or device does not fit.
        OptionError: A dilation or ``iterations`` is out of range, or a gradient is asked for.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Not differentiable: an input that requires a gradient is refused while gradients are
        recorded. Deterministic. NaN in the image spreads to every pixel that sees it. Source:
        Araslanov and Roth, "Single-stage semantic segmentation from image labels", CVPR 2020.

    Example:
        >>> import torch
        >>> masks = torch.zeros(1, 1, 3, 3)
        >>> masks[..., 1, 1] = 1
        >>> pamr(torch.zeros(1, 3, 3, 3), masks, dilations=[1], iterations=1)[0, 0]
        tensor([[0.1250, 0.1250, 0.1250],
                [0.1250, 0.0000, 0.1250],
                [0.1250, 0.1250, 0.1250]])
    """
    _check_maps(image, masks)
    live = _check_live(live, masks)
    if len(dilations) == 0 or any(d < 1 for d in dilations):
        raise OptionError(
            f"pamr: dilations must be at least one number from 1 up, got {list(dilations)}."
        )
    if iterations < 0:
        raise OptionError(f"pamr: iterations must be at least 0, got {iterations}.")
    chosen = _backends.choose("pamr", refusals, backend, image, masks, dilations)
    size = image.shape[2:]
    dtype = masks.dtype
    if masks.shape[2:] != size and masks.numel():
        wide = masks if dtype == torch.float64 else masks.float()
        masks = F.interpolate(wide, size=tuple(size), mode="bilinear", align_corners=True)
    elif masks.shape[2:] != size:
        masks = masks.new_empty((*masks.shape[:2], *size))
    run = native.pamr_native if chosen == "native" else pamr_reference
    return run(image, masks, dilations, iterations, live).to(dtype)
