# SPDX-License-Identifier: Apache-2.0
"""The published checkpoint's 407 tensors under our names, and our own file of weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchword.backbones.clip.checkpoint import check_names, read_tensors, strip_prefix
from patchword.backbones.clip.config import infer_config
from patchword.data.io import printable
from patchword.errors import CheckpointError
from patchword.inference.atomic import write_bytes
from patchword.nn.checkpoint import ConvertReport, read_weights, weights_bytes
from patchword.systems.sketchseg.config import (
    SketchSegConfig,
    config_from_json,
    config_to_json,
)
from patchword.systems.sketchseg.model import SketchSegModel

SYSTEM, KIND = "sketchseg", "clip"

_ADAPTER = "visual.transformer.ca."
_PROMPTS = "visual.prompt_embeddings"
_ALIAS = "visual.attn."
# The adapter holds three clones of its layer, of which only layer2 runs; the text transformer owns
# a whole adapter that never runs; the scale of CLIP's logits has no use here.
_UNUSED = re.compile(
    r"transformer\.ca\..+|visual\.transformer\.ca\.encoder\.(layers\.0|layer1\.0)\..+|logit_scale"
)
_SURGERY = {
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj.weight": "attn.out_proj.weight",
    "attn.proj.bias": "attn.out_proj.bias",
}
_ADAPTER_PARTS = {
    "text_projection": "text",
    **{
        f"encoder.layer2.0.self_attn.linears.{index}": name
        for index, name in enumerate(("query", "key", "value", "out"))
    },
    "encoder.layer2.0.feed_forward.w_1": "expand",
    "encoder.layer2.0.feed_forward.w_2": "contract",
}
_NORM = re.compile(r"encoder\.layer2\.0\.sublayer\.([01])\.norm\.([ab])")


def from_published(state: Mapping[str, Tensor]) -> SketchSegModel:
    """Build the network from the published checkpoint.

    Args:
        state: Its 407 tensors, with or without ``module.`` before each name. Blocks 7 to 12 may
            keep CLIP's own attention names, as checkpoints of the published trainer do.

    Returns:
        The model in evaluation mode, float32, without gradients.

    Raises:
        CheckpointError: A tensor is missing, not known, of another size, or the second name of
            one attention holds other values than the first.
    """
    plain = strip_prefix(state)
    if _PROMPTS not in plain or f"{_ADAPTER}text_projection.weight" not in plain:
        raise CheckpointError(
            "from_published: checkpoint must be of the sketch network, got one without "
            f"{_PROMPTS} and {_ADAPTER}*. Give patchword.backbones.clip a plain CLIP instead."
        )
    _check_alias(plain)
    named = {_own_name(name): tensor for name, tensor in plain.items() if not _is_unused(name)}
    clip = infer_config(
        {name: t for name, t in plain.items() if ".ca." not in name and name != _PROMPTS}
    )
    config = SketchSegConfig(
        clip=clip,
        prompts=plain[_PROMPTS].shape[1],
        adapter_hidden=len(named["adapter.expand.bias"]) if "adapter.expand.bias" in named else 1,
    )
    return _filled(config, named, "from_published")


def to_published(model: SketchSegModel) -> dict[str, Tensor]:
    """The tensors of a model under the published names, without those that nothing reads."""
    published = {}
    for name, tensor in model.state_dict().items():
        published[_published_name(name, model.config.dual_start)] = tensor
    return published


def save_model(model: SketchSegModel, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model as safetensors with its sizes inside.

    Args:
        model: Any sketch network.
        path: Where; the file appears whole or not at all.
        dtype: float16 or bfloat16 halves the file.

    Raises:
        OutputError: The file cannot be written.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    header = {"kind": KIND, "config": config_to_json(model.config)}
    return write_bytes(path, weights_bytes(tensors, system=SYSTEM, header=header))


def load_model(path: Path) -> SketchSegModel:
    """Read a model from our own file or from the published checkpoint.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe or of another network.
    """
    if "system" not in read_notes(path):
        return from_published(read_tensors(path))
    tensors, notes = read_weights(path, system=SYSTEM)
    if notes.get("kind") != KIND or "config" not in notes:
        raise CheckpointError(
            f"load_model: {printable(path)} must be of kind {KIND!r}, got {notes.get('kind')!r}."
        )
    return _filled(config_from_json(notes["config"]), tensors, "load_model")


def convert_file(source: str | Path, target: str | Path) -> ConvertReport:
    """Turn the published checkpoint into a file that ``load("sketchseg", checkpoint=...)`` reads.

    Args:
        source: ``.pth`` or ``.safetensors``; opened without running any of it.
        target: Ends in ``.safetensors``.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe or of another network.
        OutputError: The result cannot be written.
    """
    path = Path(source)
    tensors = read_tensors(path)
    model = from_published(tensors)
    ignored = [name for name in strip_prefix(tensors) if _is_unused(name)]
    return ConvertReport(
        system=SYSTEM,
        kind=KIND,
        source=path,
        target=save_model(model, Path(target)),
        tensors=len(tensors) - len(ignored),
        ignored=tuple(ignored),
    )


def read_notes(path: Path) -> dict[str, Any]:
    """Header of a file of this library; empty for any other file.

    Raises:
        CheckpointError: The file cannot be read.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("patchword", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"load_model: {printable(path)} must be a whole safetensors file, got: {reason}."
        ) from error
    return header if isinstance(header, dict) else {}


def _filled(config: SketchSegConfig, named: Mapping[str, Tensor], where: str) -> SketchSegModel:
    with torch.device("meta"):
        model = SketchSegModel(config)
    wanted = model.state_dict()
    check_names(where, named, wanted)
    own = {name: named[name].reshape(wanted[name].shape).float() for name in wanted}
    model.load_state_dict(own, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _is_unused(name: str) -> bool:
    return _UNUSED.fullmatch(name) is not None or name.startswith(_ALIAS)


def _check_alias(state: Mapping[str, Tensor]) -> None:
    """The published model kept a second name for the attention of block 7."""
    for name in [name for name in state if name.startswith(_ALIAS)]:
        part = name.removeprefix(_ALIAS)
        twin = f"visual.transformer.resblocks.6.attn.{part}"
        if twin not in state or not torch.equal(state[name], state[twin]):
            raise CheckpointError(
                f"from_published: {name} must equal {twin}, got other values. The file was "
                "changed by hand or is damaged."
            )


def _own_name(name: str) -> str:
    if name == _PROMPTS:
        return "prompts"
    if name.startswith(_ADAPTER):
        rest = name.removeprefix(_ADAPTER)
        norm = _NORM.fullmatch(rest)
        if norm is not None:
            return f"adapter.norm{norm[1]}.{'gain' if norm[2] == 'a' else 'bias'}"
        part, _, kind = rest.rpartition(".")
        return f"adapter.{_ADAPTER_PARTS.get(part, part)}.{kind}"
    for old, new in _SURGERY.items():
        if name.endswith(f".{old}"):
            name = name.removesuffix(old) + new
    return name if name.startswith("visual.") else f"text.{name}"


def _published_name(name: str, dual_start: int) -> str:
    if name == "prompts":
        return _PROMPTS
    if name.startswith("adapter."):
        _, part, kind = name.split(".")
        if part.startswith("norm"):
            letter = "a" if kind == "gain" else "b"
            return f"{_ADAPTER}encoder.layer2.0.sublayer.{part[-1]}.norm.{letter}"
        inverse = {ours: theirs for theirs, ours in _ADAPTER_PARTS.items()}
        return f"{_ADAPTER}{inverse[part]}.{kind}"
    block = re.match(r"visual\.transformer\.resblocks\.(\d+)\.", name)
    if block is not None and int(block[1]) + 1 >= dual_start:
        for old, new in _SURGERY.items():
            if name.endswith(f".{new}"):
                return name.removesuffix(new) + old
    return name.removeprefix("text.")
