# SPDX-License-Identifier: Apache-2.0
"""Rows of top and bottom means, joint label counts and folded heat maps."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.accuracy import CountsGate, HeatGate, PoolGate
from benchmarks.ops import _ours
from benchmarks.peers import eager, pooling
from benchmarks.registry import Inputs, OwnBuild, Peer, Row, Target

BOTH = ("cpu", "cuda")
BATCH, CHANNELS, SIDE = 16, 2400, 14
CLASSES, IMAGES, HEIGHT, WIDTH = 11, 8, 400, 534
TEXTS, UNITS, TOP, GRID = 50, 2400, 180, 13


def pooling_inputs(small: bool, *, k_max: int, k_min: int) -> Inputs:
    """Return random maps [16,2400,14,14]."""
    generator = torch.Generator().manual_seed(7)
    channels = 40 if small else CHANNELS
    maps = torch.randn(BATCH, channels, SIDE, SIDE, generator=generator)
    return {"maps": maps, "k_max": k_max, "k_min": k_min}


def pooling_gate(gradient: bool, inputs: Inputs) -> PoolGate:
    """Return the gate of a pooling row."""
    return PoolGate(inputs["maps"], inputs["k_max"], inputs["k_min"], gradient)


def _pooling_row(
    name: str, k_max: int, k_min: int, targets: tuple[Target, ...], gradient: bool = False
) -> Row:
    maps = BATCH * CHANNELS
    only_max = (k_max, k_min) == (1, 0)
    ours: OwnBuild = _ours.pool_gradient if gradient else _ours.pool
    by_topk = pooling.topk_gradient if gradient else pooling.topk
    by_sort = pooling.sort_gradient if gradient else pooling.sort
    return Row(
        id=f"weldon_pool.{name}",
        op="weldon_pool",
        title="Top and bottom means" + (", forward and backward" if gradient else ""),
        shape=f"[{BATCH},{CHANNELS},{SIDE},{SIDE}], k {k_max} and {k_min}",
        dtype="float32",
        layout="[B,C,h,w] contiguous",
        inputs=partial(pooling_inputs, k_max=k_max, k_min=k_min),
        gate=partial(pooling_gate, gradient),
        ours=ours,
        peers=(
            Peer("torch eager topk", partial(eager.eager, by_topk), devices=BOTH),
            Peer("torch eager sort", partial(eager.eager, by_sort), devices=BOTH),
            *((Peer("torch.amax", partial(eager.eager, pooling.amax), devices=BOTH),) * only_max),
        ),
        targets=targets,
        flops=0.0,
        moved_bytes=4.0 * maps * (SIDE * SIDE * (3 if gradient else 1) + 1),
        formula="maps once (backward: again, and the gradient), means once",
    )


def counts_inputs(small: bool) -> Inputs:
    """Return label maps in blocks of 16 pixels, 10 % of the target wrong and 5 % ignored."""
    generator = torch.Generator().manual_seed(8)
    images = 1 if small else IMAGES
    shape = (images, HEIGHT // 16 + 1, WIDTH // 16 + 1)
    blocks = torch.randint(0, CLASSES, shape, generator=generator)
    target = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :HEIGHT, :WIDTH]
    prediction = target.clone()
    wrong = torch.rand(target.shape, generator=generator) < 0.1
    prediction[wrong] = torch.randint(0, CLASSES, (int(wrong.sum()),), generator=generator)
    target = target.masked_fill(torch.rand(target.shape, generator=generator) < 0.05, 255)
    return {
        "prediction": prediction.to(torch.uint8).contiguous(),
        "target": target.to(torch.uint8).contiguous(),
        "classes": CLASSES,
    }


def counts_gate(inputs: Inputs) -> CountsGate:
    """Return the gate of a counting row."""
    return CountsGate(inputs["prediction"], inputs["target"], inputs["classes"])


def heat_inputs(small: bool) -> Inputs:
    """Return one image's activations, 50 unit embeddings and the projection."""
    generator = torch.Generator().manual_seed(9)
    units = 240 if small else UNITS
    text = torch.randn(TEXTS, units, generator=generator)
    return {
        "maps": torch.randn(1, units, GRID, GRID, generator=generator),
        "text": text / text.norm(dim=-1, keepdim=True),
        "projection": torch.randn(units, units, generator=generator) / units**0.5,
        "top": TOP,
        "threshold": 0.45,
    }


def heat_gate(inputs: Inputs) -> HeatGate:
    """Return the gate of the heat map row."""
    return HeatGate(inputs["maps"], inputs["text"], inputs["projection"], inputs["top"])


PIXELS = IMAGES * HEIGHT * WIDTH
TEN_TIMES = (Target(("torch eager topk",), 10.0),)
ROWS = (
    _pooling_row("k15", 15, 15, TEN_TIMES),
    _pooling_row("k1", 1, 1, TEN_TIMES),
    _pooling_row("max", 1, 0, ()),
    _pooling_row("k15_gradient", 15, 15, (), gradient=True),
    Row(
        id="confusion_counts.11_classes",
        op="confusion_counts",
        title="Joint counts of label maps",
        shape=f"{IMAGES} x {HEIGHT} x {WIDTH}, {CLASSES} classes",
        dtype="uint8",
        layout="[B,H,W] contiguous",
        inputs=counts_inputs,
        gate=counts_gate,
        ours=_ours.count_pairs,
        peers=(
            Peer("torch eager bincount", partial(eager.eager, pooling.bincount), devices=BOTH),
            Peer("numpy bincount", pooling.numpy_bincount),
        ),
        targets=(Target((), 3.0),),
        moved_bytes=2.0 * PIXELS,
        formula="both maps once",
    ),
    Row(
        id="folded_heatmap.50_texts",
        op="folded_heatmap",
        title="Folding of the top 180 units, heat maps, locations and masks",
        shape=f"{TEXTS} texts, {UNITS} units and channels, {GRID}^2",
        dtype="float32",
        layout="[B,D,h,w] contiguous",
        inputs=heat_inputs,
        gate=heat_gate,
        ours=_ours.fold_and_locate,
        peers=(
            Peer("torch eager, folded", partial(eager.eager, pooling.folded), devices=BOTH),
            Peer("torch eager, unfolded", partial(eager.eager, pooling.unfolded), devices=BOTH),
        ),
        targets=(Target((), 1.5),),
        flops=2.0 * TEXTS * UNITS * (TOP + GRID**2),
        moved_bytes=4.0 * UNITS * (UNITS + GRID**2 + 2 * TEXTS),
        formula="2 x texts x channels x (top units + cells); projection, maps and texts once",
    ),
)
