# SPDX-License-Identifier: Apache-2.0
"""Rows of ranks of true items, from embeddings and from a score matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accuracy import DOT_TOLERANCE, as_tensor
from benchmarks.common import Run
from benchmarks.ops import _ours
from benchmarks.peers import eager
from benchmarks.registry import Gate, Inputs, Peer, Row, Target, Verdict

QUERIES, GALLERY, DIM = 1000, 5000, 2400
BOTH = ("cpu", "cuda")


def rank_inputs(small: bool) -> Inputs:
    """Return normalised queries [1000,2400], gallery [5000,2400], truth, and their scores."""
    generator = torch.Generator().manual_seed(7)
    rows, columns, dim = (40, 70, 96) if small else (QUERIES, GALLERY, DIM)
    queries = F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    gallery = F.normalize(torch.randn(columns, dim, generator=generator), dim=1)
    truth = torch.randint(0, columns, (rows,), generator=generator)
    return {"queries": queries, "gallery": gallery, "truth": truth, "scores": queries @ gallery.T}


def rank_gate(inputs: Inputs) -> Gate:
    """Return a gate: whoever is counted wrongly must be a near-tie in float64."""
    scores = inputs["queries"].double() @ inputs["gallery"].double().T
    own = scores.gather(1, inputs["truth"][:, None])
    least = (scores > own + 4 * DOT_TOLERANCE).sum(1)
    most = (scores > own - 4 * DOT_TOLERANCE).sum(1) - 1
    exact = (scores > own).sum(1)

    def judge(output: Any, part: str) -> Verdict | None:
        if part == "other":
            return None
        ranks = as_tensor(getattr(output, "ranks0", output))
        wrong = int(((ranks < least) | (ranks > most)).sum())
        return Verdict(0.0, 0.0, wrong, int((ranks != exact).sum()))

    return judge


def _from_embeddings(queries: Tensor, gallery: Tensor, truth: Tensor) -> Tensor:
    return _from_scores(queries @ gallery.T, truth)


def _from_scores(scores: Tensor, truth: Tensor) -> Tensor:
    return (scores > scores.gather(1, truth[:, None])).sum(1)


def _argsort(scores: Tensor, truth: Tensor) -> Tensor:
    return (scores.argsort(1, descending=True) == truth[:, None]).nonzero()[:, 1]


def embeddings(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Product, comparison, sum."""
    return _from_embeddings, (inputs["queries"], inputs["gallery"], inputs["truth"])


def scores(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Comparison and sum."""
    return _from_scores, (inputs["scores"], inputs["truth"])


def argsort(inputs: Inputs) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A sort of every row."""
    return _argsort, (inputs["scores"], inputs["truth"])


def ours_embeddings(inputs: Inputs, backend: str) -> Run:
    """Ranks without the score matrix."""
    arguments = inputs["queries"], inputs["gallery"], inputs["truth"]
    return _ours.bind("retrieval_ranks", backend, *arguments, ties="optimistic")


def ours_both(inputs: Inputs, backend: str) -> Run:
    """Ranks of both directions from one product."""
    arguments = inputs["queries"], inputs["gallery"], inputs["truth"]
    return _ours.bind("retrieval_ranks", backend, *arguments, ties="optimistic", both=True)


def ours_scores(inputs: Inputs, backend: str) -> Run:
    """Ranks from given scores."""
    return _ours.bind("score_ranks", backend, inputs["scores"], inputs["truth"], ties="optimistic")


def _peer(name: str, prepare: Any, compiled: bool = False) -> Peer:
    build = partial(eager.compiled if compiled else eager.eager, prepare)
    return Peer(name, build, devices=BOTH, compiled=compiled)


ROWS = (
    Row(
        id="retrieval_ranks.embeddings",
        op="retrieval_ranks",
        title="Ranks of true items from embeddings",
        shape=f"{QUERIES} x {GALLERY}, D {DIM}",
        dtype="float32",
        layout="contiguous",
        inputs=rank_inputs,
        gate=rank_gate,
        ours=ours_embeddings,
        peers=(
            _peer("torch eager product and count", embeddings),
            _peer("torch.compile product and count", embeddings, compiled=True),
        ),
        targets=(Target(("torch eager product and count",), 2.0),),
        flops=2.0 * QUERIES * GALLERY * DIM,
        moved_bytes=4.0 * DIM * (QUERIES + GALLERY),
        formula="two operations per product; both sets once",
        variants=(("both directions", ours_both),),
    ),
    Row(
        id="retrieval_ranks.scores",
        op="retrieval_ranks",
        title="Ranks of true items from a score matrix",
        shape=f"{QUERIES} x {GALLERY}",
        dtype="float32",
        layout="contiguous",
        inputs=rank_inputs,
        gate=rank_gate,
        ours=ours_scores,
        peers=(
            _peer("torch eager count", scores),
            _peer("torch.compile count", scores, compiled=True),
            _peer("torch argsort", argsort),
        ),
        targets=(Target(("torch.compile count",), 1.3),),
        flops=2.0 * QUERIES * GALLERY,
        moved_bytes=4.0 * QUERIES * GALLERY,
        formula="two comparisons per score; scores once",
    ),
)
