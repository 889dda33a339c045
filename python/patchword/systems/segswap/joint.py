# SPDX-License-Identifier: Apache-2.0
"""Trained masks and score with training-free correspondences: what ``match`` uses by default.

The network says what two pictures share and whether they share anything; where a patch lies in the
other picture, proven maps of :class:`patchword.matching.Matcher` say more exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from patchword.errors import CheckpointError
from patchword.matching import Matcher
from patchword.structures import CorrespondenceField, FloatArray, MatchResult
from patchword.systems.segswap.checkpoint import load_network
from patchword.systems.segswap.inference import Segswap

# Matches outside both masks are dropped, unless fewer than this many would be left.
_FEWEST_MATCHES = 4
_OUTSIDE = 0.1


class JointMatcher(Matcher):
    """A :class:`Matcher` whose masks and score come from a trained :class:`Segswap`.

    With a box the training-free path answers alone: the network was not trained for boxes.

    Example:
        >>> matcher = JointMatcher()  # doctest: +SKIP
        >>> matcher.match("left.jpg", "right.jpg").save("out")  # doctest: +SKIP
    """

    def __init__(
        self, system: Segswap | None = None, *, device: torch.device | str | None = None
    ) -> None:
        """Take a system, or load the weights that ship.

        Args:
            system: On a backbone that :class:`Matcher` knows.
            device: Where the shipped one runs.

        Raises:
            CheckpointError: No weights ship with this installation.
        """
        self.system = system if system is not None else Segswap(load_network(device=device))
        super().__init__(self.system.backbone)

    @torch.inference_mode()
    def match_dense(
        self, image0: Any, image1: Any, box0: npt.ArrayLike | None = None
    ) -> tuple[MatchResult, CorrespondenceField]:
        """As :meth:`Matcher.match_dense`; the field is the training-free one."""
        free, field = super().match_dense(image0, image1, box0)
        if box0 is not None:
            return free, field
        trained = self.system.match(free.image0, free.image1)
        inside = _read(trained.mask0, free.matches[:, :2]) * _read(
            trained.mask1, free.matches[:, 2:]
        )
        kept = inside >= _OUTSIDE
        if kept.sum() < _FEWEST_MATCHES:
            kept = np.ones_like(kept)
        result = replace(trained, matches=free.matches[kept], match_scores=free.match_scores[kept])
        return result, field


def has_default() -> bool:
    """Whether this installation carries trained weights."""
    from patchword.systems.segswap.checkpoint import default_weights

    try:
        default_weights()
    except CheckpointError:
        return False
    return True


def _read(mask: FloatArray, points: FloatArray) -> FloatArray:
    """The mask's value at points ``[M, 2]`` in pixels."""
    column = points[:, 0].astype(int).clip(0, mask.shape[1] - 1)
    row = points[:, 1].astype(int).clip(0, mask.shape[0] - 1)
    read: FloatArray = mask[row, column]
    return read
