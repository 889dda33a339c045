# SPDX-License-Identifier: Apache-2.0
"""Row that alternates our kernel with a torch product, to show that their threads do not fight."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.common import Run
from benchmarks.ops import _ours
from benchmarks.ops.correspondence import descriptors, match_gate
from benchmarks.registry import EACH_ALONE, Inputs, Peer, Row, Target

REPEATS = 10
SIDE = 512


def sharing_inputs(small: bool) -> Inputs:
    """Return descriptors 1024 x 128 and the two factors of a square product."""
    generator = torch.Generator().manual_seed(6)
    return {
        **descriptors(1024, 128, small),
        "left": torch.randn(SIDE, SIDE, generator=generator),
        "right": torch.randn(SIDE, SIDE, generator=generator),
    }


def _repeat(calls: tuple[Run, ...]) -> Any:
    results = []
    for _ in range(REPEATS):
        results = [call() for call in calls]
    return results[0]


def _product(inputs: Inputs) -> Run:
    return partial(torch.mm, inputs["left"], inputs["right"])


def alternating(inputs: Inputs, backend: str) -> Run:
    """Our kernel and the product in turn, ten times each."""
    return partial(_repeat, (_ours.mutual(inputs, backend), _product(inputs)))


def kernel_alone(inputs: Inputs) -> Run:
    """Our kernel ten times."""
    return partial(_repeat, (_ours.mutual(inputs, "native"),))


def product_alone(inputs: Inputs) -> Run:
    """The product ten times."""
    return partial(_repeat, (_product(inputs),))


ROWS = (
    Row(
        id="shared_runtime.mutual_and_matmul",
        op="shared_runtime",
        title="Our kernel and a torch product alternating, against each alone",
        shape=f"{REPEATS} x (1024 x 1024 x 128 matches, {SIDE}^3 product)",
        dtype="float32",
        layout="contiguous",
        inputs=sharing_inputs,
        gate=match_gate,
        ours=alternating,
        peers=(
            Peer("patchword kernel alone", kernel_alone),
            Peer("torch product alone", product_alone, "other"),
        ),
        targets=(Target((EACH_ALONE,), 0.95),),
        kind="sharing",
        note="the ratio is the sum of both alone divided by the alternating loop; 1 is no loss",
    ),
)
