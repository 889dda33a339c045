# SPDX-License-Identifier: Apache-2.0
"""Rows of pixel-adaptive mask refinement."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.accuracy import RefinementGate
from benchmarks.ops import _ours
from benchmarks.peers import eager, refinement
from benchmarks.registry import Inputs, Peer, Row, Target

BOTH = ("cpu", "cuda")
DILATIONS, ITERATIONS = (1, 2, 4, 8, 12, 24), 10
NEIGHBOURS = 8 * len(DILATIONS)


def refinement_inputs(small: bool, *, batch: int, channels: int, side: int) -> Inputs:
    """Return a random picture and random masks of the same size."""
    generator = torch.Generator().manual_seed(6)
    side = 16 if small else side
    return {
        "image": torch.rand(batch, 3, side, side, generator=generator),
        "masks": torch.rand(batch, channels, side, side, generator=generator),
        "dilations": DILATIONS,
        "iterations": ITERATIONS,
    }


def refinement_gate(inputs: Inputs) -> RefinementGate:
    """Return the gate of a refinement row."""
    return RefinementGate(*(inputs[k] for k in ("image", "masks", "dilations", "iterations")))


def _row(name: str, batch: int, channels: int, side: int) -> Row:
    pixels = batch * side * side
    return Row(
        id=f"pamr.{name}",
        op="pamr",
        title="Mask refinement (PAMR), 6 dilations, 10 iterations",
        shape=f"{batch} x {channels} masks, {side}^2",
        dtype="float32",
        layout="[B,C,h,w] contiguous",
        inputs=partial(refinement_inputs, batch=batch, channels=channels, side=side),
        gate=refinement_gate,
        ours=_ours.refine_masks,
        peers=(
            Peer(
                "torch eager, neighbours stacked",
                partial(eager.eager, refinement.stacked),
                devices=BOTH,
            ),
            Peer(
                "torch eager, one neighbour at a time",
                partial(eager.eager, refinement.one_at_a_time),
                devices=BOTH,
            ),
            Peer(
                "torch.compile, neighbours stacked",
                partial(eager.compiled, refinement.stacked),
                devices=BOTH,
                compiled=True,
            ),
        ),
        targets=(Target(("torch eager, neighbours stacked",), 60.0),),
        flops=2.0 * NEIGHBOURS * ITERATIONS * channels * pixels,
        moved_bytes=4.0 * pixels * (3 + 2 * channels),
        formula="2 x neighbours x iterations x masks x pixels; picture and masks once",
        note="the stacked form is the published one",
    )


ROWS = (_row("21_masks", 1, 21, 128), _row("36_images", 36, 2, 56))
