# SPDX-License-Identifier: Apache-2.0
"""Joins of keypoint ids in plain torch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def _distinct(ids: Tensor) -> Tensor:
    """Rows of the first occurrences."""
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    return first.nonzero()[:, 0]


def keypoint_join_reference(
    ids: Tensor, offsets: Tensor, pairs: Tensor, capacity: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows with equal ids of each pair of images, by ascending id.

    Image ``i`` has ``ids[offsets[i]:offsets[i + 1]]``, ascending; of equal ids the first counts.
    Returns ``(starts [P + 1], rows0 [J], rows1 [J], duplicates [I], unsorted [I])``: pair ``p`` has
    the matches ``starts[p]:starts[p + 1]``, rows count from each image's start, and the last two
    say whether an image's ids repeat or descend. With a capacity the rows are cut to it or padded
    by -1.
    """
    lists = [ids[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    duplicates, unsorted = (
        torch.tensor(
            [bool(bad(one[1:], one[:-1]).any()) for one in lists],
            dtype=torch.bool,
            device=ids.device,
        )
        for bad in (torch.eq, torch.lt)
    )
    none = ids.new_zeros(0)
    counts, found = [0], [torch.zeros(2, 0, dtype=torch.int64, device=ids.device)]
    for image0, image1 in pairs.tolist():
        inside = 0 <= image0 < len(lists) and 0 <= image1 < len(lists)
        first, second = (lists[image0], lists[image1]) if inside else (none, none)
        rows0, rows1 = _distinct(first), _distinct(second)
        place = torch.searchsorted(second[rows1], first[rows0])
        near = place.clamp(max=max(len(rows1) - 1, 0))
        same = torch.zeros_like(place, dtype=torch.bool)
        if len(rows1):
            same = second[rows1][near] == first[rows0]
        matches = torch.stack((rows0[same], rows1[near[same]] if len(rows1) else rows0[same]))
        counts.append(matches.shape[1])
        found.append(matches)
    starts = torch.tensor(counts, device=ids.device).cumsum(0)
    rows = torch.cat(found, 1)
    if capacity is not None:
        kept = rows.new_full((2, capacity), -1)
        size = min(capacity, rows.shape[1])
        kept[:, :size] = rows[:, :size]
        rows = kept
    return starts, rows[0], rows[1], duplicates, unsorted
