# SPDX-License-Identifier: Apache-2.0
"""Row of the contrastive step at keypoints: forward, and backward to the maps."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import as_tensor
from benchmarks.common import Run
from benchmarks.ops import _ours
from benchmarks.peers import point_infonce as peers
from benchmarks.registry import Gate, Inputs, Peer, Row, Target, Verdict

MAPS, CHANNELS, SIDE, QUERIES, NEGATIVES = 36, 256, 56, 1500, 16
BOTH = ("cpu", "cuda")


def infonce_inputs(small: bool) -> Inputs:
    """Return maps of 18 pairs and points as the published training draws them.

    Pair i is map i and map i + 18. Its queries lie in the first, their positives in the second,
    and its negatives anywhere in 16 second maps drawn for the pair.
    """
    generator = torch.Generator().manual_seed(11)
    channels, rows = (40, 60) if small else (CHANNELS, QUERIES)
    half = MAPS // 2
    pair = torch.arange(rows) * half // rows
    drawn = torch.randint(half, MAPS, (half, NEGATIVES), generator=generator)
    return {
        "maps": torch.randn(MAPS, channels, SIDE, SIDE, generator=generator),
        "query_images": pair,
        "query_points": torch.rand(rows, 2, generator=generator),
        "key_images": torch.cat(((pair + half)[:, None], drawn[pair]), 1),
        "key_points": torch.rand(rows, 1 + NEGATIVES, 2, generator=generator),
    }


def _loss(op: Any, *tensors: Tensor) -> Tensor:
    loss: Tensor = op(*tensors, temperature=peers.TEMPERATURE, align_corners=True).mean()
    return loss


def ours_step(inputs: Inputs, backend: str) -> Run:
    """Forward and backward."""
    op = partial(_ours.find_op("point_infonce"), backend=backend)
    with torch.inference_mode(False):
        return partial(peers.step, partial(_loss, op), *peers.leaf(inputs))


def infonce_gate(inputs: Inputs) -> Gate:
    """Return a gate: 1e-5 of the loss, 1e-5 relative Frobenius for the gradient."""
    loss, grad = peers.exact(inputs)

    def judge(output: Any, part: str) -> Verdict | None:
        made_loss, made_grad = (as_tensor(t).double() for t in output)
        if made_grad.shape != grad.shape:
            return Verdict(float("inf"), 1e-5, 1)
        errors = [float((made_loss - loss).abs() / loss)]
        errors.append(float((made_grad - grad).norm() / grad.norm()))
        return Verdict(max(errors), 1e-5)

    return judge


VECTORS = QUERIES * (2 + NEGATIVES)
BATCHED = "torch eager, all pairs at once"
ROWS = (
    Row(
        id="point_infonce.step",
        op="point_infonce",
        title="InfoNCE at keypoints, forward and backward",
        shape=f"[{MAPS},{CHANNELS},{SIDE},{SIDE}], {QUERIES} queries, {NEGATIVES} negatives",
        dtype="float32",
        layout="[B,C,h,w] contiguous",
        inputs=infonce_inputs,
        gate=infonce_gate,
        ours=ours_step,
        peers=(
            Peer(BATCHED, peers.batched, devices=BOTH),
            Peer(
                "torch.compile, all pairs at once",
                peers.batched_compiled,
                "full",
                "process",
                BOTH,
                compiled=True,
            ),
            Peer("torch eager, pair by pair", peers.published, devices=BOTH),
        ),
        targets=(Target((BATCHED, "torch eager, pair by pair"), 4.0),),
        flops=VECTORS * CHANNELS * (2.0 * 8 + 2 * 2 + 2 * 3 + 8),
        moved_bytes=3 * 4.0 * MAPS * CHANNELS * SIDE**2,
        formula="two readings of four corners, products, factors, four sums; maps twice, gradient",
        memory_limit=0.1,
        memory_against=BATCHED,
        note="all pairs at once: tables of the points are prepared outside the timing",
    ),
)
