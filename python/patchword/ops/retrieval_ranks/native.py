# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schemas, allocation, registration, and when it refuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C
from patchword.ops.retrieval_ranks.reference import TIES


def refuse(scores: Tensor, *rest: Tensor, **options: Any) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    tensors = (scores, *rest)
    if any(size >= 2**31 for tensor in tensors for size in tensor.shape):
        return "a dimension has 2^31 elements or more"
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return _library.refuse_device(scores) or _library.refuse_dtype(*floats)


def _fake_from_embeddings(
    queries: Tensor, gallery: Tensor, truth: Tensor, ties: int, both: bool
) -> tuple[Tensor, Tensor]:
    ranks0 = truth.new_empty((queries.shape[0],))
    return ranks0, truth.new_empty((gallery.shape[0] if both else 0,))


def _from_embeddings(
    queries: Tensor, gallery: Tensor, truth: Tensor, ties: int, both: bool
) -> tuple[Tensor, Tensor]:
    ranks0, ranks1 = _fake_from_embeddings(queries, gallery, truth, ties, both)
    rows, dim = queries.shape
    columns = gallery.shape[0]
    if rows == 0 or columns == 0:
        return ranks0.fill_(-1), ranks1.fill_(-1)
    truth = truth.contiguous()
    device, stream, threads = _library.runtime(queries)
    scratch, size = None, 0
    while True:
        size = C.retrieval_ranks(
            device,
            stream,
            threads,
            queries.data_ptr(),
            gallery.data_ptr(),
            truth.data_ptr(),
            ranks0.data_ptr(),
            ranks1.data_ptr() if both else 0,
            0 if scratch is None else _library.written(scratch),
            size,
            rows,
            columns,
            dim,
            truth.shape[1],
            queries.stride(),
            gallery.stride(),
            DTYPE_TAGS[queries.dtype],
            ties,
        )
        if size == 0:
            return ranks0, ranks1
        scratch = torch.empty(size, dtype=torch.uint8, device=queries.device)


def _fake_from_scores(scores: Tensor, truth: Tensor, ties: int) -> Tensor:
    return truth.new_empty((scores.shape[0],))


def _from_scores(scores: Tensor, truth: Tensor, ties: int) -> Tensor:
    ranks = _fake_from_scores(scores, truth, ties)
    rows, columns = scores.shape
    if rows == 0 or columns == 0:
        return ranks.fill_(-1)
    if scores.stride(1) != 1:
        scores = scores.contiguous()
    truth = truth.contiguous()
    device, stream, threads = _library.runtime(scores)
    C.score_ranks(
        device,
        stream,
        threads,
        scores.data_ptr(),
        truth.data_ptr(),
        ranks.data_ptr(),
        rows,
        columns,
        truth.shape[1],
        scores.stride(0),
        DTYPE_TAGS[scores.dtype],
        ties,
    )
    return ranks


_from_embeddings_op = _library.register(
    "retrieval_ranks(Tensor queries, Tensor gallery, Tensor truth, int ties, bool both) "
    "-> (Tensor, Tensor)",
    _from_embeddings,
    _fake_from_embeddings,
)
_from_scores_op = _library.register(
    "score_ranks(Tensor scores, Tensor truth, int ties) -> Tensor",
    _from_scores,
    _fake_from_scores,
)


def retrieval_ranks_native(
    queries: Tensor, gallery: Tensor, truth: Tensor, *, ties: str, both: bool
) -> tuple[Tensor, Tensor | None]:
    """Same contract as :func:`retrieval_ranks_reference`."""
    # Counts have no gradient: detached, embeddings that need one still take the short way.
    queries, gallery = queries.detach(), gallery.detach()
    plain = _library.plain_eager(queries, gallery, truth)
    run = _from_embeddings if plain else _from_embeddings_op
    ranks0, ranks1 = run(queries, gallery, truth, TIES[ties], both)
    return ranks0, ranks1 if both else None


def score_ranks_native(scores: Tensor, truth: Tensor, *, ties: str) -> Tensor:
    """Same contract as :func:`score_ranks_reference`."""
    scores = scores.detach()
    run = _from_scores if _library.plain_eager(scores, truth) else _from_scores_op
    ranks: Tensor = run(scores, truth, TIES[ties])
    return ranks
