# SPDX-License-Identifier: Apache-2.0
"""Ranks of the true items of a retrieval, from embeddings or from a score matrix."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.retrieval_ranks import native
from patchword.ops.retrieval_ranks.reference import (
    TIES,
    retrieval_ranks_reference,
    score_ranks_reference,
)

__all__ = ["RetrievalRanks", "refusals", "retrieval_ranks", "score_ranks"]

Ties = Literal["optimistic", "pessimistic", "legacy"]


class RetrievalRanks(NamedTuple):
    """Zero-based ranks of the best true item.

    Attributes:
        ranks0: ``[N]``, for each query, among the gallery.
        ranks1: ``[M]``, for each gallery item, among the queries; None unless asked for.
    """

    ranks0: Tensor
    ranks1: Tensor | None


def _always(scores: Tensor, *rest: Tensor, **options: Any) -> None:
    return None


refusals: dict[Backend, _backends.Refusal] = {"native": native.refuse, "reference": _always}


def _check(op: str, first: str, tensor: Tensor, truth: Tensor, ties: str) -> Tensor:
    """Check what both ops share; return ``truth`` as ``[N, P]`` int64."""
    if not tensor.is_floating_point():
        raise DTypeError(f"{op}: {first} must be floating point, got {tensor.dtype}.")
    if truth.dtype is torch.bool or truth.is_floating_point() or truth.is_complex():
        raise DTypeError(f"{op}: truth must be integers, got {truth.dtype}.")
    if truth.device != tensor.device:
        raise DTypeError(
            f"{op}: truth must be on {tensor.device} like {first}, got {truth.device}."
        )
    if truth.ndim not in (1, 2) or truth.shape[0] != tensor.shape[0]:
        rows = tensor.shape[0]
        raise ShapeError(
            f"{op}: truth must have shape [{rows}] or [{rows}, P], got {list(truth.shape)}.",
            (rows, "P"),
            tuple(truth.shape),
        )
    if ties not in TIES:
        raise OptionError(
            f'{op}: ties must be "optimistic", "pessimistic" or "legacy", got {ties!r}.'
        )
    if truth.dtype is not torch.int64:
        truth = truth.long()
    return truth if truth.ndim == 2 else truth[:, None]


def retrieval_ranks(
    queries: Tensor,
    gallery: Tensor,
    truth: Tensor,
    *,
    ties: Ties = "pessimistic",
    both: bool = False,
    backend: Backend | None = None,
) -> RetrievalRanks:
    """Rank the true item of each query by dot product, without keeping the score matrix.

    Args:
        queries: ``[N, D]``, any strides. Normalise the rows for ranks by cosine.
        gallery: ``[M, D]``, same dtype.
        truth: ``[N]`` index of the gallery item that is right for each query, or ``[N, P]`` of
            several, of which the best-ranked counts. Indices outside 0..M-1 name nobody.
        ties: What a candidate with exactly the true item's score does: ``"pessimistic"`` comes
            before it, ``"optimistic"`` after it, ``"legacy"`` before it if its index is larger
            (the order of a reversed stable ascending sort).
        both: Also rank, for each gallery item, the queries that name it.
        backend: Force ``"native"`` or ``"reference"``; default: the first that can run.

    Returns:
        :class:`RetrievalRanks` of int64 counts of the candidates before the true item: 0 is best,
        recall at k is ``(ranks < k).mean()``. -1 where no true item is named.

    Raises:
        ShapeError: Shapes do not fit.
        DTypeError: Not floating point, of two dtypes or devices, or truth that is no integer.
        OptionError: Unknown tie rule.
        BackendError: The forced backend cannot run these inputs.

    Note:
        True scores are worked out by the same instructions as all others, so equal means equal.
        Memory beyond the result is O(N + M) plus a fixed number of rows of length D on the CPU;
        on CUDA it holds 16-bit copies of both sets. NaN scores come after all numbers. No
        gradients.

    Example:
        >>> import torch
        >>> images = torch.eye(3)
        >>> texts = torch.tensor([[1.0, 0, 0], [0, 0.2, 0.9], [0, 0.1, 1.0]])
        >>> retrieval_ranks(images, texts, torch.arange(3)).ranks0
        tensor([0, 0, 0])
        >>> retrieval_ranks(texts, images, torch.arange(3)).ranks0
        tensor([0, 1, 0])
    """
    for name, tensor in (("queries", queries), ("gallery", gallery)):
        if tensor.ndim != 2:
            raise ShapeError(
                f"retrieval_ranks: {name} must have shape [N, D], got {list(tensor.shape)}.",
                "[N, D]",
                tuple(tensor.shape),
            )
    if queries.shape[1] != gallery.shape[1]:
        raise ShapeError(
            f"retrieval_ranks: gallery must have vectors of {queries.shape[1]} like queries, "
            f"got {gallery.shape[1]}."
        )
    if gallery.dtype != queries.dtype or gallery.device != queries.device:
        raise DTypeError(
            f"retrieval_ranks: gallery must be {queries.dtype} on {queries.device} like queries, "
            f"got {gallery.dtype} on {gallery.device}."
        )
    pairs = _check("retrieval_ranks", "queries", queries, truth, ties)
    chosen = _backends.choose("retrieval_ranks", refusals, backend, queries, gallery, pairs)
    run = native.retrieval_ranks_native if chosen == "native" else retrieval_ranks_reference
    return RetrievalRanks(*run(queries, gallery, pairs, ties=ties, both=both))


def score_ranks(
    scores: Tensor,
    truth: Tensor,
    *,
    ties: Ties = "pessimistic",
    backend: Backend | None = None,
) -> Tensor:
    """Rank the true item of each row of a score matrix.

    Args:
        scores: ``[N, M]``, larger is better. Rows of contiguous scores are the fast form.
        truth: ``[N]`` or ``[N, P]``, as for :func:`retrieval_ranks`.
        ties: As for :func:`retrieval_ranks`.
        backend: Force ``"native"`` or ``"reference"``; default: the first that can run.

    Returns:
        ``[N]`` int64 zero-based ranks; -1 where no true item is named.

    Raises:
        ShapeError: Shapes do not fit.
        DTypeError: Scores that are not floating point, or truth that is no integer.
        OptionError: Unknown tie rule.
        BackendError: The forced backend cannot run these inputs.

    Example:
        >>> import torch
        >>> score_ranks(torch.tensor([[0.9, 0.1, 0.9]]), torch.tensor([0]))
        tensor([1])
        >>> score_ranks(torch.tensor([[0.9, 0.1, 0.9]]), torch.tensor([0]), ties="optimistic")
        tensor([0])
    """
    if scores.ndim != 2:
        raise ShapeError(
            f"score_ranks: scores must have shape [N, M], got {list(scores.shape)}.",
            "[N, M]",
            tuple(scores.shape),
        )
    pairs = _check("score_ranks", "scores", scores, truth, ties)
    chosen = _backends.choose("score_ranks", refusals, backend, scores, pairs)
    run = native.score_ranks_native if chosen == "native" else score_ranks_reference
    return run(scores, pairs, ties=ties)
