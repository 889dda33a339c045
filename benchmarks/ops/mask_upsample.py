# SPDX-License-Identifier: Apache-2.0
"""Rows of upsampling fused with a decision: labels, binary masks, and the memory it takes."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.accuracy import UpsampleGate
from benchmarks.inputs import logits
from benchmarks.ops import _ours
from benchmarks.peers import eager, opencv
from benchmarks.registry import Gate, Inputs, Peer, Row, Target, Verdict

BOTH = ("cpu", "cuda")
SMOOTHING = 8


def logits_inputs(
    small: bool, *, classes: int, low: int, high: int, mode: str = "bilinear", smooth: bool = True
) -> Inputs:
    """Return random logits [1,C,low,low]: noise, or noise of an 8 times coarser grid smoothed."""
    high = low * 2 if small else high
    return logits(1, classes, low, high, coarser=SMOOTHING if smooth else None, mode=mode)


def upsample_gate(part: str, inputs: Inputs) -> Gate:
    """Return the gate of a row whose output is ``part``; maps over 1024^2 check 64 random rows."""
    height = inputs["size"][0]
    rows = None
    if height > 1024:
        rows = torch.randperm(height, generator=torch.Generator().manual_seed(3))[:64].sort()[0]
    gate = UpsampleGate(inputs["logits"], inputs["size"], inputs["mode"], rows)

    def judge(output: object, other: str) -> Verdict | None:
        return gate(output, part if other == "full" else other)

    return judge


LABEL_PEERS = (
    Peer("OpenCV running maximum", opencv.labels),
    Peer("torch.compile", partial(eager.compiled, eager.labels), devices=BOTH, compiled=True),
    Peer("torch eager", partial(eager.eager, eager.labels), devices=BOTH),
    Peer(
        "torch eager, channels-last", partial(eager.eager, eager.labels_channels_last), devices=BOTH
    ),
)
CUDA_EXTRA = Peer(
    "torch.compile max-autotune",
    partial(eager.compiled, eager.labels, mode="max-autotune"),
    devices=("cuda",),
    compiled=True,
)


def _label_row(
    name: str,
    classes: int,
    low: int,
    high: int,
    *,
    mode: str = "bilinear",
    smooth: bool = True,
    targets: tuple[Target, ...] = (),
    memory_limit: float | None = None,
) -> Row:
    taps = {"bilinear": 2, "bicubic": 4}[mode]
    look = "smooth random maps" if smooth else "noise maps"
    memory = memory_limit is not None
    return Row(
        id=f"mask_upsample.{name}",
        op="mask_upsample",
        title=f"{mode.capitalize()} upsampling and labels, {look}",
        shape=f"C {classes}, {low}^2 -> {high}^2",
        dtype="float32",
        layout="[1,C,h,w] contiguous",
        inputs=partial(
            logits_inputs, classes=classes, low=low, high=high, mode=mode, smooth=smooth
        ),
        gate=partial(upsample_gate, "labels"),
        ours=_ours.labels,
        peers=LABEL_PEERS[:3] if memory else (*LABEL_PEERS, CUDA_EXTRA),
        targets=targets,
        kind="memory" if memory else "speed",
        flops=2.0 * taps * classes * (high * low + high * high),
        moved_bytes=4.0 * classes * low * low + 8.0 * high * high,
        formula="2 x taps x C (Hw + HW) operations of the separable form; logits and labels once",
        memory_limit=memory_limit,
    )


ADE = (
    Target(("OpenCV running maximum",), 6.0),
    Target(("torch.compile",), 20.0),
    Target(("torch eager",), 70.0),
)
MASKS, MASK_LOW, MASK_HIGH = 16, 64, 1024

ROWS = (
    _label_row("labels_150_smooth", 150, 32, 512, targets=ADE),
    _label_row("labels_150_noise", 150, 32, 512, smooth=False, targets=ADE),
    Row(
        id="mask_upsample.masks_16",
        op="mask_upsample",
        title="Bilinear upsampling and threshold, smooth random maps",
        shape=f"{MASKS} masks, {MASK_LOW}^2 -> {MASK_HIGH}^2",
        dtype="float32",
        layout="[1,C,h,w] contiguous",
        inputs=partial(logits_inputs, classes=MASKS, low=MASK_LOW, high=MASK_HIGH),
        gate=partial(upsample_gate, "binary"),
        ours=_ours.masks,
        peers=(
            Peer("OpenCV resize and compare", opencv.masks),
            Peer(
                "torch.compile", partial(eager.compiled, eager.masks), devices=BOTH, compiled=True
            ),
            Peer("torch eager", partial(eager.eager, eager.masks), devices=BOTH),
        ),
        targets=(Target(("OpenCV resize and compare",), 2.0), Target(("torch eager",), 40.0)),
        flops=2.0 * 2 * MASKS * (MASK_LOW * MASK_HIGH + MASK_HIGH**2),
        moved_bytes=4.0 * MASKS * MASK_LOW**2 + 1.0 * MASKS * MASK_HIGH**2,
        formula="2 x taps x C (hW + HW) operations of the separable form; logits and bytes once",
    ),
    _label_row("labels_21_bicubic", 21, 33, 448, mode="bicubic", targets=(Target((), 6.0),)),
    _label_row("labels_150_4096_memory", 150, 64, 4096, memory_limit=2.0),
)
