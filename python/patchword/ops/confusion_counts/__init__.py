# SPDX-License-Identifier: Apache-2.0
"""Joint counts of two label maps, the confusion matrix of a segmentation."""

from __future__ import annotations

from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.confusion_counts import native
from patchword.ops.confusion_counts.reference import confusion_counts_reference

__all__ = ["confusion_counts", "refusals"]


def _always(prediction: Tensor, target: Tensor, num_classes: int = 1) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


def confusion_counts(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_index: int = 255,
    per_image: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """Pixels of every target class that were predicted as every class.

    Args:
        prediction: Label maps of any shape, uint8/int16/int32/int64.
        target: Label maps of the same shape; uint8/int16/int32/int64, also of another type.
        num_classes: Classes are ``0 .. num_classes - 1``. A pixel with any other label, in
            either map, is not counted.
        ignore_index: Target value that is not counted even where it is a class.
        per_image: Count along the first dimension separately.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`.

    Returns:
        int64 ``[C, C]``, rows are target classes and columns are predicted ones, or
        ``[B, C, C]`` with ``per_image``. Sums of several stay valid input of
        :func:`patchword.ops.intersection_and_union`.

    Raises:
        ShapeError: The shapes differ, or ``per_image`` is given a single number.
        DTypeError: An element type or device does not fit.
        OptionError: ``num_classes`` is negative.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Not differentiable. Deterministic: integer counts.

    Example:
        >>> import torch
        >>> from patchword.ops import intersection_and_union
        >>> target = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255], [2, 2, 2, 0]])
        >>> prediction = torch.tensor([[0, 1, 1, 1], [0, 0, 2, 1], [2, 0, 2, 0]])
        >>> counts = confusion_counts(prediction, target, 3)
        >>> counts
        tensor([[4, 1, 0],
                [0, 2, 1],
                [1, 0, 2]])
        >>> intersection_and_union(counts)
        (tensor([4, 2, 2]), tensor([6, 4, 4]))
    """
    if prediction.shape != target.shape:
        raise ShapeError(
            f"confusion_counts: prediction must have the shape {list(target.shape)} of target, "
            f"got {list(prediction.shape)}.",
            tuple(target.shape),
            tuple(prediction.shape),
        )
    if per_image and prediction.ndim == 0:
        raise ShapeError("confusion_counts: per_image must have maps [B, ...], got one number.")
    for name, labels in (("prediction", prediction), ("target", target)):
        if labels.dtype not in native.LABEL_DTYPES:
            raise DTypeError(
                f"confusion_counts: {name} must be uint8, int16, int32 or int64, "
                f"got {labels.dtype}."
            )
    if target.device != prediction.device:
        raise DTypeError(
            f"confusion_counts: target must be on {prediction.device} like prediction, "
            f"got {target.device}."
        )
    if num_classes < 0:
        raise OptionError(f"confusion_counts: num_classes must be at least 0, got {num_classes}.")
    chosen = _backends.choose(
        "confusion_counts", refusals, backend, prediction, target, num_classes
    )
    rows = prediction.shape[0] if per_image else 1
    pixels = prediction.numel() // max(rows, 1)
    shape = (rows, pixels)
    run = native.confusion_counts_native if chosen == "native" else confusion_counts_reference
    counts = run(prediction.reshape(shape), target.reshape(shape), num_classes, ignore_index)
    return counts if per_image else counts[0]
