# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0, written for dense features at several depths; nothing about matching.

Source: Tan and Le, "EfficientNet", ICML 2019, arXiv:1905.11946, in the "Lite" form of Google's
release: no squeeze-and-excitation, ReLU6 in place of swish, stem and head of fixed width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from patchword.backbones.weights import EFFICIENTNET_LITE0, load_state_dict
from patchword.errors import CheckpointError

# The checkpoint was trained with TensorFlow's default for this family, not torch's 1e-5.
_BATCH_NORM_EPS = 1e-3
# Inputs are (pixel - 127) / 128 for pixels in 0..255.
_PIXEL_MEAN, _PIXEL_SCALE = 127.0, 128.0


@dataclass(frozen=True)
class StageSpec:
    """A run of blocks of equal width: ``repeats`` blocks, the first of them with ``stride``."""

    expand: int
    channels: int
    kernel: int
    stride: int
    repeats: int


STAGES = (
    StageSpec(expand=1, channels=16, kernel=3, stride=1, repeats=1),
    StageSpec(expand=6, channels=24, kernel=3, stride=2, repeats=2),
    StageSpec(expand=6, channels=40, kernel=5, stride=2, repeats=2),
    StageSpec(expand=6, channels=80, kernel=3, stride=2, repeats=3),
    StageSpec(expand=6, channels=112, kernel=5, stride=1, repeats=3),
    StageSpec(expand=6, channels=192, kernel=5, stride=2, repeats=4),
    StageSpec(expand=6, channels=320, kernel=3, stride=1, repeats=1),
)
STEM_CHANNELS, HEAD_CHANNELS, NUM_CLASSES = 32, 1280, 1000


def same_padding(kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Padding (left, right, top, bottom) that keeps ``ceil(size / stride)`` cells.

    Stride-2 layers pad one pixel more on the right and at the bottom, so that every such layer
    moves the centre of what a cell sees by half a pixel of its input.
    """
    total = kernel - stride
    before = total // 2
    return before, total - before, before, total - before


class ConvNorm(nn.Module):
    """Convolution, batch norm and an optional ReLU6; batch norm is folded after loading."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, *, groups: int, activate: bool
    ) -> None:
        """Build the layer; ``kernel`` and ``stride`` in pixels."""
        super().__init__()
        self.padding = same_padding(kernel, stride)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPS)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, h, w]`` to ``[B, C', ceil(h / stride), ceil(w / stride)]``."""
        left, right, top, bottom = self.padding
        if left == right == top == bottom:
            # Padding inside the convolution spares a copy of the whole map.
            x = F.conv2d(
                x,
                self.conv.weight,
                self.conv.bias,
                self.conv.stride,
                (top, left),
                groups=self.conv.groups,
            )
        else:
            x = self.conv(F.pad(x, self.padding))
        x = self.norm(x)
        return F.relu6(x) if self.activate else x

    def fold(self) -> None:
        """Merge the batch norm into the convolution (inference only)."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class InvertedResidual(nn.Module):
    """Widen (1 x 1), filter each channel (k x k), narrow (1 x 1), add the input where it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        """Build one block; ``expand`` is the widening factor, 1 for none."""
        super().__init__()
        hidden = inputs * expand
        self.expand = (
            ConvNorm(inputs, hidden, 1, 1, groups=1, activate=True) if expand > 1 else None
        )
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden, activate=True)
        self.project = ConvNorm(hidden, outputs, 1, 1, groups=1, activate=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, h, w]`` to ``[B, C', h / stride, w / stride]``; no activation at the end."""
        hidden = x if self.expand is None else self.expand(x)
        out: Tensor = self.project(self.depthwise(hidden))
        return out + x if self.residual else out


class EfficientNetLite0(nn.Module):
    """The network: pictures in, feature maps of chosen blocks or of the head out."""

    def __init__(self) -> None:
        """Build the network with fresh weights; :func:`load_efficientnet_lite0` fills them."""
        super().__init__()
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, 2, groups=1, activate=True)
        blocks: list[InvertedResidual] = []
        inputs = STEM_CHANNELS
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(
                    InvertedResidual(inputs, stage.channels, stage.kernel, stride, stage.expand)
                )
                inputs = stage.channels
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(inputs, HEAD_CHANNELS, 1, 1, groups=1, activate=True)
        self.classifier = nn.Linear(HEAD_CHANNELS, NUM_CLASSES)

    def forward_blocks(self, images: Tensor, blocks: tuple[int, ...]) -> dict[int, Tensor]:
        """Outputs ``[B, C, h, w]`` of the named blocks; stops after the last one asked for.

        Args:
            images: ``[B, 3, H, W]`` RGB in [0, 1], each side at least 32 pixels; the
                padding was made for multiples of 32.
            blocks: Block numbers 0 to 15.
        """
        x = self.stem((images * 255.0 - _PIXEL_MEAN) / _PIXEL_SCALE)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks[: max(blocks) + 1]):
            x = block(x)
            if index in blocks:
                outputs[index] = x
        return outputs

    def forward_head(self, images: Tensor) -> Tensor:
        """Head features ``[B, 1280, H / 32, W / 32]`` before pooling."""
        last = len(self.blocks) - 1
        out: Tensor = self.head(self.forward_blocks(images, (last,))[last])
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Class logits ``[B, 1000]`` of pictures ``[B, 3, H, W]`` in [0, 1]."""
        out: Tensor = self.classifier(self.forward_head(images).mean(dim=(2, 3)))
        return out

    def fold(self) -> EfficientNetLite0:
        """Fold every batch norm into its convolution and freeze; returns the network itself."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return self.requires_grad_(False)


_PARTS = (
    ("_conv_stem.", "stem.conv."),
    ("_bn0.", "stem.norm."),
    ("_conv_head.", "head.conv."),
    ("_bn1.", "head.norm."),
    ("_fc.", "classifier."),
)
_BLOCK_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def convert_name(name: str) -> str:
    """Translate a tensor name of the published checkpoint to the name used here.

    Raises:
        CheckpointError: The name belongs to no layer of the network.
    """
    if name.startswith("_blocks."):
        _, index, part, leaf = name.split(".")
        if part in _BLOCK_PARTS:
            return f"blocks.{index}.{_BLOCK_PARTS[part]}.{leaf}"
    for old, new in _PARTS:
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise CheckpointError(f"convert_name: {name} must be a layer of EfficientNet-Lite0.")


def load_efficientnet_lite0(*, fold: bool = True) -> EfficientNetLite0:
    """Build the network with its ImageNet-1k weights, in evaluation mode.

    Args:
        fold: Merge batch norms into the convolutions (faster, same values up to rounding).

    Raises:
        CheckpointError: The weights package is missing or its file is not the expected one.
    """
    state = {convert_name(k): v for k, v in load_state_dict(EFFICIENTNET_LITE0).items()}
    network = EfficientNetLite0()
    network.load_state_dict(state, strict=True)
    network.eval().requires_grad_(False)
    with torch.no_grad():
        return network.fold() if fold else network
