# SPDX-License-Identifier: Apache-2.0
"""SegSwap: shared regions, where they lie, retrieval and discovery, from pairs of pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from patchword.errors import OptionError
from patchword.systems.segswap.checkpoint import load_backbone, load_network, save_network
from patchword.systems.segswap.config import PreprocessConfig, SegSwapConfig, make_config
from patchword.systems.segswap.convert import convert_file, from_published
from patchword.systems.segswap.inference import Ranked, Segswap
from patchword.systems.segswap.model import SegSwapNetwork
from patchword.systems.segswap.options import SegswapOptions, published_options

__all__ = [
    "PreprocessConfig",
    "Ranked",
    "SegSwapConfig",
    "SegSwapNetwork",
    "Segswap",
    "SegswapOptions",
    "convert_file",
    "from_published",
    "load",
    "load_backbone",
    "load_network",
    "make_config",
    "published_options",
    "save_network",
]


def load(
    checkpoint: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    compat: bool = False,
    normalisation: str | None = None,
    options: SegswapOptions | None = None,
    preprocess: PreprocessConfig | None = None,
) -> Segswap:
    """The system with weights, ready to match and to rank.

    Args:
        checkpoint: File of ``patchword convert segswap`` or ``patchword train segswap``; None for
            the weights that ship with the library.
        device: Where it runs; ``None`` for the CPU.
        compat: Follow the published code where it differs; ``options`` then must be None.
        normalisation: ``"segswap_eval"`` for what the published evaluation computes (trap T1).
        options: See :class:`SegswapOptions`.
        preprocess: How pictures are resized; None for what the weights were made for.

    Raises:
        CheckpointError: The weights are missing, damaged, or of another system.
        OptionError: Options contradict each other.
    """
    if compat and options is not None:
        raise OptionError(
            "load: compat and options exclude each other, got both. "
            "Pass options=published_options(...) instead."
        )
    if compat:
        options = published_options()
    network = load_network(checkpoint, device=device, normalisation=normalisation)
    return Segswap(network, options=options, preprocess=preprocess)
