# SPDX-License-Identifier: Apache-2.0
"""Rows of bilinear sampling of feature maps at points."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.accuracy import SampleGate
from benchmarks.ops import _ours
from benchmarks.peers import eager
from benchmarks.registry import Inputs, Peer, Row, Target

CHANNELS, POINTS, GRID, STRIDE = 256, 4096, 64, 16
BOTH = ("cpu", "cuda")


def sampling_inputs(channels_last: bool, small: bool) -> Inputs:
    """Return features [1,256,64,64] and points [1,4096,2] between the outer cell centres."""
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(1, CHANNELS, GRID, GRID, generator=generator)
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    count = 64 if small else POINTS
    points = torch.rand(1, count, 2, generator=generator) * (GRID - 1) * STRIDE + STRIDE / 2
    return {"features": features, "points": points, "stride": STRIDE}


def sample_gate(inputs: Inputs) -> SampleGate:
    """Return the gate of a sampling row."""
    return SampleGate(inputs["features"], inputs["points"], inputs["stride"])


def _row(name: str, channels_last: bool) -> Row:
    return Row(
        id=f"sample_features.{name}",
        op="sample_features",
        title=f"Bilinear sampling at points, {'channels-last' if channels_last else 'NCHW'} map",
        shape=f"{CHANNELS} channels, {GRID}^2 map, {POINTS} points",
        dtype="float32",
        layout="features channels-last" if channels_last else "features NCHW",
        inputs=partial(sampling_inputs, channels_last),
        gate=sample_gate,
        ours=_ours.sample,
        peers=(
            Peer("torch eager grid_sample", partial(eager.eager, eager.grid_sample), devices=BOTH),
            Peer(
                "torch.compile grid_sample",
                partial(eager.compiled, eager.grid_sample),
                devices=BOTH,
                compiled=True,
            ),
        ),
        targets=(Target((), 5.0),),
        flops=8.0 * CHANNELS * POINTS,
        moved_bytes=4.0 * CHANNELS * (GRID * GRID + POINTS) + 8.0 * POINTS,
        formula="8 operations per value; map, points and samples once",
        note="grid_sample gets its normalised coordinates prepared outside the timing",
    )


ROWS = (_row("nchw", False), _row("channels_last", True))
