# SPDX-License-Identifier: Apache-2.0
"""Rows of one tiny call of each op beside a plain ATen addition: the fixed cost of a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.ops import _ours
from benchmarks.ops.correspondence import match_gate
from benchmarks.ops.mask_upsample import upsample_gate
from benchmarks.ops.patch_similarity import softmax_gate
from benchmarks.ops.sample_features import sample_gate
from benchmarks.peers import eager
from benchmarks.registry import Gate, Inputs, OwnBuild, Peer, Row

BOTH = ("cpu", "cuda")
GateOf = Callable[[Inputs], Gate]


def tiny_inputs(small: bool) -> Inputs:
    """Return inputs of a few numbers for every op; there is no smaller size for ``small``."""
    generator = torch.Generator().manual_seed(5)
    return {
        "device": "cpu",
        "descriptors0": F.normalize(torch.randn(8, 16, generator=generator), dim=1),
        "descriptors1": F.normalize(torch.randn(8, 16, generator=generator), dim=1),
        "patches": torch.randn(1, 4, 16, generator=generator),
        "queries": torch.randn(3, 16, generator=generator),
        "scale": 1.0,
        "logits": torch.randn(1, 2, 2, 2, generator=generator),
        "size": (4, 4),
        "mode": "bilinear",
        "features": torch.randn(1, 8, 2, 2, generator=generator),
        "points": torch.rand(1, 4, 2, generator=generator) * 16 + 8,
        "stride": 16,
    }


def _row(op: str, shape: str, ours: OwnBuild, prepare: eager.Prepare, gate: GateOf) -> Row:
    return Row(
        id=f"call_overhead.{op}",
        op="call_overhead",
        title=f"One tiny call of {op}",
        shape=shape,
        dtype="float32",
        layout="contiguous",
        inputs=tiny_inputs,
        gate=gate,
        ours=ours,
        peers=(
            Peer(
                "ATen add of 4 numbers",
                partial(eager.eager, eager.plain_add),
                "other",
                devices=BOTH,
            ),
            Peer("torch eager, the same result", partial(eager.eager, prepare), devices=BOTH),
        ),
        kind="overhead",
        note="the addition computes nothing comparable; it shows the floor of a torch call",
    )


ROWS = (
    _row("mutual_nearest_neighbors", "8 x 8 x 16", _ours.mutual, eager.mutual, match_gate),
    _row("patch_similarity", "[1,4,16] x 3", _ours.softmax_map, eager.softmax_map, softmax_gate),
    _row(
        "mask_upsample",
        "C 2, 2^2 -> 4^2",
        _ours.labels,
        eager.labels,
        partial(upsample_gate, "labels"),
    ),
    _row("sample_features", "8 channels, 4 points", _ours.sample, eager.grid_sample, sample_gate),
)
