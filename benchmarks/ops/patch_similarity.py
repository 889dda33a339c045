# SPDX-License-Identifier: Apache-2.0
"""Rows of similarity maps followed by a softmax over classes."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.accuracy import SoftmaxGate
from benchmarks.inputs import leaning_patches
from benchmarks.ops import _ours
from benchmarks.peers import blas, eager
from benchmarks.registry import Inputs, Peer, Row, Target

BATCH, PATCHES, CLASSES, SIZE = 4, 1024, 150, 768
SCALE = 14.25
BOTH = ("cpu", "cuda")


def maps_inputs(dtype: torch.dtype, small: bool) -> Inputs:
    """Return patches [4,1024,768] and queries [150,768]; patches lean towards some query."""
    patches = 64 if small else PATCHES
    return leaning_patches(BATCH, patches, CLASSES, SIZE, dtype=dtype, scale=SCALE)


def softmax_gate(inputs: Inputs) -> SoftmaxGate:
    """Return the gate of a similarity row."""
    return SoftmaxGate(inputs["patches"], inputs["queries"], inputs["scale"])


def _row(dtype: torch.dtype, targets: tuple[Target, ...]) -> Row:
    name = str(dtype).removeprefix("torch.")
    width = dtype.itemsize
    half = dtype != torch.float32
    compiled, plain = (
        partial(eager.compiled, eager.softmax_map),
        partial(eager.eager, eager.softmax_map),
    )
    upcast = (
        Peer("torch eager, computed in float32", partial(eager.eager, eager.softmax_map_upcast)),
        Peer(
            "torch.compile, computed in float32",
            partial(eager.compiled, eager.softmax_map_upcast),
            compiled=True,
        ),
    )
    arrays = (
        Peer("NumPy", blas.numpy_softmax_map, where="blas"),
        Peer("NumPy, SkylakeX", blas.numpy_softmax_map, where="blas-skylakex"),
    )
    return Row(
        id=f"patch_similarity.softmax_{name}",
        op="patch_similarity",
        title="Similarity maps and softmax",
        shape=f"[{BATCH},{PATCHES},{SIZE}] x {CLASSES}",
        dtype=name,
        layout="[B,N,D] contiguous to [B,N,C]; queries prepared beforehand for every candidate",
        inputs=partial(maps_inputs, dtype),
        gate=softmax_gate,
        ours=_ours.softmax_map,
        variants=(("queries packed in each call", _ours.softmax_map_unpacked),),
        peers=(
            Peer("torch eager", plain, devices=BOTH),
            Peer("torch.compile", compiled, devices=BOTH, compiled=True),
            *(upcast if half else arrays),
        ),
        targets=targets,
        flops=2.0 * BATCH * PATCHES * CLASSES * SIZE,
        moved_bytes=float(width)
        * (BATCH * PATCHES * SIZE + CLASSES * SIZE + BATCH * PATCHES * CLASSES),
        formula="2BNCD operations; patches, queries and maps once",
    )


NATIVE_TYPE = ("torch eager", "torch.compile")
ROWS = (
    _row(torch.float32, (Target(NATIVE_TYPE, 2.4),)),
    _row(torch.float16, (Target(NATIVE_TYPE, 50.0),)),
    _row(torch.bfloat16, (Target(NATIVE_TYPE, 1.3),)),
)
