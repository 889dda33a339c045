# SPDX-License-Identifier: Apache-2.0
"""CLIP weights by name from the Hugging Face hub, for users who are online and ask for it."""

from __future__ import annotations

from pathlib import Path

from patchword.backbones.clip.tokenizer import REMEDY
from patchword.errors import CheckpointError

OPENAI_NAMES = {
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
"""OpenAI's names of the supported models, and where their weights lie on the hub."""

_WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "pytorch_model.bin")
_CONFIGS = ("open_clip_config.json", "config.json")


def fetch(name: str) -> Path:
    """Path of a model's weights in the hub's cache, downloaded there if need be.

    Args:
        name: One of :data:`OPENAI_NAMES`, or ``owner/repository`` on the hub.

    Raises:
        CheckpointError: ``name`` is no file and no such name, huggingface-hub is missing, or the
            hub does not give the file.
    """
    repository = OPENAI_NAMES.get(name, name)
    parts = repository.split("/")
    if len(parts) != 2 or not all(parts) or repository.startswith((".", "~")):
        raise CheckpointError(
            f"load_clip: source must be a file, a name on the Hugging Face hub or one of "
            f"{', '.join(OPENAI_NAMES)}, got {name!r}."
        )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"load_clip: package huggingface-hub must be installed to load {name!r} by name, got "
            f"none. Run {REMEDY}."
        ) from error
    found: dict[str, Path] = {}
    unreachable: Exception | None = None
    for file_name in (*_CONFIGS, *_WEIGHTS):
        if any(known in found for known in _WEIGHTS):
            break
        try:
            found[file_name] = Path(hf_hub_download(repository, file_name))
        except LocalEntryNotFoundError as error:
            # Neither in the cache nor, without a network, to be had; another name may be cached.
            unreachable = error
        except EntryNotFoundError:
            continue
        # The client also raises errors of its transport and of the file system.
        except Exception as error:
            raise _unreachable(name, error) from error
    for file_name in _WEIGHTS:
        if file_name in found:
            return found[file_name]
    if unreachable is not None:
        raise _unreachable(name, unreachable) from unreachable
    raise CheckpointError(
        f"load_clip: {repository} must hold one of {', '.join(_WEIGHTS)}, got none."
    )


def _unreachable(name: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:160]
    return CheckpointError(
        f"load_clip: source must be a file or reachable on the Hugging Face hub, got {name!r} "
        f"({reason})."
    )
