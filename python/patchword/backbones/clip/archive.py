# SPDX-License-Identifier: Apache-2.0
"""Tensors of a TorchScript archive, read without running or compiling the program inside it.

``torch.jit.load`` compiles the archive's code, and unpickling its ``data.pkl`` freely may call
anything. Here the pickle may name only what rebuilds tensors; every scripted class becomes an inert
holder of attributes, of which tensors are kept under their dotted names.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchword.data.io import printable
from patchword.errors import CheckpointError

_STORAGE_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# A real archive nests modules about five deep; a crafted one could nest without end.
_MAX_DEPTH = 64


class _Scripted:
    """Stands for an instance of any scripted class."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    """Knows tensors, their storages, typed lists and scripted classes, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Scripted
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _first
        if module == "torch.jit._pickle":
            return _first
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage record is malformed")
        if key not in self._storages:
            content = self._archive.read(f"{self._root}/data/{key}")
            if len(content) < count * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} is shorter than it says")
            self._storages[key] = (
                torch.frombuffer(bytearray(content), dtype=dtype, count=count)
                if count
                else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    # as_strided itself refuses sizes and strides that leave the storage.
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip archive with compiled code, as ``torch.jit.save`` writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the module in a TorchScript archive, by dotted name.

    Raises:
        CheckpointError: The archive is damaged, or its pickle names anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [n.removesuffix("/data.pkl") for n in archive.namelist() if "/data.pkl" in n]
            if len(roots) != 1:
                raise pickle.UnpicklingError("it has no single data.pkl")
            module = _Unpickler(archive, roots[0]).load()
        tensors: dict[str, Tensor] = {}
        _collect(module, "", tensors, 0)
    # A damaged pickle can fail with nearly any exception type.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"read_torchscript: {printable(path)} must be an archive of weights, got one that "
            f"cannot be read safely: {reason}."
        ) from error
    return tensors


def _collect(value: Any, prefix: str, tensors: dict[str, Tensor], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise pickle.UnpicklingError("its modules nest without end")
    if isinstance(value, Tensor):
        tensors[prefix] = value
    elif isinstance(value, _Scripted):
        for name, inner in value.__dict__.get("attributes", {}).items():
            _collect(inner, f"{prefix}.{name}" if prefix else str(name), tensors, depth + 1)
