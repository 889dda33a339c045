# SPDX-License-Identifier: Apache-2.0
"""What the matchers return: frozen records of tensors, with or without a batch dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patchword.errors import OptionError


@dataclass(frozen=True)
class NearestNeighbors:
    """Best candidates of every row, best first; equal scores in ascending order of index."""

    indices: Tensor
    """``[..., N]`` for ``k=1``, else ``[..., N, k]``, int64; -1 where there is no candidate."""

    scores: Tensor
    """Like ``indices``, float32 (float64 for float64 inputs); -inf where there is no candidate."""


@dataclass(frozen=True)
class Matches:
    """One-to-one matches between two sets; side 1 is the inverse map of side 0."""

    matches0: Tensor
    """``[..., N]`` int64: the partner in set 1 of every element of set 0, -1 for none."""

    matches1: Tensor
    """``[..., M]`` int64: the partner in set 0 of every element of set 1, -1 for none."""

    scores0: Tensor
    """``[..., N]``: score of the match, -inf for none (0 for matchers that give probabilities)."""

    scores1: Tensor
    """``[..., M]``: likewise, for set 1."""

    def pairs(self, i: int = 0) -> tuple[Tensor, Tensor]:
        """Matches of batch entry ``i`` as a list; reads the number of matches on the host.

        Args:
            i: Which pair of a batch; 0 where there is no batch dimension.

        Returns:
            ``[K, 2]`` int64 indices into set 0 and set 1, ascending in the first column, and the
            ``[K]`` scores.

        Raises:
            OptionError: ``i`` is no entry of the batch.
        """
        batch = self.matches0.shape[0] if self.matches0.ndim == 2 else 1
        if not 0 <= i < batch:
            raise OptionError(f"pairs: i must be in [0, {batch}), got {i}.")
        matches = self.matches0[i] if self.matches0.ndim == 2 else self.matches0
        scores = self.scores0[i] if self.scores0.ndim == 2 else self.scores0
        first = torch.nonzero(matches >= 0).squeeze(1)
        return torch.stack((first, matches[first]), 1), scores[first]


@dataclass(frozen=True)
class CycleConsistency:
    """Where every element of set 0 lands when it is matched to set 1 and back."""

    indices01: Tensor
    """``[..., N]`` int64: nearest neighbour in set 1, -1 for none."""

    indices10_of_01: Tensor
    """``[..., N]`` int64: nearest neighbour of that neighbour, back in set 0, -1 for none."""

    distance: Tensor
    """``[..., N]``: distance in pixels from the start to the returned point, inf for none."""

    scores: Tensor
    """``[..., N]``: score of the step to set 1, -inf for none."""
