# SPDX-License-Identifier: Apache-2.0
"""Settings of SegSwap's network and of its input; the defaults are the published ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from patchword.errors import OptionError
from patchword.nn.cross_transformer import CrossTransformerConfig

Mode = Literal["tiny", "small", "base", "large"]

# Sizes of the published modes; "large" was made for a pattern of twelve letters.
MODES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 128, "heads": 2, "hidden": 256},
    "small": {"width": 256, "heads": 2, "hidden": 256},
    "base": {"width": 512, "heads": 8, "hidden": 2048},
    "large": {"width": 512, "heads": 8, "hidden": 2048, "pattern": "ICICICICICIN"},
}

# Channels of the features that each backbone gives.
BACKBONE_CHANNELS = {
    "resnet50-layer3": 1024,
    "efficientnet-lite0": 304,
    "efficientnet-lite0+xfeat": 368,
    "xfeat": 64,
}


@dataclass(frozen=True)
class PreprocessConfig:
    """How a picture becomes the network's input.

    Attributes:
        resize: ``"squash"``: to ``size`` whatever its shape, as published. ``"fit"``: keep the
            shape up to the rounding to whole patches, longest side ``max(size)``.
            ``"letterbox"``: keep the shape exactly inside ``size``, the rest filled and never
            attended to.
        size: ``(H, W)`` in pixels, multiples of the backbone's.
        normalisation: ``"correct"``, or ``"segswap_eval"``: what the published evaluation of
            Tokyo, Pitts and Internet computes instead of it (trap T1); ResNet-50 only.
    """

    resize: Literal["squash", "fit", "letterbox"] = "squash"
    size: tuple[int, int] = (480, 480)
    normalisation: Literal["correct", "segswap_eval"] = "correct"

    def __post_init__(self) -> None:
        """Refuse values that are not documented.

        Raises:
            OptionError: With the value.
        """
        if self.resize not in ("squash", "fit", "letterbox"):
            raise OptionError(
                'PreprocessConfig: resize must be "squash", "fit" or "letterbox", '
                f"got {self.resize!r}."
            )
        if self.normalisation not in ("correct", "segswap_eval"):
            raise OptionError(
                'PreprocessConfig: normalisation must be "correct" or "segswap_eval", '
                f"got {self.normalisation!r}."
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise OptionError(
                f"PreprocessConfig: size must be a height and a width, got {self.size}."
            )


@dataclass(frozen=True)
class SegSwapConfig:
    """One SegSwap network.

    Attributes:
        backbone: Frozen network that describes the patches, a key of ``BACKBONE_CHANNELS``.
        transformer: The part that is trained.
        preprocess: How pictures reach it, unless a call says otherwise.
        refiner: Width of the network that makes masks fine, see ``refine.py``; 0 for none, as
            published.
    """

    backbone: str = "resnet50-layer3"
    transformer: CrossTransformerConfig = field(default_factory=CrossTransformerConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    refiner: int = 0

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            OptionError: The backbone is not known or has another number of channels.
        """
        if self.backbone not in BACKBONE_CHANNELS:
            raise OptionError(
                f"SegSwapConfig: backbone must be one of {', '.join(BACKBONE_CHANNELS)}, "
                f"got {self.backbone!r}."
            )
        if self.transformer.channels != BACKBONE_CHANNELS[self.backbone]:
            raise OptionError(
                f"SegSwapConfig: transformer.channels must be {BACKBONE_CHANNELS[self.backbone]} "
                f"for {self.backbone}, got {self.transformer.channels}."
            )


def make_config(
    mode: Mode = "small", backbone: str = "resnet50-layer3", **transformer: Any
) -> SegSwapConfig:
    """Settings of a published mode on a backbone.

    Args:
        mode: ``"tiny"``, ``"small"``, ``"base"`` or ``"large"``.
        backbone: Key of ``BACKBONE_CHANNELS``.
        transformer: Fields of :class:`CrossTransformerConfig` that differ from the mode's.

    Raises:
        OptionError: A name is not known or a value impossible.
    """
    if mode not in MODES:
        raise OptionError(f"make_config: mode must be one of {', '.join(MODES)}, got {mode!r}.")
    if backbone not in BACKBONE_CHANNELS:
        raise OptionError(
            f"make_config: backbone must be one of {', '.join(BACKBONE_CHANNELS)}, "
            f"got {backbone!r}."
        )
    base = CrossTransformerConfig(channels=BACKBONE_CHANNELS[backbone])
    return SegSwapConfig(
        backbone=backbone, transformer=replace(base, **{**MODES[mode], **transformer})
    )
