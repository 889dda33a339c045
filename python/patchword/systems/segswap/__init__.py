# SPDX-License-Identifier: Apache-2.0
"""SegSwap: shared regions, where they lie, retrieval and discovery, from pairs of pictures."""

from __future__ import annotations

from patchword.systems.segswap.checkpoint import load_backbone, load_network, save_network
from patchword.systems.segswap.config import PreprocessConfig, SegSwapConfig, make_config
from patchword.systems.segswap.convert import from_published
from patchword.systems.segswap.model import SegSwapNetwork

__all__ = [
    "PreprocessConfig",
    "SegSwapConfig",
    "SegSwapNetwork",
    "from_published",
    "load_backbone",
    "load_network",
    "make_config",
    "save_network",
]
