# SPDX-License-Identifier: Apache-2.0
"""Golden outputs of the published code, and the seeded inputs that they were made from."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def seeded(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 numbers that depend on the name alone."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))


def golden(file: str, name: str) -> Tensor:
    """The stored array."""
    with np.load(FOLDER / f"{file}.npz") as arrays:
        return torch.from_numpy(arrays[name])
