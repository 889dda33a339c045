# SPDX-License-Identifier: Apache-2.0
"""Id sequences merged into trees of their shared beginnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class PrefixTree:
    """States of a causal transformer, one for each distinct beginning.

    Attributes:
        ids: Last id of each state's beginning; a parent comes before its children.
        depths: Place of that id in its sequences, from 0.
        parents: Index of the state one id shorter, -1 for the first id of a sequence.
        ends: Pairs (row of the sequence, its last state).
    """

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)

    def ancestors(self) -> Tensor:
        """Mask ``[M, M]``, True where the column is the row's state or one of its beginnings."""
        mask = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask


def grow_trees(sequences: Sequence[Sequence[int]], size: int) -> Iterator[PrefixTree]:
    """Merge sequences into trees of at most ``size`` states.

    In sorted order a sequence shares its longest known beginning with the one before, so the
    states along the last sequence are all that must be remembered. A single sequence longer than
    ``size`` gets a tree of its own.
    """
    tree = PrefixTree()
    before: Sequence[int] = ()
    path: list[int] = []
    for row in sorted(range(len(sequences)), key=lambda index: list(sequences[index])):
        ids = sequences[row]
        shared = _shared(before, ids)
        if tree.ids and len(tree.ids) + len(ids) - shared > size:
            yield tree
            tree, path, shared = PrefixTree(), [], 0
        del path[shared:]
        for depth in range(shared, len(ids)):
            tree.ids.append(ids[depth])
            tree.depths.append(depth)
            tree.parents.append(path[-1] if path else -1)
            path.append(len(tree.ids) - 1)
        tree.ends.append((row, path[-1]))
        before = ids
    if tree.ids:
        yield tree


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
