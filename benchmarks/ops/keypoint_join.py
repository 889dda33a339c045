# SPDX-License-Identifier: Apache-2.0
"""Row of joining keypoint ids over pairs of images."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.accuracy import as_tensor
from benchmarks.common import Run
from benchmarks.ops import _ours
from benchmarks.peers import joins
from benchmarks.registry import Gate, Inputs, Peer, Row, Target, Verdict

IMAGES, IDS, UNIVERSE, PAIRS = 100, 5000, 10000, 1000


def join_inputs(small: bool) -> Inputs:
    """Return images of 5000 ascending ids out of 10000, and random pairs of them."""
    generator = torch.Generator().manual_seed(6)
    count, pairs = (50, 20) if small else (IDS, PAIRS)
    lists = [
        torch.randperm(2 * count if small else UNIVERSE, generator=generator)[:count].sort().values
        for _ in range(IMAGES)
    ]
    return {
        "ids": torch.cat(lists),
        "offsets": torch.arange(IMAGES + 1) * count,
        "pairs": torch.randint(0, IMAGES, (pairs, 2), generator=generator),
    }


def join_gate(inputs: Inputs) -> Gate:
    """Return a gate that wants exactly the rows of searchsorted."""
    want = joins.searchsorted(inputs)()

    def judge(output: Any, part: str) -> Verdict | None:
        if part == "other":
            return None
        rows = (output.rows0, output.rows1) if hasattr(output, "rows0") else tuple(output)
        got = torch.stack([as_tensor(side) for side in rows])
        if got.shape != want.shape:
            return Verdict(float("inf"), 0.0, want.numel())
        return Verdict(0.0, 0.0, int((got != want).sum()))

    return judge


def ours(inputs: Inputs, backend: str) -> Run:
    """All pairs in one call."""
    arguments = inputs["ids"], inputs["offsets"], inputs["pairs"]
    return _ours.bind("keypoint_join", backend, *arguments)


ROWS = (
    Row(
        id="keypoint_join.pairs",
        op="keypoint_join",
        title="Rows with equal ids in pairs of images",
        shape=f"{PAIRS} pairs of {IDS} ids, half of them shared",
        dtype="int64",
        layout="contiguous",
        inputs=join_inputs,
        gate=join_gate,
        ours=ours,
        peers=(
            Peer("numpy.intersect1d", joins.intersect1d),
            Peer("torch.searchsorted", joins.searchsorted),
        ),
        targets=(Target(("numpy.intersect1d",), 5.0),),
        flops=2.0 * PAIRS * IDS,
        moved_bytes=8.0 * PAIRS * IDS * 3,
        formula="one comparison per id; both lists and the matches once",
        note="numpy is told that ids are unique",
    ),
)
