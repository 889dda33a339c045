# SPDX-License-Identifier: Apache-2.0
"""ResNets of bottleneck blocks under torchvision's parameter names; no weights ship with them.

Source: He et al., "Deep Residual Learning", arXiv:1512.03385, with the stride of a block in its
3 x 3 convolution, as torchvision has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from patchword.backbones.weights import load_strictly
from patchword.errors import OptionError

# Blocks per stage.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Bottleneck(nn.Module):
    """Narrow (1 x 1), filter (3 x 3), widen (1 x 1), add the input."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        """Build a block that ends with ``4 * planes`` channels."""
        super().__init__()
        outputs = planes * EXPANSION
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, h, w]`` to ``[B, 4 * planes, h / stride, w / stride]``."""
        kept = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + kept)


class ResNet(nn.Module):
    """The network up to any of its four stages, with or without its classifier."""

    def __init__(self, depth: int = 50, *, stages: int = 4, classes: int | None = None) -> None:
        """Build the network with fresh weights.

        Args:
            depth: 50, 101 or 152.
            stages: How many of ``layer1`` to ``layer4`` there are.
            classes: Outputs of ``fc``; None for no such layer. Needs all four stages.

        Raises:
            OptionError: There is no such network.
        """
        super().__init__()
        if depth not in DEPTHS or not 1 <= stages <= 4 or (classes is not None and stages < 4):
            raise OptionError(
                f"ResNet: depth must be one of {sorted(DEPTHS)} with 1 to 4 stages, and a "
                f"classifier needs all 4, got depth {depth}, {stages} stages, {classes} classes."
            )
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(64)
        self.stages = stages
        inputs = 64
        for stage in range(stages):
            planes = 64 * 2**stage
            blocks = []
            for block in range(DEPTHS[depth][stage]):
                blocks.append(Bottleneck(inputs, planes, 2 if stage > 0 and block == 0 else 1))
                inputs = planes * EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = inputs
        self.fc = None if classes is None else nn.Linear(inputs, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map normalised pictures ``[B, 3, H, W]`` to the last stage's ``[B, C, h, w]``, >= 0.

        Every halving gives ``(size - 1) // 2 + 1`` cells; four of them lead to ``layer3``.
        """
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, 2, padding=1)
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Class logits ``[B, classes]``, or the features where there is no classifier."""
        features = self.forward_features(images)
        if self.fc is None:
            return features
        out: Tensor = self.fc(features.mean(dim=(2, 3)))
        return out

    def fold(self) -> ResNet:
        """Merge every batch norm into its convolution and freeze; returns the network itself."""
        self.eval()
        self.conv1, self.bn1 = _folded(self.conv1, self.bn1)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                for number in (1, 2, 3):
                    conv, norm = _folded(
                        getattr(module, f"conv{number}"), getattr(module, f"bn{number}")
                    )
                    setattr(module, f"conv{number}", conv)
                    setattr(module, f"bn{number}", norm)
                if module.downsample is not None:
                    module.downsample = nn.Sequential(*_folded(*module.downsample))
        return self.requires_grad_(False)


def _folded(conv: nn.Module, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    assert isinstance(conv, nn.Conv2d)
    if isinstance(norm, nn.BatchNorm2d):
        return fuse_conv_bn_eval(conv, norm), nn.Identity()
    return conv, norm


class ResNet50Backbone(nn.Module):
    """ResNet-50 cut after ``layer3``: 1024 channels that are never negative, stride 16."""

    name = "resnet50-layer3"
    stride = 16
    multiple = 16
    fill = sum(IMAGENET_MEAN) / 3

    def __init__(
        self,
        state: Mapping[str, Tensor],
        device: torch.device | str | None = None,
        *,
        normalisation: str = "correct",
    ) -> None:
        """Take the weights.

        Args:
            state: Tensors under torchvision's names, exactly those up to ``layer3``.
            device: Where it runs; ``None`` for the CPU.
            normalisation: ``"correct"`` subtracts ImageNet's mean and divides by its deviation;
                ``"segswap_eval"`` multiplies by the deviation and adds the mean.

        Raises:
            CheckpointError: Tensors are missing, superfluous or of another shape.
            OptionError: The normalisation is not known.
        """
        super().__init__()
        if normalisation not in ("correct", "segswap_eval"):
            raise OptionError(
                'ResNet50Backbone: normalisation must be "correct" or "segswap_eval", '
                f"got {normalisation!r}."
            )
        network = ResNet(50, stages=3)
        load_strictly(network, state, "ResNet50Backbone")
        self.normalisation = normalisation
        self.device = torch.device("cpu" if device is None else device)
        self.network = network.eval().requires_grad_(False).to(self.device)

    def train(self, mode: bool = True) -> ResNet50Backbone:
        """Stay in evaluation mode: this network is frozen, its batch norms too."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ResNet50Backbone:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.device = self.network.conv1.weight.device
        return self

    def fold(self) -> ResNet50Backbone:
        """Fold batch norms: the same function, faster, under other tensor names."""
        self.network.fold()
        return self

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn RGB in [0, 1] into what the network takes."""
        mean = pixels.new_tensor(IMAGENET_MEAN)[:, None, None]
        std = pixels.new_tensor(IMAGENET_STD)[:, None, None]
        if self.normalisation == "segswap_eval":
            return pixels * std + mean
        return (pixels - mean) / std

    @torch.inference_mode()
    def describe(self, pixels: Tensor) -> Tensor:
        """Unit descriptors ``[B, 1024, H / 16, W / 16]`` of ``[B, 3, H, W]`` RGB in [0, 1]."""
        return F.normalize(self.network(self.normalise(pixels)), dim=1)
