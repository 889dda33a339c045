# SPDX-License-Identifier: Apache-2.0
"""Agreement of upsampled labels with a label map, counted without storing the labels."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.mask_upsample import checks, native, reference


def upsampled_confusion(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Literal["bilinear", "bicubic"] = "bilinear",
    align_corners: bool = False,
    class_mask: Tensor | None = None,
    region: Tensor | None = None,
    ignore_index: int = 255,
    backend: Backend | None = None,
) -> Tensor:
    """Pixels of every target class that get every label, summed over the batch.

    Args:
        logits: Maps ``[B, C, h, w]``, as for :func:`patchword.ops.mask_upsample`.
        target: Label maps ``[B, H, W]``, uint8/int16/int32/int64. Values outside ``0 .. C - 1``
            and ``ignore_index`` are not counted.
        mode: ``"bilinear"`` or ``"bicubic"``.
        align_corners: As in :func:`patchword.ops.mask_upsample`.
        class_mask: bool ``[C]`` or ``[B, C]``, True = may be a label.
        region: bool ``[H, W]`` or ``[B, H, W]``, True = count.
        ignore_index: Target value that is not counted even where it is a class.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`.

    Returns:
        int64 ``[C, C]``: rows are target classes, columns are labels.

    Raises:
        ShapeError: Rank or sizes do not fit.
        DTypeError: An element type or device does not fit.
        OptionError: ``mode`` is none of its values.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Not differentiable. Deterministic: integer counts.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[[4.0, 0.0]], [[1.0, 1.0]]]])
        >>> target = torch.tensor([[[0, 0, 0, 1, 1, 255]]])
        >>> upsampled_confusion(maps, target)
        tensor([[3, 0],
                [1, 1]])
    """
    name = "upsampled_confusion"
    checks.check_logits(name, logits, (0, 0), mode)
    checks.check_target(name, target, logits)
    size = (target.shape[1], target.shape[2])
    checks.check_class_mask(name, class_mask, logits)
    region = checks.check_region(name, region, logits, size)
    logits = logits.detach() if logits.requires_grad else logits
    chosen = _backends.choose(name, _refusals, backend, logits)
    room = native if chosen == "native" else reference
    reading = reference.Reading(size, mode, align_corners, class_mask, region)
    counts: Tensor = room.confusion(logits, target, reading, ignore_index)
    return counts


def intersection_and_union(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels per class in both, and in either, of target and labels.

    Args:
        confusion: ``[C, C]`` counts of :func:`upsampled_confusion`, or a sum of several.

    Returns:
        Two int64 ``[C]``; their quotient is the intersection over union of each class.

    Example:
        >>> import torch
        >>> intersection_and_union(torch.tensor([[3, 0], [1, 1]]))
        (tensor([3, 1]), tensor([4, 2]))
    """
    both = confusion.diagonal()
    return both, confusion.sum(0) + confusion.sum(1) - both


def _always(logits: Tensor) -> None:
    return None


_refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}
