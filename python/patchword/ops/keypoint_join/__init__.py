# SPDX-License-Identifier: Apache-2.0
"""Keypoints that pairs of images share, joined by id."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.keypoint_join import native
from patchword.ops.keypoint_join.reference import keypoint_join_reference

__all__ = ["KeypointJoin", "keypoint_join", "refusals"]


class KeypointJoin(NamedTuple):
    """Matches of many pairs, one after the other.

    Attributes:
        offsets: ``[P + 1]``: pair ``p`` has the matches ``offsets[p]:offsets[p + 1]``.
        rows0: ``[J]`` rows in each pair's first image, counted from that image's first id.
        rows1: ``[J]`` rows in the second image.
        duplicates: ``[I]``: an id occurs more than once in the image; its first row was joined.
        unsorted: ``[I]``: the image's ids descend somewhere, so its joins mean nothing.
    """

    offsets: Tensor
    rows0: Tensor
    rows1: Tensor
    duplicates: Tensor
    unsorted: Tensor


def _always(ids: Tensor, *rest: Tensor, **options: Any) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


def keypoint_join(
    ids: Tensor,
    offsets: Tensor,
    pairs: Tensor,
    *,
    capacity: int | None = None,
    backend: Backend | None = None,
) -> KeypointJoin:
    """Find the keypoints that both images of each pair have, by id.

    Args:
        ids: ``[T]`` integer ids of the keypoints of all images, one image after the other,
            strictly ascending within an image.
        offsets: ``[I + 1]``: image ``i`` has ``ids[offsets[i]:offsets[i + 1]]``.
        pairs: ``[P, 2]`` images. A pair that names an image outside 0..I-1 has no matches.
        capacity: Length of the rows that come back; matches beyond it are dropped, unused places
            are -1. Default: exactly the number of matches, which costs a read from the device.
        backend: Force ``"native"`` or ``"reference"``; default: the first that can run.

    Returns:
        :class:`KeypointJoin`, int64, by ascending id within each pair. ``offsets`` counts all
        matches, dropped ones too.

    Raises:
        ShapeError: Shapes do not fit.
        DTypeError: No integers, or not on one device.
        OptionError: A negative capacity.
        BackendError: The forced backend cannot run these inputs.

    Note:
        Ids are compared as int64. No gradients. Values are not checked beforehand: images whose
        ids repeat or descend are flagged in the result.

    Example:
        >>> import torch
        >>> ids = torch.tensor([2, 5, 7, 9, 1, 5, 9])
        >>> join = keypoint_join(ids, torch.tensor([0, 4, 7]), torch.tensor([[0, 1]]))
        >>> join.rows0, join.rows1
        (tensor([1, 3]), tensor([1, 2]))
    """
    given = {"ids": ids, "offsets": offsets, "pairs": pairs}
    for name, tensor in given.items():
        dtype = tensor.dtype
        if dtype is torch.bool or dtype.is_floating_point or dtype.is_complex:
            raise DTypeError(f"keypoint_join: {name} must be integers, got {dtype}.")
        if tensor.device != ids.device:
            raise DTypeError(
                f"keypoint_join: {name} must be on {ids.device} like ids, got {tensor.device}."
            )
    if ids.ndim != 1:
        raise ShapeError(
            f"keypoint_join: ids must have shape [T], got {list(ids.shape)}.",
            "[T]",
            tuple(ids.shape),
        )
    if offsets.ndim != 1 or offsets.shape[0] == 0:
        raise ShapeError(
            f"keypoint_join: offsets must have shape [I + 1], got {list(offsets.shape)}.",
            "[I + 1]",
            tuple(offsets.shape),
        )
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ShapeError(
            f"keypoint_join: pairs must have shape [P, 2], got {list(pairs.shape)}.",
            "[P, 2]",
            tuple(pairs.shape),
        )
    if capacity is not None and capacity < 0:
        raise OptionError(f"keypoint_join: capacity must not be negative, got {capacity}.")
    ids, offsets, pairs = (t if t.dtype is torch.int64 else t.long() for t in given.values())
    chosen = _backends.choose("keypoint_join", refusals, backend, ids, offsets, pairs)
    run = native.keypoint_join_native if chosen == "native" else keypoint_join_reference
    return KeypointJoin(*run(ids, offsets, pairs, capacity))
