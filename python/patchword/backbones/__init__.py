# SPDX-License-Identifier: Apache-2.0
"""Frozen networks that turn pictures into patch features, and phrases into vectors."""

from __future__ import annotations

import torch

from patchword.backbones.base import Backbone, extract_features
from patchword.errors import OptionError

BACKBONES = ("efficientnet-lite0", "xfeat", "efficientnet-lite0+xfeat")

__all__ = ["BACKBONES", "Backbone", "create_backbone", "extract_features"]


def create_backbone(name: str, device: torch.device | str | None = None) -> Backbone:
    """Build a backbone by name with its weights.

    Args:
        name: One of :data:`BACKBONES`.
        device: Where it runs; ``None`` for the CPU.

    Raises:
        OptionError: The name is not known.
        CheckpointError: The package with the weights is missing or damaged.
    """
    from patchword.backbones.dense import EfficientNetBackbone, JointBackbone, XFeatBackbone

    place = torch.device("cpu" if device is None else device)
    if name == "efficientnet-lite0":
        return EfficientNetBackbone(place)
    if name == "xfeat":
        return XFeatBackbone(place)
    if name == "efficientnet-lite0+xfeat":
        return JointBackbone(EfficientNetBackbone(place), XFeatBackbone(place))
    raise OptionError(f"create_backbone: name must be one of {', '.join(BACKBONES)}, got {name!r}.")
