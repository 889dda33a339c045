# SPDX-License-Identifier: Apache-2.0
"""Trained masks and score with training-free correspondences: what ``match`` uses by default.

The network says what two pictures share and whether they share anything; where a patch lies in the
other picture, proven maps of :class:`patchword.matching.Matcher` say more exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from patchword.backbones import Backbone
from patchword.errors import CheckpointError, OptionError
from patchword.matching import Matcher
from patchword.structures import CorrespondenceField, FloatArray, MatchResult
from patchword.systems.segswap.checkpoint import default_weights, load_network
from patchword.systems.segswap.inference import Segswap

Model = Literal["auto", "segswap", "training-free"]
TRAINED_BACKBONE = "efficientnet-lite0"
"""Backbone of the weights that ship."""
MODELS = ("auto", "segswap", "training-free")

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
        self,
        system: Segswap | None = None,
        *,
        proven_maps: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        """Take a system, or load the weights that ship.

        Args:
            system: On a backbone that :class:`Matcher` knows.
            proven_maps: Take correspondences from proven maps; without, from the network, which is
                several times as fast and less exact.
            device: Where the shipped one runs.

        Raises:
            CheckpointError: No weights ship with this installation.
        """
        self.system = system if system is not None else Segswap(load_network(device=device))
        super().__init__(self.system.backbone)
        self.proven_maps = proven_maps

    def pair_score(self, image0: Any, image1: Any) -> float:
        """As :meth:`Matcher.pair_score`; the network alone is asked."""
        return self.system.match(self._picture(image0), self._picture(image1)).score

    @torch.inference_mode()
    def match_dense(
        self, image0: Any, image1: Any, box0: npt.ArrayLike | None = None
    ) -> tuple[MatchResult, CorrespondenceField]:
        """As :meth:`Matcher.match_dense`; the field is the training-free one."""
        if box0 is None and not self.proven_maps:
            return self.system.match_dense(self._picture(image0), self._picture(image1))
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


def create_matcher(
    model: Model = "auto",
    *,
    backbone: str | Backbone = "efficientnet-lite0",
    device: torch.device | str | None = None,
) -> Matcher:
    """The matcher of a name.

    Args:
        model: ``"auto"``: trained masks with training-free correspondences where the backbone has
            trained weights, else training-free; ``"segswap"``: the trained network alone;
            ``"training-free"``.
        backbone: Name of the backbone or a loaded one.
        device: Where a backbone given by name runs; ``None`` for the CPU.

    Raises:
        OptionError: The model is not known, or has no weights for the backbone.
        CheckpointError: Weights are missing.
    """
    if model not in MODELS:
        raise OptionError(f"match: model must be one of {', '.join(MODELS)}, got {model!r}.")
    if model == "training-free" or (model == "auto" and not _has_weights(backbone)):
        return Matcher(backbone, device=device)
    if not _has_weights(backbone):
        name = backbone if isinstance(backbone, str) else backbone.name
        raise OptionError(
            f'match: model "segswap" must have weights for its backbone, got {name!r} without. '
            f"They ship for {TRAINED_BACKBONE}."
        )
    return JointMatcher(proven_maps=model == "auto", device=device)


def match(
    image0: Any,
    image1: Any,
    *,
    box0: npt.ArrayLike | None = None,
    model: Model = "auto",
    backbone: str | Backbone = "efficientnet-lite0",
    device: torch.device | str | None = None,
) -> MatchResult:
    """Find what two pictures share.

    Args:
        image0: Path, PIL picture, array ``[H, W, 3]`` / ``[H, W]`` or tensor ``[3, H, W]``.
        image1: The other picture.
        box0: ``x0, y0, x1, y1`` in pixels of picture 0: look only for what lies there.
        model: See :func:`create_matcher`.
        backbone: Name of the backbone or a loaded one.
        device: Where a backbone given by name runs; ``None`` for the CPU.

    Returns:
        Shared-region masks of both pictures, matches with scores, and one score. Deterministic.

    Raises:
        DatasetError: A file cannot be read.
        OptionError: The box lies outside the picture, or an option is not known.
        CheckpointError: Weights are missing.

    Example:
        >>> result = match("bridge_morning.jpg", "bridge_night.jpg")  # doctest: +SKIP
        >>> result.mask0.shape, round(result.score, 2)  # doctest: +SKIP
    """
    matcher = create_matcher(model, backbone=backbone, device=device)
    return matcher.match(image0, image1, box0=box0)


def _has_weights(backbone: str | Backbone) -> bool:
    """Whether this installation carries trained weights for a backbone."""
    if backbone != TRAINED_BACKBONE:
        return False
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
