# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schema, allocation, and when it refuses."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C

LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
# The pairs of more classes would need gigabytes of bins per thread.
_MOST_CLASSES = 8192


def refuse(prediction: Tensor, target: Tensor, num_classes: int = 1) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    if num_classes > _MOST_CLASSES:
        return f"there are more than {_MOST_CLASSES} classes"
    return _library.refuse_device(prediction)


def _count(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    images, pixels = prediction.shape
    counts = prediction.new_zeros(images, num_classes, num_classes, dtype=torch.int64)
    if pixels == 0 or counts.numel() == 0:
        return counts
    prediction, target = prediction.contiguous(), target.contiguous()
    _library.launch(
        C.confusion_counts,
        prediction,
        prediction.data_ptr(),
        target.data_ptr(),
        counts.data_ptr(),
        (DTYPE_TAGS[prediction.dtype], DTYPE_TAGS[target.dtype]),
        (images, pixels, num_classes),
        ignore_index,
    )
    return counts


def _fake(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    images = prediction.shape[0]
    return prediction.new_empty(images, num_classes, num_classes, dtype=torch.int64)


_op = _library.register(
    "confusion_counts(Tensor prediction, Tensor target, int num_classes, int ignore_index) "
    "-> Tensor",
    _count,
    _fake,
)


def confusion_counts_native(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    """Same contract as :func:`confusion_counts_reference`."""
    run = _count if _library.plain_eager(prediction, target) else _op
    return cast(Tensor, run(prediction, target, num_classes, ignore_index))
