# SPDX-License-Identifier: Apache-2.0
"""Fabricated files under the published names: weights are drawn from a tensor's name alone."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchword.backbones.resnet import ResNet

SEQUENTIAL = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}


def seeded(name: str, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy((generator.standard_normal(shape) * scale).astype(np.float32))


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if last == "running_var":
        return 0.5 + seeded(name, shape).abs()
    if len(shape) >= 2:
        return seeded(name, shape, float(1 / np.sqrt(np.prod(shape[1:]))))
    return seeded(name, shape, 0.1) + (1.0 if last == "weight" else 0.0)


def encoder_shapes(
    width: int = 256, hidden: int = 256, pattern: str = "ICICIN"
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "net.feat_proj.weight": (width, 1024, 1, 1),
        "net.feat_proj.bias": (width,),
    }
    for place, letter in enumerate(pattern):
        if letter == "N":
            continue
        kind = {"I": "inner", "C": "cross"}[letter]
        layer = f"net.encoder_blocks.{place // 2}.layer{place % 2 + 1}.{kind}_encoder_layer."
        shapes |= {
            f"{layer}self_attn.in_proj_weight": (3 * width, width),
            f"{layer}self_attn.in_proj_bias": (3 * width,),
            f"{layer}self_attn.out_proj.weight": (width, width),
            f"{layer}self_attn.out_proj.bias": (width,),
            f"{layer}linear1.weight": (hidden, width),
            f"{layer}linear1.bias": (hidden,),
            f"{layer}linear2.weight": (width, hidden),
            f"{layer}linear2.bias": (width,),
        }
        for norm in ("norm1", "norm2"):
            shapes |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
    shapes |= {"net.final_linear.weight": (3, width, 1, 1), "net.final_linear.bias": (3,)}
    return shapes


def encoder(**sizes: Any) -> dict[str, Tensor]:
    return {name: weight(name, shape) for name, shape in encoder_shapes(**sizes).items()}


@functools.cache
def _resnet() -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in ResNet(50).state_dict().items()}
    return {
        # Nobody reads layer4, and its numbers are two thirds of all.
        name: torch.zeros(shape) if name.startswith("layer4") else weight(name, tuple(shape))
        for name, shape in shapes.items()
    }


def resnet() -> dict[str, Tensor]:
    """A ResNet-50 under torchvision's names, without classifier."""
    return dict(_resnet())


def backbone() -> dict[str, Tensor]:
    """ResNet-50 to layer3 under the published names of a Sequential."""
    renamed = {}
    for name, tensor in resnet().items():
        first, _, rest = name.partition(".")
        if first == "layer4":
            continue
        renamed[f"{SEQUENTIAL[first]}.{rest}"] = tensor
    return renamed


def moco() -> dict[str, Any]:
    """MoCo-v2 as published: query and key encoder with their heads, and the queue."""
    state = {f"module.encoder_q.{name}": tensor for name, tensor in resnet().items()}
    for number, shape in (("0", (16, 2048)), ("2", (8, 16))):
        state[f"module.encoder_q.fc.{number}.weight"] = torch.zeros(shape)
        state[f"module.encoder_q.fc.{number}.bias"] = torch.zeros(shape[0])
    state |= {k.replace("encoder_q", "encoder_k"): v for k, v in state.items()}
    state |= {"module.queue": torch.zeros(8, 4), "module.queue_ptr": torch.zeros(1)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": state}
