# SPDX-License-Identifier: Apache-2.0
"""Rows of similarity maps, fused upsampling and sampling at points on CUDA."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.accuracy import UpsampleGate
from benchmarks.inputs import leaning_patches, logits
from benchmarks.ops import _ours
from benchmarks.ops.patch_similarity import softmax_gate
from benchmarks.ops.sample_features import sample_gate, sampling_inputs
from benchmarks.peers import eager
from benchmarks.registry import Gate, Inputs, Peer, Row, Target, Verdict

CUDA = ("cuda",)
BATCH, PATCHES, SIZE, SCALE = 8, 1024, 768, 14.25
EAGER, COMPILED = "torch eager", "torch.compile"
CHECKED_ROWS = 24


def similarity_inputs(classes: int, dtype: torch.dtype, small: bool) -> Inputs:
    """Return patches [8,1024,768] that lean towards some query, and queries [classes,768]."""
    batch, patches, classes = (1, 32, 40) if small else (BATCH, PATCHES, classes)
    return leaning_patches(batch, patches, classes, SIZE, dtype=dtype, scale=SCALE)


def upsample_inputs(
    batch: int, classes: int, low: int, high: int, smooth: bool, small: bool
) -> Inputs:
    """Return logits [batch,classes,low,low]: noise, or noise of a four times coarser grid."""
    if small:
        batch, classes, high = min(batch, 2), 9, 2 * low
    return logits(batch, classes, low, high, coarser=4 if smooth else None)


def upsample_gate(part: str, inputs: Inputs) -> Gate:
    """Return a gate that checks some random rows of every map of the batch."""
    height = inputs["size"][0]
    rows = torch.randperm(height, generator=torch.Generator().manual_seed(3))
    rows = rows[:CHECKED_ROWS].sort().values
    gates = [
        UpsampleGate(maps[None], inputs["size"], inputs["mode"], rows) for maps in inputs["logits"]
    ]

    def judge(output: Any, other: str) -> Verdict | None:
        if len(output) != len(gates):
            return Verdict(float("inf"), 0.0, len(output))
        kind = part if other == "full" else other
        verdicts = [gate(one, kind) for gate, one in zip(gates, output, strict=True)]
        found = [verdict for verdict in verdicts if verdict is not None]
        return Verdict(
            max(verdict.error for verdict in found),
            found[0].tolerance,
            sum(verdict.mismatches for verdict in found),
            sum(verdict.ties for verdict in found),
        )

    return judge


def _peers(prepare: eager.Prepare, autotune: bool = False) -> tuple[Peer, ...]:
    peers = [
        Peer(EAGER, partial(eager.eager, prepare), devices=CUDA),
        Peer(COMPILED, partial(eager.compiled, prepare), devices=CUDA, compiled=True),
    ]
    if autotune:
        best = partial(eager.compiled, prepare, mode="max-autotune")
        peers.append(Peer(f"{COMPILED} max-autotune", best, devices=CUDA, compiled=True))
    return tuple(peers)


def _similarity_row(classes: int, dtype: torch.dtype, ratio: float) -> Row:
    name = str(dtype).removeprefix("torch.")
    cells = BATCH * PATCHES
    return Row(
        id=f"gpu.similarity_{classes}_{name}",
        op="patch_similarity",
        title="Similarity maps and softmax",
        shape=f"[{BATCH},{PATCHES},{SIZE}] x {classes}",
        dtype=name,
        layout="[B,N,D] contiguous to [B,N,C]",
        inputs=partial(similarity_inputs, classes, dtype),
        gate=softmax_gate,
        ours=_ours.softmax_map_unpacked,
        peers=_peers(eager.softmax_map),
        targets=(Target((EAGER, COMPILED), ratio),),
        flops=2.0 * cells * classes * SIZE,
        moved_bytes=float(dtype.itemsize) * (cells * (SIZE + classes) + classes * SIZE),
        formula="2BNCD operations; patches, queries and maps once",
        note="peers get queries normalised and transposed beforehand, ours does it in the call",
        devices=CUDA,
    )


def _label_row(
    batch: int,
    classes: int,
    low: int,
    high: int,
    smooth: bool,
    ratio: float,
    autotune: bool = False,
) -> Row:
    look = "smooth" if smooth else "noise"
    maps = batch * classes
    return Row(
        id=f"gpu.labels_{batch}x{classes}_{low}_{high}_{look}",
        op="mask_upsample",
        title=f"Bilinear upsampling and labels, {look} maps",
        shape=f"{batch} x {classes} classes, {low}^2 -> {high}^2",
        dtype="float32",
        layout="[B,C,h,w] contiguous",
        inputs=partial(upsample_inputs, batch, classes, low, high, smooth),
        gate=partial(upsample_gate, "labels"),
        ours=_ours.labels,
        peers=(
            *_peers(eager.labels, autotune),
            Peer(
                "torch eager, channels-last",
                partial(eager.eager, eager.labels_channels_last),
                devices=CUDA,
            ),
        ),
        targets=(Target((COMPILED,), ratio),),
        flops=4.0 * maps * (high * low + high * high),
        moved_bytes=4.0 * maps * low * low + 8.0 * batch * high * high,
        formula="4 C (Hw + HW) operations of the separable form; logits and labels once",
        devices=CUDA,
    )


MASKS, MASK_LOW, MASK_HIGH = 16, 64, 1024
CHANNELS, POINTS = 256, 4096


def _sample_row(channels_last: bool) -> Row:
    name = "channels_last" if channels_last else "nchw"
    return Row(
        id=f"gpu.sample_{name}",
        op="sample_features",
        title=f"Bilinear sampling at points, {'channels-last' if channels_last else 'NCHW'} map",
        shape=f"{CHANNELS} channels, 64^2 map, {POINTS} points",
        dtype="float32",
        layout="features channels-last" if channels_last else "features NCHW",
        inputs=partial(sampling_inputs, channels_last),
        gate=sample_gate,
        ours=_ours.sample,
        peers=_peers(eager.grid_sample),
        targets=(Target((), 3.0),),
        flops=8.0 * CHANNELS * POINTS,
        moved_bytes=4.0 * CHANNELS * (64 * 64 + POINTS) + 8.0 * POINTS,
        formula="8 operations per value; map, points and samples once",
        note="grid_sample gets its normalised coordinates prepared outside the timing",
        devices=CUDA,
    )


ROWS = (
    _label_row(8, 150, 32, 512, True, 8.0, autotune=True),
    _label_row(8, 150, 32, 512, False, 3.0),
    _similarity_row(150, torch.bfloat16, 2.5),
    _similarity_row(150, torch.float32, 2.5),
    _similarity_row(1203, torch.bfloat16, 1.3),
    Row(
        id="gpu.masks_16",
        op="mask_upsample",
        title="Bilinear upsampling and threshold, smooth maps",
        shape=f"{MASKS} masks, {MASK_LOW}^2 -> {MASK_HIGH}^2",
        dtype="float32",
        layout="[1,C,h,w] contiguous",
        inputs=partial(upsample_inputs, 1, MASKS, MASK_LOW, MASK_HIGH, True),
        gate=partial(upsample_gate, "binary"),
        ours=_ours.masks,
        peers=_peers(eager.masks),
        targets=(Target((COMPILED,), 3.0),),
        flops=4.0 * MASKS * (MASK_LOW * MASK_HIGH + MASK_HIGH**2),
        moved_bytes=4.0 * MASKS * MASK_LOW**2 + 1.0 * MASKS * MASK_HIGH**2,
        formula="4 C (hW + HW) operations of the separable form; logits and bytes once",
        devices=CUDA,
    ),
    _sample_row(True),
    _sample_row(False),
)
