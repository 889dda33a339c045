# SPDX-License-Identifier: Apache-2.0
"""Sizes of CLIP's towers, as published or as read from a checkpoint's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from patchword.backbones.clip.layers import Activation
from patchword.errors import CheckpointError

# Every published tower of OpenAI has heads of this width.
_HEAD_WIDTH = 64
# Widths of larger open towers whose heads are wider, which no tensor's shape shows.
_WIDER_HEADS = (1280, 1408, 1664)


@dataclass(frozen=True)
class ImageConfig:
    """Sizes of the image tower; the defaults are those of ViT-B/16.

    Attributes:
        width: Width of a token.
        layers: Number of blocks.
        heads: Attention heads a block.
        patch: Pixels a patch.
        grid: Patches along each side that the positions were trained for.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 16
    grid: int = 14

    @property
    def resolution(self) -> int:
        """Side of the trained input in pixels."""
        return self.grid * self.patch


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower; the defaults are those of ViT-B/16 and ViT-B/32."""

    vocabulary: int = 49408
    context: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8


@dataclass(frozen=True)
class ClipConfig:
    """Both towers, the size of the space they share, and their activation."""

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed: int = 512
    activation: Activation = "quick_gelu"


VIT_B16 = ClipConfig()
VIT_B32 = ClipConfig(image=ImageConfig(patch=32, grid=7))
VIT_L14 = ClipConfig(
    image=ImageConfig(width=1024, layers=24, heads=16, patch=14, grid=16),
    text=TextConfig(width=768, heads=12),
    embed=768,
)
VIT_L14_336 = ClipConfig(
    image=ImageConfig(width=1024, layers=24, heads=16, patch=14, grid=24),
    text=TextConfig(width=768, heads=12),
    embed=768,
)


def infer_config(state: Mapping[str, Tensor], activation: Activation = "quick_gelu") -> ClipConfig:
    """Read the sizes from a state dict in OpenAI's naming.

    Raises:
        CheckpointError: It is no CLIP with a vision transformer, or one whose head count its
            shapes do not tell.
    """
    try:
        kernel = state["visual.conv1.weight"]
        positions = state["visual.positional_embedding"].shape[0] - 1
        table = state["token_embedding.weight"]
        projection = state["text_projection"]
        context = state["positional_embedding"].shape[0]
    except KeyError as error:
        raise CheckpointError(
            "infer_config: a checkpoint must hold CLIP with a vision transformer, got one without "
            f"{error.args[0]}."
        ) from error
    width, text_width = kernel.shape[0], table.shape[1]
    grid = round(positions**0.5)
    if grid * grid != positions or width in _WIDER_HEADS or width % _HEAD_WIDTH:
        raise CheckpointError(
            "infer_config: image tower must be square with heads 64 wide, such as ViT-B or ViT-L, "
            f"got width {width} and {positions} positions."
        )
    return ClipConfig(
        image=ImageConfig(
            width=width,
            layers=_count(state, "visual.transformer.resblocks."),
            heads=width // _HEAD_WIDTH,
            patch=kernel.shape[-1],
            grid=grid,
        ),
        text=TextConfig(
            vocabulary=table.shape[0],
            context=context,
            width=text_width,
            layers=_count(state, "transformer.resblocks."),
            heads=max(1, text_width // _HEAD_WIDTH),
        ),
        embed=projection.shape[1],
        activation=activation,
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
