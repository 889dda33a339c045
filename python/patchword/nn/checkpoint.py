# SPDX-License-Identifier: Apache-2.0
"""Weights files: our safetensors with a header that says what they are; published ones, safely."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from patchword import __version__
from patchword.data.io import printable
from patchword.errors import CheckpointError

FORMAT_VERSION = 1
# Name of the header's one entry; its value is JSON.
_ENTRY = "patchword"


def weights_bytes(
    tensors: Mapping[str, Tensor], *, system: str, header: Mapping[str, Any]
) -> bytes:
    """Encode weights as a file of this library.

    Args:
        tensors: By name; kept in their type.
        system: Name of the system they belong to.
        header: JSON-ready: configuration, preprocessing, sources, licence.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {**header, "format": FORMAT_VERSION, "system": system, "patchword": __version__}
    return save(plain, {_ENTRY: json.dumps(about, sort_keys=True)})


def read_weights(path: str | Path, *, system: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that :func:`weights_bytes` made.

    Args:
        path: The file.
        system: The system that it must belong to.

    Returns:
        The tensors by name, on the CPU, and the header.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind or for another system.
    """
    name = printable(path)
    try:
        with safe_open(path, "pt") as file:
            header = _header(file.metadata(), name, system)
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"read_weights: {name}: there is no such file.") from error
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"read_weights: {name} must be a whole safetensors file, got {reason}. "
            f"A published .pth file goes through patchword convert {system} first."
        ) from error


def _header(metadata: dict[str, str] | None, name: str, system: str) -> dict[str, Any]:
    try:
        header = json.loads((metadata or {})[_ENTRY])
        found, version = str(header["system"]), int(header["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"read_weights: {name} must have been written by patchword, got a safetensors file "
            "without its header."
        ) from error
    if found != system:
        raise CheckpointError(f'read_weights: {name} is for system "{found}", not "{system}".')
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"read_weights: {name} must have format {FORMAT_VERSION} or older, got {version}. "
            "Install a newer patchword."
        )
    return dict(header)


@dataclass(frozen=True)
class ConvertReport:
    """What became of a published file.

    Attributes:
        system: Name of the system.
        kind: What the file was.
        source: The published file.
        target: The file that was written.
        tensors: How many tensors were taken over.
        ignored: Names of those that have no use here.
    """

    system: str
    kind: str
    source: Path
    target: Path
    tensors: int
    ignored: tuple[str, ...] = ()


def load_untrusted(path: str | Path) -> Any:
    """Read a file of ``torch.save`` that may come from anywhere: tensors and plain containers.

    Raises:
        CheckpointError: The file is missing, damaged, or wants to run code of its own.
    """
    name = printable(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"load_untrusted: {name}: there is no such file.") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|global (\S+)", str(error))
        wanted = (found[1] or found[2]) if found else "something that is neither tensor nor list"
        raise CheckpointError(
            f"load_untrusted: {name} must hold tensors and plain containers alone, got "
            f"{wanted}. It was not run."
        ) from error
    # Damaged archives fail in as many ways as there are bytes in them.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"load_untrusted: {name} must be a whole file of torch.save, got {reason}."
        ) from error
