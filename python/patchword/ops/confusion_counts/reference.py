# SPDX-License-Identifier: Apache-2.0
"""Joint counts of two label maps in plain torch: the definition that the kernels must meet."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion_counts_reference(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    """Count the pairs of classes of ``prediction, target [images, pixels]``.

    A pixel counts where both labels are in ``0 .. num_classes - 1`` and the target is not
    ``ignore_index``. Returns int64 ``[images, num_classes, num_classes]``, target classes in rows.
    """
    images = prediction.shape[0]
    guess, truth = prediction.long(), target.long()
    counted = (truth >= 0) & (truth < num_classes) & (truth != ignore_index)
    counted &= (guess >= 0) & (guess < num_classes)
    bins = torch.where(counted, truth * num_classes + guess, num_classes**2)
    # One bin more takes what is not counted, so that shapes do not depend on the data.
    counts = torch.zeros((images, num_classes**2 + 1), dtype=torch.int64, device=bins.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins))
    return counts[:, :-1].reshape(images, num_classes, num_classes)
