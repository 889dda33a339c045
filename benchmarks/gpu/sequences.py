# SPDX-License-Identifier: Apache-2.0
"""Rows of mask refinement, recurrence, pooling and ranks on CUDA."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.inputs import recurrence_tensors
from benchmarks.ops import _ours, pamr, pooling, retrieval_ranks, sru
from benchmarks.peers import eager, gpu_libraries, refinement, serial_sru
from benchmarks.peers import pooling as pooling_peers
from benchmarks.registry import Inputs, Peer, Row, Target

CUDA = ("cuda",)
STACKED, SERIAL, PACKAGE = (
    "torch eager, neighbours stacked",
    "serial in time, Triton",
    "sru package",
)
COUNT = "torch eager product and count"


def recurrence_inputs(steps: int, batch: int, units: int, small: bool) -> Inputs:
    """Return the tensors of a layer with three gates, and the gradient of its output."""
    return recurrence_tensors(9, 2, 40) if small else recurrence_tensors(steps, batch, units)


def refinement_inputs(batch: int, channels: int, side: int, small: bool) -> Inputs:
    """Return a random picture and random masks of the same size."""
    batch, channels = (1, 2) if small else (batch, channels)
    return pamr.refinement_inputs(small, batch=batch, channels=channels, side=side)


def _recurrence_row(steps: int, batch: int, units: int, backward: bool) -> Row:
    name = "forward_backward" if backward else "forward"
    values = steps * batch * units
    loop = sru.eager_step if backward else partial(eager.eager, sru.prepared)
    serial = (
        Peer(SERIAL, serial_sru.serial, devices=CUDA, note="as the published kernel walks"),
        Peer(PACKAGE, gpu_libraries.sru_package, devices=CUDA),
    )
    return Row(
        id=f"gpu.sru_{name}_{steps}x{batch}x{units}",
        op="sru",
        title=f"SRU recurrence, {name.replace('_', ' and ')}",
        shape=f"L {steps}, B {batch}, d {units}, 3 gates",
        dtype="float32",
        layout="gates planar",
        inputs=partial(recurrence_inputs, steps, batch, units),
        gate=partial(sru.sru_gate, backward),
        ours=sru.ours_step if backward else sru.ours,
        peers=(Peer("torch eager loop", loop, devices=CUDA), *(() if backward else serial)),
        targets=(Target(("torch eager loop",), 20.0),)
        if backward
        else (Target((SERIAL, PACKAGE), 1.2),),
        flops=(60.0 if backward else 25.0) * values,
        moved_bytes=4.0 * (17 if backward else 5) * values,
        formula="25 operations and 5 values per unit and step, 60 and 17 with the backward",
        note="the product before the recurrence is not part of the row",
        devices=CUDA,
    )


def _refinement_row(batch: int, channels: int, side: int) -> Row:
    pixels = batch * side * side
    return Row(
        id=f"gpu.pamr_{batch}x{channels}_{side}",
        op="pamr",
        title="Mask refinement (PAMR), 6 dilations, 10 iterations",
        shape=f"{batch} x {channels} masks, {side}^2",
        dtype="float32",
        layout="[B,C,h,w] contiguous",
        inputs=partial(refinement_inputs, batch, channels, side),
        gate=pamr.refinement_gate,
        ours=_ours.refine_masks,
        peers=(
            Peer(STACKED, partial(eager.eager, refinement.stacked), devices=CUDA),
            Peer(
                "torch eager, one neighbour at a time",
                partial(eager.eager, refinement.one_at_a_time),
                devices=CUDA,
            ),
        ),
        targets=(Target((STACKED,), 20.0),),
        flops=2.0 * pamr.NEIGHBOURS * pamr.ITERATIONS * channels * pixels,
        moved_bytes=4.0 * pixels * (3 + 2 * channels),
        formula="2 x neighbours x iterations x masks x pixels; picture and masks once",
        note="the stacked form is the published one; torch.compile takes minutes on it",
        devices=CUDA,
    )


def _ranks(prepare: Any, name: str, compiled: bool = False) -> Peer:
    build = partial(eager.compiled if compiled else eager.eager, prepare)
    return Peer(name, build, devices=CUDA, compiled=compiled)


MAPS = pooling.BATCH * pooling.CHANNELS
CELLS = pooling.SIDE**2
QUERIES, GALLERY, DIM = retrieval_ranks.QUERIES, retrieval_ranks.GALLERY, retrieval_ranks.DIM

ROWS = (
    _refinement_row(1, 21, 128),
    _recurrence_row(75, 128, 2400, backward=False),
    Row(
        id="gpu.weldon_k15",
        op="weldon_pool",
        title="Top and bottom means",
        shape=f"[{pooling.BATCH},{pooling.CHANNELS},{pooling.SIDE},{pooling.SIDE}], k 15 and 15",
        dtype="float32",
        layout="[B,C,h,w] contiguous",
        inputs=partial(pooling.pooling_inputs, k_max=15, k_min=15),
        gate=partial(pooling.pooling_gate, False),
        ours=_ours.pool,
        peers=(
            Peer("torch eager topk", partial(eager.eager, pooling_peers.topk), devices=CUDA),
            Peer("torch eager sort", partial(eager.eager, pooling_peers.sort), devices=CUDA),
        ),
        targets=(Target(("torch eager topk",), 5.0),),
        moved_bytes=4.0 * MAPS * (CELLS + 1),
        formula="maps once, means once",
        devices=CUDA,
    ),
    Row(
        id="gpu.ranks_embeddings",
        op="retrieval_ranks",
        title="Ranks of true items from embeddings",
        shape=f"{QUERIES} x {GALLERY}, D {DIM}",
        dtype="float32",
        layout="contiguous",
        inputs=retrieval_ranks.trained_inputs,
        gate=retrieval_ranks.rank_gate,
        ours=retrieval_ranks.ours_embeddings,
        peers=(
            _ranks(retrieval_ranks.embeddings, COUNT),
            _ranks(retrieval_ranks.embeddings, "torch.compile product and count", compiled=True),
        ),
        targets=(Target((COUNT,), 3.0),),
        flops=2.0 * QUERIES * GALLERY * DIM,
        moved_bytes=4.0 * DIM * (QUERIES + GALLERY),
        formula="two operations per product; both sets once",
        devices=CUDA,
    ),
    _refinement_row(36, 11, 56),
    _recurrence_row(32, 128, 2400, backward=True),
)
