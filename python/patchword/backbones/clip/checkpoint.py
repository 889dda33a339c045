# SPDX-License-Identifier: Apache-2.0
"""CLIP checkpoints in the layouts of OpenAI, open_clip and Hugging Face, read without running them.

Every tensor of a file is used or is one that this module names as known and unused; anything else
is refused.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from patchword.backbones.clip.archive import is_torchscript, read_torchscript
from patchword.backbones.clip.config import infer_config
from patchword.backbones.clip.layers import Activation
from patchword.backbones.clip.model import Clip
from patchword.data.io import printable
from patchword.errors import CheckpointError, OptionError

logger = logging.getLogger(__name__)

# Sizes that OpenAI's archives carry beside their weights: with them, the activation is known.
_OPENAI_SIZES = frozenset({"input_resolution", "context_length", "vocab_size"})
# A constant mask and constant indices that some savers wrote as buffers.
_CONSTANTS = frozenset(
    {
        "attn_mask",
        "text_model.embeddings.position_ids",
        "vision_model.embeddings.position_ids",
    }
)
_HF_MARK = "text_model.embeddings.token_embedding.weight"
_HF_NAMES = {
    "logit_scale": "logit_scale",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    _HF_MARK: "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
}
_HF_NORMS = {
    "text_model.final_layer_norm": "ln_final",
    "vision_model.pre_layrnorm": "visual.ln_pre",  # spelt so in every published file
    "vision_model.post_layernorm": "visual.ln_post",
}
_HF_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_HF_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_HF_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def clip_from_state_dict(state: Mapping[str, Tensor], activation: Activation | None = None) -> Clip:
    """Build both towers from a checkpoint's tensors in any of the known layouts.

    Args:
        state: Tensors by name; 16-bit ones become float32.
        activation: Of the feed-forward parts. By default ``"quick_gelu"``, that of OpenAI's
            weights; several of open_clip's were trained with ``"gelu"``, which no shape shows.

    Returns:
        The model in evaluation mode, without gradients.

    Raises:
        CheckpointError: A tensor is missing, not known, or of another size.
    """
    if activation not in (None, "quick_gelu", "gelu"):
        raise OptionError(
            f"clip_from_state_dict: activation must be quick_gelu or gelu, got {activation!r}."
        )
    named = to_openai_names(state)
    model = Clip(infer_config(named, activation or "quick_gelu"))
    model.load_state_dict(_own_names(named, model), strict=True, assign=True)
    return model.eval().requires_grad_(False)


def to_openai_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a checkpoint's tensors OpenAI's names, known constants left out.

    Raises:
        CheckpointError: A name belongs to none of the layouts.
    """
    plain = strip_prefix(state)
    kept = {
        name: tensor
        for name, tensor in plain.items()
        if name not in _CONSTANTS and name not in _OPENAI_SIZES
    }
    if _HF_MARK in kept:
        return _from_hugging_face(kept)
    if "text.token_embedding.weight" in kept:
        # open_clip's form with the text tower as a module of its own.
        return {name.removeprefix("text."): tensor for name, tensor in kept.items()}
    return kept


def strip_prefix(state: Mapping[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """Drop what data-parallel training puts before names, if it is before every one of them."""
    if state and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def load_clip(
    source: str | Path,
    *,
    activation: Activation | None = None,
    device: torch.device | str | None = None,
) -> Clip:
    """Load CLIP's towers from a file, or by name from the Hugging Face hub when online.

    Args:
        source: A file: OpenAI's archive (which is read, not run) or state dict, open_clip's or
            Hugging Face's safetensors or state dict. A name that is no file, such as
            ``"openai/clip-vit-base-patch16"``, is looked up in the hub's cache and on the hub.
        activation: See :func:`clip_from_state_dict`; by default as a ``config.json`` or
            ``open_clip_config.json`` beside the weights says.
        device: Where the model goes; ``None`` for the CPU.

    Returns:
        The model in evaluation mode, float32, without gradients.

    Raises:
        CheckpointError: The file is missing, unsafe, no CLIP with a vision transformer, or the hub
            cannot be reached.

    Example:
        >>> model = load_clip("ViT-B-16.pt")  # doctest: +SKIP
    """
    path = Path(source)
    if not path.is_file():
        from patchword.backbones.clip.hub import fetch

        path = fetch(str(source))
    state = read_tensors(path)
    chosen = activation if activation is not None else _stated_activation(path, state)
    return clip_from_state_dict(state, chosen).to("cpu" if device is None else device)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, a TorchScript archive or a torch state dict.

    Raises:
        CheckpointError: The file is missing, damaged, or holds anything but tensors.
    """
    name = printable(path)
    if not path.is_file():
        raise CheckpointError(f"read_tensors: {name} must be a file of weights, got none.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            return read_torchscript(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except SafetensorError as error:
        raise CheckpointError(f"read_tensors: {name} is damaged: {error}.") from error
    # torch answers damaged and unsafe files with several exception types and long texts.
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(
            f"read_tensors: {name} must be a file of weights only, got {reason}."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(
            f"read_tensors: {name} must hold a table of tensors, got {type(loaded).__name__}."
        )
    return {str(key): value for key, value in loaded.items()}


def _stated_activation(path: Path, state: Mapping[str, Tensor]) -> Activation:
    """What the configuration beside a file says; OpenAI's own where the file is plainly theirs."""
    for file_name in ("config.json", "open_clip_config.json"):
        try:
            notes = json.loads((path.parent / file_name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        stated = _activation_in(notes)
        if stated is not None:
            return stated
    if not _OPENAI_SIZES & set(state) and path.suffix == ".safetensors":
        logger.warning(
            "load_clip: %s does not say its activation; quick_gelu is used. Pass activation= if "
            "it was trained with gelu.",
            printable(path),
        )
    return "quick_gelu"


def _activation_in(notes: Any) -> Activation | None:
    if not isinstance(notes, dict):
        return None
    model = notes.get("model_cfg")
    if isinstance(model, dict):
        return "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    stated = [notes.get(part, {}).get("hidden_act") for part in ("text_config", "vision_config")]
    # Hugging Face writes only what differs from its default, which is quick_gelu.
    return "gelu" if "gelu" in stated else "quick_gelu"


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _HF_BLOCK.fullmatch(name)
        head, _, last = name.rpartition(".")
        if name in _HF_NAMES:
            target = _HF_NAMES[name]
            transposed = target in ("visual.proj", "text_projection")
            named[target] = tensor.T.contiguous() if transposed else tensor
        elif head in _HF_NORMS:
            named[f"{_HF_NORMS[head]}.{last}"] = tensor
        elif block is not None and block[3] in _HF_PARTS:
            named[f"{_openai_block(block)}.{_HF_PARTS[block[3]]}.{block[4]}"] = tensor
        elif block is not None and block[3] in _HF_PROJECTIONS:
            if block[3] != _HF_PROJECTIONS[0]:
                continue
            parts = [name.replace(_HF_PROJECTIONS[0], part) for part in _HF_PROJECTIONS]
            if not all(part in state for part in parts):
                raise CheckpointError(f"load_clip: {name} must come with its k_proj and v_proj.")
            fused = torch.cat([state[part] for part in parts])
            named[f"{_openai_block(block)}.attn.in_proj_{block[4]}"] = fused
        else:
            # Kept under its own name: the strict load reports it among the unknown ones.
            named[name] = tensor
    return named


def _openai_block(match: re.Match[str]) -> str:
    tower = "visual." if match[1] == "vision" else ""
    return f"{tower}transformer.resblocks.{match[2]}"


def _own_names(named: Mapping[str, Tensor], model: Clip) -> dict[str, Tensor]:
    """Names of :class:`Clip` for OpenAI's, every tensor float32 and of the right size."""
    wanted = model.state_dict()
    own = {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": tensor
        for name, tensor in named.items()
    }
    check_names("load_clip", own, wanted)
    return {name: tensor.reshape(wanted[name].shape).float() for name, tensor in own.items()}


def check_names(where: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are missing, not known, or of another size.

    Raises:
        CheckpointError: With the first of them and how many there are.
    """

    def refuse(rule: str, got: str, names: list[str]) -> None:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{where}: checkpoint must {rule}, got {got} {names[0]}{more}.")

    refuse("hold every tensor of the model", "none called", [n for n in wanted if n not in given])
    refuse("hold only tensors of the model", "also", [n for n in given if n not in wanted])
    sizes = [n for n in wanted if given[n].numel() != wanted[n].numel()]
    refuse("fit the model's sizes", "another size of", sizes)
