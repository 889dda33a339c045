# SPDX-License-Identifier: Apache-2.0
"""Rows of mutual nearest neighbours."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.accuracy import MatchGate
from benchmarks.ops import _ours
from benchmarks.peers import blas, eager, opencv
from benchmarks.registry import Inputs, Peer, Row, Target

BOTH = ("cpu", "cuda")


def descriptors(count: int, size: int, small: bool) -> Inputs:
    """Return two sets of unit rows; half of the second are noisy, shuffled copies of the first."""
    count = min(count, 256) if small else count
    generator = torch.Generator().manual_seed(0)
    first = F.normalize(torch.randn(count, size, generator=generator), dim=1)
    second = F.normalize(torch.randn(count, size, generator=generator), dim=1)
    copies = count // 2
    order = torch.randperm(count, generator=generator)[:copies]
    second[order] = F.normalize(first[:copies] + 0.7 * second[order], dim=1)
    return {"descriptors0": first, "descriptors1": second}


def match_gate(inputs: Inputs) -> MatchGate:
    """Return the gate of a matching row."""
    return MatchGate(inputs["descriptors0"], inputs["descriptors1"])


COSINE = (
    "ours: metric=cosine, the default, which also normalises; on a CPU it screens in 16-bit "
    "integers and decides in float32, so its time depends on the data. Peers: products of rows "
    "normalised beforehand"
)
DOT = "ours: metric=dot, every product in float32"


def _row(
    name: str, count: int, size: int, targets: tuple[Target, ...], *, dot: bool = False
) -> Row:
    chunked = (
        Peer("torch eager, 256-row blocks", eager.mutual_blocks, devices=BOTH),
        Peer("torch.compile, 256-row blocks", eager.mutual_blocks_compiled, compiled=True),
    )
    large = count > 8192
    return Row(
        id=f"correspondence.{name}",
        op="correspondence",
        title="Mutual nearest neighbours, both directions" + (", dot" if dot else ""),
        shape=f"{count} x {count} x {size}",
        dtype="float32",
        layout="[N,D] and [M,D] contiguous",
        inputs=partial(descriptors, count, size),
        gate=match_gate,
        ours=_ours.mutual_dot if dot else _ours.mutual,
        note=DOT if dot else COSINE,
        peers=(
            Peer("FAISS IndexFlatIP, one direction", blas.faiss_forward, "forward", "blas"),
            Peer("FAISS IndexFlatIP, both directions", blas.faiss_mutual, where="blas"),
            Peer("FAISS one direction, SkylakeX", blas.faiss_forward, "forward", "blas-skylakex"),
            Peer("FAISS both directions, SkylakeX", blas.faiss_mutual, where="blas-skylakex"),
            Peer(
                "torch.compile", partial(eager.compiled, eager.mutual), devices=BOTH, compiled=True
            ),
            Peer(
                "torch.compile max-autotune",
                partial(eager.compiled, eager.mutual, mode="max-autotune"),
                devices=("cuda",),
                compiled=True,
            ),
            Peer("torch eager", partial(eager.eager, eager.mutual), devices=BOTH),
            *(chunked if large else chunked[:1]),
            Peer("OpenCV BFMatcher L2, one direction", opencv.match_forward, "forward"),
            Peer("NumPy", blas.numpy_mutual, where="blas"),
            Peer("NumPy, SkylakeX", blas.numpy_mutual, where="blas-skylakex"),
        ),
        targets=targets,
        flops=2.0 * count * count * size,
        moved_bytes=4.0 * 2 * count * size + 2 * 12.0 * count,
        formula="2NMD operations; inputs once, 12 bytes per row and column of output",
    )


ROWS = (
    _row(
        "mutual_4096_128",
        4096,
        128,
        (
            Target(("FAISS IndexFlatIP, one direction",), 2.0),
            Target(("torch.compile",), 4.5),
            Target(("torch eager",), 7.0),
        ),
    ),
    _row("mutual_dot_4096_128", 4096, 128, (), dot=True),
    _row("mutual_900_304", 900, 304, (Target((), 2.0),)),
    _row("mutual_16384_64", 16384, 64, (Target((), 2.0),)),
)
