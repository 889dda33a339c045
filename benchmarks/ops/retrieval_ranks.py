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
LATENT = 64
BOTH = ("cpu", "cuda")


def _inputs(queries: Tensor, gallery: Tensor, truth: Tensor) -> Inputs:
    queries, gallery = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    return {"queries": queries, "gallery": gallery, "truth": truth, "scores": queries @ gallery.T}


def independent_inputs(small: bool) -> Inputs:
    """Return normalised queries [1000,2400], gallery [5000,2400], truth, and their scores.

    All vectors are independent: a true item scores no better than others, and nearly every score
    lies close to the true one, which no trained model's do. The worst case of screening.
    """
    generator = torch.Generator().manual_seed(7)
    rows, columns, dim = (40, 70, 96) if small else (QUERIES, GALLERY, DIM)
    queries = torch.randn(rows, dim, generator=generator)
    gallery = torch.randn(columns, dim, generator=generator)
    return _inputs(queries, gallery, torch.randint(0, columns, (rows,), generator=generator))


def trained_inputs(small: bool) -> Inputs:
    """Return the same sizes with the structure of a trained retrieval model.

    An item is a point in 64 latent dimensions, near four others; a query is its true item's point
    plus noise whose size differs from query to query. A random matrix embeds both, and noise is
    added in the embedding. The spread was chosen for recalls at 1, 5 and 10 as published
    text-to-image retrieval reaches: about 53, 84 and 88 per cent here.
    """
    generator = torch.Generator().manual_seed(7)
    rows, columns, dim = (40, 70, 96) if small else (QUERIES, GALLERY, DIM)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    embed = normal(LATENT, dim) / LATENT**0.5
    points = normal(columns // 5, LATENT).repeat_interleave(5, 0) + 0.3 * normal(columns, LATENT)
    truth = torch.randint(0, columns, (rows,), generator=generator)
    spread = 1.6 * torch.exp(0.3 * normal(rows, 1))
    seen = points[truth] + spread * normal(rows, LATENT)
    queries = seen @ embed + 0.5 * normal(rows, dim)
    return _inputs(queries, points @ embed + 0.5 * normal(columns, dim), truth)


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


def _embeddings_row(name: str, title: str, inputs: Any, targets: tuple[Target, ...]) -> Row:
    return Row(
        id=f"retrieval_ranks.{name}",
        op="retrieval_ranks",
        title=title,
        shape=f"{QUERIES} x {GALLERY}, D {DIM}",
        dtype="float32",
        layout="contiguous",
        inputs=inputs,
        gate=rank_gate,
        ours=ours_embeddings,
        peers=(
            _peer("torch eager product and count", embeddings),
            _peer("torch.compile product and count", embeddings, compiled=True),
        ),
        targets=targets,
        flops=2.0 * QUERIES * GALLERY * DIM,
        moved_bytes=4.0 * DIM * (QUERIES + GALLERY),
        formula="two operations per product; both sets once",
        variants=(("both directions", ours_both),),
    )


ROWS = (
    _embeddings_row(
        "embeddings",
        "Ranks of true items from embeddings, recall at 1 about 53 %",
        trained_inputs,
        (Target(("torch eager product and count",), 2.0),),
    ),
    _embeddings_row(
        "independent",
        "Ranks of true items from independent vectors, the worst case",
        independent_inputs,
        (),
    ),
    Row(
        id="retrieval_ranks.scores",
        op="retrieval_ranks",
        title="Ranks of true items from a score matrix",
        shape=f"{QUERIES} x {GALLERY}",
        dtype="float32",
        layout="contiguous",
        inputs=independent_inputs,
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
