# SPDX-License-Identifier: Apache-2.0
"""SegSwap's own weights files: which backbone, which sizes, how pictures are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchword.backbones import Backbone, create_backbone
from patchword.backbones.resnet import ResNet50Backbone
from patchword.backbones.weights import load_strictly
from patchword.errors import CheckpointError, OptionError
from patchword.inference.atomic import write_bytes
from patchword.nn.checkpoint import read_weights, weights_bytes
from patchword.nn.cross_transformer import CrossTransformerConfig
from patchword.systems.segswap.config import PreprocessConfig, SegSwapConfig
from patchword.systems.segswap.model import SegSwapNetwork

SYSTEM = "segswap"
_DEFAULT = ("assets", "segswap", "default.safetensors")


def save_network(
    path: str | Path,
    network: SegSwapNetwork,
    *,
    dtype: torch.dtype | None = None,
    header: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network as one file that :func:`load_network` reads, complete or not at all.

    The transformer is always in it, the backbone where no installable package carries it.

    Args:
        path: Ends in ``.safetensors``.
        network: Not folded.
        dtype: Type to store floating-point tensors in; None keeps theirs.
        header: JSON-ready facts to keep besides: data, licence, command, measured results.

    Raises:
        OutputError: The file cannot be written.
    """
    tensors = _trained(network.state_dict())
    if isinstance(network.backbone, ResNet50Backbone):
        state = network.backbone.network.state_dict()
        tensors |= {f"backbone.{name}": tensor for name, tensor in state.items()}
    if dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    about = {**(header or {}), "config": asdict(network.config)}
    return write_bytes(Path(path), weights_bytes(tensors, system=SYSTEM, header=about))


def save_backbone(path: str | Path, state: Mapping[str, Tensor]) -> Path:
    """Write ResNet-50 weights alone, for :func:`load_backbone`.

    Raises:
        OutputError: The file cannot be written.
    """
    tensors = {f"backbone.{name}": tensor for name, tensor in state.items()}
    about = {"config": {"backbone": ResNet50Backbone.name}}
    return write_bytes(Path(path), weights_bytes(tensors, system=SYSTEM, header=about))


def load_network(
    path: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    normalisation: str | None = None,
) -> SegSwapNetwork:
    """Read a network with its backbone, in evaluation mode.

    Args:
        path: File of :func:`save_network` or ``patchword convert segswap``; None for the default
            that ships with the library.
        device: Where it runs; ``None`` for the CPU.
        normalisation: Overrides the file's, see :class:`PreprocessConfig`.

    Raises:
        CheckpointError: The file is missing, damaged, for another system, or lacks the
            transformer; or the backbone's package is missing.
        OptionError: The normalisation does not suit the backbone.
    """
    path = default_weights() if path is None else Path(path)
    tensors, header = read_weights(path, system=SYSTEM)
    config = _config(path, header)
    if not any(name.startswith("transformer.") for name in tensors):
        raise CheckpointError(
            f"load_network: {path.name} must hold a transformer, got a backbone alone. "
            "It serves training: patchword train segswap."
        )
    wanted = normalisation or config.preprocess.normalisation
    backbone = _backbone(config.backbone, tensors, device, wanted)
    # The backbone has its own names in the file, so it joins after the trained part is checked.
    network = SegSwapNetwork(config)
    load_strictly(network, _trained(tensors), path.name)
    network.backbone = backbone
    return network.to(device or "cpu").eval()


def load_backbone(
    path: str | Path | None = None,
    *,
    name: str = "efficientnet-lite0",
    device: torch.device | str | None = None,
) -> Backbone:
    """Load a frozen backbone for training.

    Args:
        path: Converted MoCo or SegSwap file whose ResNet-50 is taken; None for a packaged one.
        name: Packaged backbone, without ``path``.
        device: Where it runs; ``None`` for the CPU.

    Raises:
        CheckpointError: The file is damaged, for another system or without a backbone.
        OptionError: The name is not known.
    """
    if path is None:
        return _backbone(name, {}, device, "correct")
    tensors, _ = read_weights(path, system=SYSTEM)
    return _backbone(ResNet50Backbone.name, tensors, device, "correct")


def default_weights() -> Path:
    """Path of the weights that ship with the library.

    Raises:
        CheckpointError: This installation has none.
    """
    path = Path(str(files("patchword").joinpath(*_DEFAULT)))
    if not path.is_file():
        raise CheckpointError(
            "load: segswap must come with its default weights, got an installation without "
            f"{'/'.join(_DEFAULT)}. Pass checkpoint=, or train one with patchword train segswap."
        )
    return path


def _trained(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors but the frozen backbone's."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.")}


def _config(path: Path, header: Mapping[str, Any]) -> SegSwapConfig:
    try:
        found = dict(header["config"])
        preprocess = dict(found.get("preprocess", {}))
        if "size" in preprocess:
            preprocess["size"] = tuple(int(side) for side in preprocess["size"])
        return SegSwapConfig(
            backbone=found["backbone"],
            transformer=CrossTransformerConfig(**found.get("transformer", {})),
            preprocess=PreprocessConfig(**preprocess),
            refiner=int(found.get("refiner", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"load_network: the header of {path.name} must describe a SegSwap network, "
            f"got one that does not ({reason})."
        ) from error


def _backbone(
    name: str,
    tensors: Mapping[str, Tensor],
    device: torch.device | str | None,
    normalisation: str,
) -> Backbone:
    if name == ResNet50Backbone.name:
        prefix = "backbone."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        return ResNet50Backbone(own, device, normalisation=normalisation)
    if normalisation != "correct":
        raise OptionError(
            f'load: normalisation must be "correct" for backbone {name}, got {normalisation!r}.'
        )
    return create_backbone(name, device)
