# SPDX-License-Identifier: Apache-2.0
"""Rows of match scores: one query against a hundred candidates of its size."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.accuracy import ScoreGate
from benchmarks.ops import _ours
from benchmarks.peers import eager, match_score
from benchmarks.registry import Inputs, Peer, Row, Target

CANDIDATES, HEIGHT, WIDTH, CHANNELS = 100, 30, 40, 1024
BOTH = ("cpu", "cuda")
PER_CELL = "per-cell look-ups"


def score_inputs(small: bool, dtype: torch.dtype = torch.float32) -> Inputs:
    """Return unit features of pictures of 640 x 480 pixels and places along smooth flows."""
    generator = torch.Generator().manual_seed(11)
    count = 2 if small else CANDIDATES
    cells = HEIGHT * WIDTH
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    centres = torch.stack([(columns + 0.5) / WIDTH, (rows + 0.5) / HEIGHT], -1).reshape(1, -1, 2)
    zoom = 0.5 + 0.5 * torch.rand(count, 1, 2, generator=generator)
    shift = (1 - zoom) * torch.rand(count, 1, 2, generator=generator)
    jitter = 0.01 * torch.randn(count, cells, 2, generator=generator)
    features0 = torch.rand(cells, CHANNELS, generator=generator)
    features1 = torch.rand(count, cells, CHANNELS, generator=generator)
    return {
        "features0": F.normalize(features0, dim=-1).to(dtype),
        "features1": F.normalize(features1, dim=-1).to(dtype),
        "points01": (centres * zoom + shift + jitter).clamp(0, 1),
        "weights0": torch.rand(count, cells, generator=generator),
        "mask1": torch.rand(count, HEIGHT, WIDTH, generator=generator),
        "grid": (HEIGHT, WIDTH),
    }


def _row(name: str, dtype: torch.dtype) -> Row:
    size = torch.finfo(dtype).bits // 8
    cells = HEIGHT * WIDTH
    return Row(
        id=f"match_score.{name}",
        op="match_score",
        title="Score of a query against 100 candidates",
        shape=f"{CANDIDATES} candidates, {WIDTH} x {HEIGHT} cells, {CHANNELS} channels",
        dtype=name,
        layout="cells x channels",
        inputs=partial(score_inputs, dtype=dtype),
        gate=ScoreGate,
        ours=_ours.score,
        peers=(
            Peer(PER_CELL, match_score.per_cell, devices=BOTH, note="as the definition is written"),
            Peer("torch eager", partial(eager.eager, match_score.vectorised), devices=BOTH),
            Peer(
                "torch.compile",
                partial(eager.compiled, match_score.vectorised),
                devices=BOTH,
                compiled=True,
            ),
        ),
        targets=(Target((PER_CELL,), 50.0), Target(("torch eager",), 3.0)),
        flops=2.0 * CANDIDATES * cells * CHANNELS,
        moved_bytes=size * float(CANDIDATES + 1) * cells * CHANNELS,
        formula="2 operations per channel, cell and candidate; all features once",
        note="peers gather the candidates' rows, weigh and keep the best by scatter_reduce",
    )


ROWS = (_row("float32", torch.float32), _row("float16", torch.float16))
