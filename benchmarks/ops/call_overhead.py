# SPDX-License-Identifier: Apache-2.0
"""Rows of one tiny call of each op beside a plain ATen addition: the fixed cost of a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.accuracy import ScoreGate
from benchmarks.common import Run
from benchmarks.ops import _ours, keypoint_join, pamr, pooling, sru
from benchmarks.ops.correspondence import match_gate
from benchmarks.ops.mask_upsample import upsample_gate
from benchmarks.ops.patch_similarity import softmax_gate
from benchmarks.ops.sample_features import sample_gate
from benchmarks.peers import eager, joins, match_score, refinement
from benchmarks.peers import pooling as pooling_peers
from benchmarks.registry import Gate, Inputs, OwnBuild, Peer, Row, Verdict

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
        "features0": F.normalize(torch.rand(4, 8, generator=generator), dim=-1),
        "features1": F.normalize(torch.rand(1, 4, 8, generator=generator), dim=-1),
        "points01": torch.rand(1, 4, 2, generator=generator),
        "weights0": torch.rand(1, 4, generator=generator),
        "mask1": torch.rand(1, 2, 2, generator=generator),
        "grid": (2, 2),
        "maps": torch.randn(1, 6, 3, 3, generator=generator),
        "k_max": 2,
        "k_min": 2,
        "prediction": torch.randint(0, 2, (1, 4, 4), generator=generator),
        "target": torch.randint(0, 2, (1, 4, 4), generator=generator),
        "classes": 2,
        "text": F.normalize(torch.randn(2, 8, generator=generator), dim=-1),
        "projection": torch.randn(8, 6, generator=generator),
        "top": 3,
        "threshold": 0.45,
        "image": torch.rand(1, 3, 4, 4, generator=generator),
        "masks": torch.rand(1, 2, 4, 4, generator=generator),
        "dilations": (1,),
        "iterations": 1,
        "gates": torch.randn(2, 2, 3, 4, generator=generator),
        "bias": torch.randn(8, generator=generator),
        "weight": torch.randn(8, generator=generator),
        "highway": torch.randn(2, 2, 4, generator=generator),
        "ids": torch.tensor([1, 4, 6, 4, 5, 6]),
        "offsets": torch.tensor([0, 3, 6]),
        "pairs": torch.tensor([[0, 1]]),
    }


def _judge(gate: Gate, output: Any, part: str) -> Verdict | None:
    return None if part == "other" else gate(output, part)


def _gate(of_inputs: GateOf, inputs: Inputs) -> Gate:
    """The gate of the op's own rows, which need not know of the addition."""
    return partial(_judge, of_inputs(inputs))


def _row(op: str, shape: str, ours: OwnBuild, peer: Callable[[Inputs], Run], gate: GateOf) -> Row:
    return Row(
        id=f"call_overhead.{op}",
        op="call_overhead",
        title=f"One tiny call of {op}",
        shape=shape,
        dtype="float32",
        layout="contiguous",
        inputs=tiny_inputs,
        gate=partial(_gate, gate),
        ours=ours,
        peers=(
            Peer(
                "ATen add of 4 numbers",
                partial(eager.eager, eager.plain_add),
                "other",
                devices=BOTH,
            ),
            Peer("torch eager, the same result", peer, devices=BOTH),
        ),
        kind="overhead",
        note="the addition computes nothing comparable; it shows the floor of a torch call",
    )


def _eager(prepare: eager.Prepare) -> Callable[[Inputs], Run]:
    return partial(eager.eager, prepare)


ROWS = (
    _row(
        "mutual_nearest_neighbors",
        "8 x 8 x 16",
        _ours.mutual,
        _eager(eager.mutual),
        match_gate,
    ),
    _row(
        "patch_similarity",
        "[1,4,16] x 3",
        _ours.softmax_map,
        _eager(eager.softmax_map),
        softmax_gate,
    ),
    _row(
        "mask_upsample",
        "C 2, 2^2 -> 4^2",
        _ours.labels,
        _eager(eager.labels),
        partial(upsample_gate, "labels"),
    ),
    _row(
        "sample_features",
        "8 channels, 4 points",
        _ours.sample,
        _eager(eager.grid_sample),
        sample_gate,
    ),
    _row(
        "match_score",
        "1 candidate, 2 x 2 cells, 8 channels",
        _ours.score,
        _eager(match_score.vectorised),
        ScoreGate,
    ),
    _row(
        "weldon_pool",
        "[1,6,3,3], k 2 and 2",
        _ours.pool,
        _eager(pooling_peers.topk),
        partial(pooling.pooling_gate, False),
    ),
    _row(
        "confusion_counts",
        "16 pixels, 2 classes",
        _ours.count_pairs,
        _eager(pooling_peers.bincount),
        pooling.counts_gate,
    ),
    _row(
        "folded_heatmap",
        "2 texts, 6 channels, 3^2",
        _ours.fold_and_locate,
        _eager(pooling_peers.folded),
        pooling.heat_gate,
    ),
    _row(
        "pamr",
        "2 masks of 4^2, 1 dilation, 1 iteration",
        _ours.refine_masks,
        _eager(refinement.stacked),
        pamr.refinement_gate,
    ),
    _row(
        "sru",
        "2 steps, batch 2, 4 units",
        sru.ours,
        _eager(sru.prepared),
        partial(sru.sru_gate, False),
    ),
    _row(
        "keypoint_join",
        "1 pair of 3 ids",
        keypoint_join.ours,
        joins.searchsorted,
        keypoint_join.join_gate,
    ),
)
