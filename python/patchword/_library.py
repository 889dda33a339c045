# SPDX-License-Identifier: Apache-2.0
"""The compiled module ``_C``, the torch.library namespace, and why either part may be missing.

torch is imported first on purpose: ``_C`` shares the OpenMP runtime that the process already has.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("patchword")
logger.addHandler(logging.NullHandler())

CPU, CUDA = 0, 1

# The same numbers as in kernels/common/types.h.
DTYPE_TAGS: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.uint8: 3,
    torch.int16: 4,
    torch.int32: 5,
    torch.int64: 6,
    torch.bool: 7,
}
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _load() -> tuple[ModuleType | None, str | None]:
    if os.environ.get("PATCHWORD_NATIVE", "1") == "0":
        return None, "the compiled module is switched off by PATCHWORD_NATIVE=0"
    if find_spec("patchword._C") is None:
        return None, "the compiled module patchword._C is not part of this installation"
    try:
        module = import_module("patchword._C")
    except Exception as error:  # a module built for another Python or system fails in many ways
        return None, f"the compiled module patchword._C cannot be loaded ({error})"
    level = os.environ.get("PATCHWORD_CPU_LEVEL", "auto")
    refusal = module.force_cpu_level(level)
    if refusal is not None:
        raise ValueError(f"patchword: PATCHWORD_CPU_LEVEL={level} cannot be used: {refusal}.")
    return module, None


# The compiled module, or None and the reason. Typed Any: its functions take plain integers.
_module, missing_reason = _load()
C: Any = _module

LIBRARY = torch.library.Library("patchword", "DEF")

# True inside simulate_cuda(): tensors on the CPU are then handed to the CUDA entry points.
_simulating = False
_cuda_tried = False
_cuda_reason: str | None = None


# What ops found out about calls under the settings in force: which backend runs, by which route.
plans: dict[Any, Any] = {}


def settings_changed() -> None:
    """Forget what was found out under settings that were in force until now.

    In a new dictionary: who is still finding out under the old ones enters it into the old one.
    """
    global plans  # noqa: PLW0603 - one per process, like the settings
    plans = {}


def register(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define ``patchword::<schema>`` for CPU and CUDA and return the callable op.

    Args:
        schema: Operator schema with a fixed number of outputs.
        implementation: Allocates the outputs and calls ``_C``.
        fake: Same signature; allocates outputs without touching data.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, implementation, "CPU")
    LIBRARY.impl(name, _on_device_of_first_tensor(implementation), "CUDA")
    torch.library.register_fake(f"patchword::{name}", fake, lib=LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.patchword, name).default
    return op


def _on_device_of_first_tensor(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap so that kernels launch on the tensors' own device when it is not the current one."""

    @functools.wraps(implementation)
    def guarded(*args: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        if device.index == torch.cuda.current_device():
            return implementation(*args)
        with torch.cuda.device(device):
            return implementation(*args)

    return guarded


# Bound once: a tiny call asks all of them.
_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_deterministic = torch.are_deterministic_algorithms_enabled
_Parameter = torch.nn.Parameter


def watched() -> bool:
    """Whether a trace, mode or transform has to see what is called now."""
    if _is_compiling() or _dispatch_modes() or _function_modes():
        return True
    return _transforms() is not None


def plain_eager(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher can be skipped: no gradient, trace, mode or tensor subclass."""
    if watched():
        return False
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        kind = type(tensor)
        if kind is not Tensor and kind is not _Parameter:
            return False
        if grad and tensor.requires_grad:
            return False
        if not (tensor.is_cpu or _on_current_gpu(tensor)):
            return False
    return True


def _on_current_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.get_device() == torch.cuda.current_device()


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd has to see this call."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def address(tensor: Tensor | None) -> int:
    """Where the elements of a tensor begin; 0 for a tensor that is absent."""
    return 0 if tensor is None else tensor.data_ptr()


# Below so many bytes memory is not looked after; the core decides.
_HUGE_PAGES_FROM: int = 1 << 62 if C is None else C.huge_pages_from


def written(tensor: Tensor | None) -> int:
    """As :func:`address`, of dense memory that a CPU kernel is about to fill: in huge pages.

    A page of 4 KiB that is touched for the first time costs more than filling it does.
    """
    if tensor is None:
        return 0
    at = tensor.data_ptr()
    if tensor.nbytes >= _HUGE_PAGES_FROM and tensor.is_cpu:
        C.expect_writes(at, tensor.nbytes)
    return at


def runtime(tensor: Tensor) -> tuple[int, int, int]:
    """Device tag, CUDA stream handle and CPU thread count for work on ``tensor``."""
    if tensor.is_cuda:
        return CUDA, torch.cuda.current_stream(tensor.device).cuda_stream, 1
    if _simulating:
        return CUDA, 0, 1
    return CPU, 0, torch.get_num_threads()


def on_cpu(tensor: Tensor) -> bool:
    """Whether the CPU kernels would run for this tensor."""
    return tensor.is_cpu and not _simulating


class _Scratch(threading.local):
    """Scratch memory of one thread that outlives the call."""

    memory: Tensor | None = None
    address = 0
    size = 0


_scratch = _Scratch()
# More than this is given back after the call.
_KEPT_BYTES = 1 << 22


def launch(entry: Callable[..., int], like: Tensor, *arguments: Any) -> None:
    """Run an entry of ``_C`` on the device of ``like``, with the scratch memory that it wants.

    Args:
        entry: ``entry((device, stream, threads, scratch, scratch_bytes), *arguments)``. Returns 0
            when the work is done or queued, else the bytes of scratch to be called again with.
        like: Tells the device.
        arguments: What follows; tensors behind addresses in it must be kept by the caller.
    """
    # What a GPU still works with belongs to its stream, whose allocator is the one that keeps; and
    # torch's deterministic mode wants fresh memory, which it fills so that nobody reads it unseen.
    keeps = like.is_cpu and not _simulating and not _deterministic()
    if keeps:
        where = CPU, 0, torch.get_num_threads(), _scratch.address, _scratch.size
    else:
        where = (*runtime(like), 0, 0)
    needed = entry(where, *arguments)
    if needed == 0:
        return
    memory = torch.empty(needed, dtype=torch.uint8, device=like.device)
    if keeps and needed <= _KEPT_BYTES:
        _scratch.memory, _scratch.address, _scratch.size = memory, memory.data_ptr(), needed
    entry((*where[:3], written(memory), needed), *arguments)


def refuse_device(tensor: Tensor) -> str | None:
    """Why the compiled kernels cannot work on this tensor's device, or None."""
    if C is None or tensor.is_cpu or tensor.is_meta:
        return missing_reason
    if tensor.is_cuda:
        return cuda_reason()
    return f"there are no compiled kernels for device type {tensor.device.type!r}"


def refuse_dtype(*tensors: Tensor | None) -> str | None:
    """Why the compiled kernels cannot read these element types, or None."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype not in FLOAT_DTYPES:
            return (
                f"dtype {str(tensor.dtype).removeprefix('torch.')} is not float32/float16/bfloat16"
            )
    return None


def cuda_library_path() -> Path | None:
    """Where the CUDA library lies, or None when this build has none."""
    if C is None:
        return None
    path = Path(C.__file__).with_name("libpatchword_cuda.so")
    return path if path.exists() else None


def cuda_reason() -> str | None:
    """Load the CUDA library on first use; why that is impossible, or None."""
    global _cuda_tried, _cuda_reason  # noqa: PLW0603 - one library per process
    if C is None:
        return missing_reason
    if not _cuda_tried:
        _cuda_tried = True
        path = cuda_library_path()
        if path is None:
            _cuda_reason = f"this build has no CUDA kernels: {C.build_info()['cuda']}"
        else:
            refusal = C.load_cuda_library(str(path))
            _cuda_reason = None if refusal is None else f"{path.name} cannot be loaded ({refusal})"
    return _cuda_reason


@contextlib.contextmanager
def simulate_cuda(library: str | Path) -> Iterator[None]:
    """Run the CUDA kernels on CPU tensors through a library built for the CPU execution layer.

    For tests: ``library`` is ``libpatchword_simt.so`` (see ``kernels/common/SIMT.md``).
    """
    global _simulating, _cuda_tried  # noqa: PLW0603 - restored on exit
    if C is None:
        raise RuntimeError(f"simulate_cuda: needs the compiled module: {missing_reason}.")
    refusal = C.load_cuda_library(str(library))
    if refusal is not None:
        raise RuntimeError(f"simulate_cuda: {library} cannot be loaded: {refusal}.")
    _simulating = True
    settings_changed()
    try:
        yield
    finally:
        _simulating = False
        _cuda_tried = False
        settings_changed()
        C.unload_cuda_library()


@contextlib.contextmanager
def cpu_level(name: str) -> Iterator[None]:
    """Force a CPU level for a while; the names are those of ``PATCHWORD_CPU_LEVEL``."""
    if C is None:
        raise RuntimeError(f"cpu_level: needs the compiled module: {missing_reason}.")
    before = C.cpu_level()
    refusal = C.force_cpu_level(name)
    if refusal is not None:
        raise ValueError(f"cpu_level: {name} cannot be used: {refusal}.")
    settings_changed()
    try:
        yield
    finally:
        C.force_cpu_level(before)
        settings_changed()
