# SPDX-License-Identifier: Apache-2.0
"""A serial-in-time SRU kernel in Triton: what the published kernel does, where it is absent."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import NotAvailable, Run
from benchmarks.registry import Inputs

BLOCK = 128


def _walk(kernel: Any, *tensors: Tensor) -> Tensor:
    gates, highway = tensors[0], tensors[3]
    steps, batch, _, units = gates.shape
    out = torch.empty_like(highway)
    grid = ((units + BLOCK - 1) // BLOCK, batch)
    kernel[grid](*tensors, out, steps, batch, units, BLOCK=BLOCK)
    return out


def serial(inputs: Inputs) -> Run:
    """One thread per unit, step after step, nothing fetched ahead."""
    try:
        kernel = import_module("benchmarks.peers.serial_sru_kernel").walk
    except ImportError as error:
        raise NotAvailable(f"triton does not import: {error}") from error
    names = ("gates", "bias", "weight", "highway")
    return partial(_walk, kernel, *(inputs[name].contiguous() for name in names))
