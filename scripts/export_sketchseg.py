# SPDX-License-Identifier: Apache-2.0
"""Writes the shipped sketch weights from a checkpoint that ``patchword train sketchseg`` left."""

from __future__ import annotations

import argparse
from pathlib import Path

from patchword.systems.sketchseg.small_encoder import default_weights, load_small, save_small

METADATA = {
    "title": "patchword default sketch segmentation, small network",
    "license": "Apache-2.0",
    "data": (
        "The Quick, Draw! Dataset, made available by Google, Inc., CC BY 4.0; scaled, lines "
        "simplified, and composed into scenes"
    ),
    "backbone": "initialised from EfficientNet-Lite0, ImageNet-1k, Apache-2.0",
    "text": "words are projected from all-MiniLM-L6-v2 sentence vectors, Apache-2.0",
    "input": {"longest_side": 224, "multiple": 32, "stride": 8, "ink": "luma < 128"},
}


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="model.safetensors of the run")
    parser.add_argument("command", help="the command that trained it, for the header")
    parser.add_argument("--output", type=Path, default=default_weights())
    arguments = parser.parse_args()
    metadata = {**METADATA, "command": arguments.command}
    path = save_small(load_small(arguments.checkpoint), arguments.output, metadata)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
