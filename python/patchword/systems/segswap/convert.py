# SPDX-License-Identifier: Apache-2.0
"""Published files to ours: SegSwap checkpoints and MoCo-v2 weights, each tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchword.backbones.resnet import ResNet, ResNet50Backbone
from patchword.backbones.weights import load_strictly
from patchword.data.io import printable
from patchword.errors import CheckpointError, OptionError
from patchword.nn.checkpoint import ConvertReport, load_untrusted
from patchword.nn.cross_transformer import CrossTransformerConfig
from patchword.systems.segswap.checkpoint import save_backbone, save_network
from patchword.systems.segswap.config import MODES, SegSwapConfig
from patchword.systems.segswap.model import SegSwapNetwork

# Children of the published Sequential that hold tensors (2 is the ReLU, 3 the pooling).
_BACKBONE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3"}
_RESNET = (*_BACKBONE.values(), "layer4", "fc")

_LAYER = re.compile(
    r"encoder_blocks\.(\d+)\.layer([12])\.(inner|cross)_encoder_layer\."
    r"(self_attn\.in_proj_|self_attn\.out_proj\.|linear1\.|linear2\.|norm1\.|norm2\.)(weight|bias)"
)
_LETTER = {"inner": "I", "cross": "C"}
_PART = {
    "self_attn.in_proj_": "qkv",
    "self_attn.out_proj.": "out",
    "linear1.": "widen",
    "linear2.": "narrow",
    "norm1.": "norm1",
    "norm2.": "norm2",
}
_ENDS = {
    "feat_proj.weight": "project.weight",
    "feat_proj.bias": "project.bias",
    "final_linear.weight": "head.weight",
    "final_linear.bias": "head.bias",
}
# The files do not say how many heads there are; each published width has its number.
_HEADS = {sizes["width"]: sizes["heads"] for sizes in MODES.values()}


@dataclass(frozen=True)
class Published:
    """What a published file holds, under our names.

    Attributes:
        kind: ``"segswap"``, ``"moco"`` (as MoCo publishes it) or ``"moco-converted"``.
        transformer: Tensors of :class:`CrossTransformer`, or None in a MoCo file.
        config: The transformer's sizes, or None in a MoCo file.
        backbone: Tensors of ResNet-50 up to ``layer3`` under torchvision's names, or None.
        ignored: Tensors that inference has no use for, by name.
    """

    kind: str
    transformer: dict[str, Tensor] | None
    config: CrossTransformerConfig | None
    backbone: dict[str, Tensor] | None
    ignored: tuple[str, ...]


def read_published(content: Any) -> Published:
    """Sort a published dictionary (or its ``encoder`` part alone) and rename its tensors.

    Raises:
        CheckpointError: It is none of the published kinds, or holds a tensor that cannot be placed.
    """
    if not isinstance(content, Mapping):
        raise _unknown(f"a {type(content).__name__}")
    if "encoder" in content:
        ignored = tuple(sorted(set(content) - {"encoder", "backbone", "optimiser"}))
        if ignored:
            raise _unknown(f"unexpected entry {ignored[0]!r} beside encoder")
        transformer, config = _transformer(_tensors(content["encoder"], "encoder"))
        backbone = content.get("backbone")
        if backbone is not None:
            backbone = _sequential(_tensors(backbone, "backbone"))
        ignored = ("optimiser",) if "optimiser" in content else ()
        return Published("segswap", transformer, config, backbone, ignored)
    if any(str(name).startswith("net.") for name in content):
        transformer, config = _transformer(_tensors(content, "encoder"))
        return Published("segswap", transformer, config, None, ())
    if "state_dict" in content:
        prefix = "module.encoder_q."
        state = _tensors(content["state_dict"], "state_dict")
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        others = [k for k in state if not k.startswith(prefix)]
        for name in others:
            if not name.startswith(("module.encoder_k.", "module.queue")):
                raise _unknown(f"unexpected tensor {name!r}")
        backbone, dropped = _torchvision(own)
        return Published("moco", None, None, backbone, (*others, *dropped))
    if "model" in content:
        backbone, dropped = _torchvision(_tensors(content["model"], "model"))
        return Published("moco-converted", None, None, backbone, dropped)
    raise _unknown(f"entries {', '.join(map(repr, list(content)[:4])) or 'none'}")


def _unknown(found: str) -> CheckpointError:
    return CheckpointError(
        "read_published: checkpoint must be SegSwap's {backbone, encoder} or MoCo-v2 weights of "
        f"ResNet-50, got {found}."
    )


def _tensors(part: Any, name: str) -> dict[str, Tensor]:
    if not isinstance(part, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in part.items()
    ):
        raise _unknown(f"a part {name!r} that is no table of tensors")
    return dict(part)


def _transformer(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], CrossTransformerConfig]:
    """Rename the 64 tensors of ``encoder`` and read the sizes off them."""
    letters: dict[tuple[int, int], str] = {}
    parts: list[tuple[tuple[int, int], str, Tensor]] = []
    renamed: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name = full.removeprefix("net.")
        if name in _ENDS:
            # 1 x 1 convolutions there, linear layers over tokens here.
            renamed[_ENDS[name]] = tensor.flatten(1) if tensor.ndim == 4 else tensor
            continue
        found = _LAYER.fullmatch(name)
        if found is None or not full.startswith("net."):
            raise _unknown(f"unexpected tensor {full!r} in encoder")
        place = int(found[1]), int(found[2]) - 1
        if letters.setdefault(place, _LETTER[found[3]]) != _LETTER[found[3]]:
            raise _unknown(f"two kinds of layer at {full!r}")
        parts.append((place, f"{_PART[found[4]]}.{found[5]}", tensor))
    pattern = "".join(
        letters.get((block, half), "N")
        for block in range(1 + max((block for block, _ in letters), default=0))
        for half in range(2)
    )
    numbers = _numbers(pattern)
    for place, name, tensor in parts:
        key = f"layers.{numbers[place]}.{name}"
        if key in renamed and not torch.equal(renamed[key], tensor):
            raise _unknown(f"block {place[0]} of twice the same letter with different weights")
        renamed[key] = tensor
    return renamed, _sizes(renamed, pattern)


def _numbers(pattern: str) -> dict[tuple[int, int], int]:
    """Which weights each place of the pattern uses, as ``CrossTransformerConfig.layers``."""
    places = [(i // 2, i % 2) for i, letter in enumerate(pattern) if letter != "N"]
    plan = CrossTransformerConfig(pattern=pattern).layers()
    return {place: number for place, (_, number) in zip(places, plan, strict=True)}


def _sizes(state: dict[str, Tensor], pattern: str) -> CrossTransformerConfig:
    project, widen = state.get("project.weight"), state.get("layers.0.widen.weight")
    if project is None or project.ndim != 2 or widen is None or widen.ndim != 2:
        raise _unknown("an encoder without feat_proj or without layers")
    width, channels = project.shape
    if width not in _HEADS:
        raise _unknown(f"an encoder of width {width}, not one of {sorted(_HEADS)}")
    return CrossTransformerConfig(
        channels=channels,
        width=width,
        heads=_HEADS[width],
        hidden=widen.shape[0],
        pattern=pattern,
    )


def _sequential(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the published Sequential to torchvision's."""
    renamed = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first not in _BACKBONE:
            raise _unknown(f"unexpected tensor {name!r} in backbone")
        renamed[f"{_BACKBONE[first]}.{rest}"] = tensor
    return renamed


def _torchvision(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Keep what lies before ``layer4``; the names of the rest."""
    kept, dropped = {}, []
    for name, tensor in state.items():
        first = name.partition(".")[0]
        if first not in _RESNET:
            raise _unknown(f"unexpected tensor {name!r}, which is none of a ResNet-50")
        if first in ("layer4", "fc"):
            dropped.append(name)
        else:
            kept[name] = tensor
    return kept, tuple(dropped)


def from_published(checkpoint: Any) -> SegSwapNetwork:
    """Build the network from a published dictionary, or from its ``encoder`` part alone.

    Args:
        checkpoint: What ``torch.load(path, weights_only=True)`` gives for a SegSwap checkpoint.

    Returns:
        The network in evaluation mode, with ``.cross_transformer(x, y, x_pad_mask, y_pad_mask)``
        and, where the dictionary has a backbone, ``.features(pixels)``.

    Raises:
        CheckpointError: It is something else, or a tensor is missing, superfluous or misshapen.
    """
    return network_of(read_published(checkpoint))


def network_of(published: Published) -> SegSwapNetwork:
    """Build the network that a published file describes; see :func:`from_published`."""
    if published.transformer is None or published.config is None:
        raise CheckpointError(
            "from_published: checkpoint must hold SegSwap's encoder, got MoCo weights alone. "
            "They are a backbone for training."
        )
    backbone = None if published.backbone is None else ResNet50Backbone(published.backbone)
    try:
        config = SegSwapConfig(transformer=published.config)
    except OptionError as error:
        raise CheckpointError(f"from_published: {error}") from error
    network = SegSwapNetwork(config, backbone)
    load_strictly(network.transformer, published.transformer, "from_published")
    return network.eval()


def convert_file(source: str | Path, target: str | Path) -> ConvertReport:
    """Turn a published file into one that ``load("segswap", checkpoint=...)`` reads.

    MoCo weights become a backbone file for training.

    Args:
        source: ``.pth`` or ``.pth.tar`` of SegSwap or MoCo-v2; opened without running any of it.
        target: Ends in ``.safetensors``.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or of another kind.
        OutputError: The result cannot be written.
    """
    path = Path(source)
    content = load_untrusted(path)
    published = read_published(content)
    if published.transformer is None:
        assert published.backbone is not None
        load_strictly(ResNet(50, stages=3), published.backbone, "convert")
        written = save_backbone(target, published.backbone)
    else:
        network = network_of(published)
        if network.backbone is None:
            raise CheckpointError(
                f"convert: {printable(path)} must hold a backbone beside its encoder, got none. "
                "Pass its dictionary to from_published to use the encoder alone."
            )
        written = save_network(target, network, header={"source": path.name})
    return ConvertReport(
        system="segswap",
        kind=published.kind,
        source=path,
        target=written,
        tensors=len(published.transformer or {}) + len(published.backbone or {}),
        ignored=published.ignored,
    )
