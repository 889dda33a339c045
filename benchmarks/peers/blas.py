# SPDX-License-Identifier: Apache-2.0
"""NumPy and FAISS peers; this module must stay importable without torch.

They run in a helper process (see ``benchmarks.worker``), because the BLAS below them reads its
settings once, when it is loaded.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import NotAvailable, Run

Array = NDArray[Any]


def _keep_mutual(forward: Array, backward: Array) -> Array:
    return np.where(backward[forward] == np.arange(len(forward)), forward, -1)


def _numpy_mutual(descriptors0: Array, descriptors1: Array) -> Array:
    forward = (descriptors0 @ descriptors1.T).argmax(1)
    return _keep_mutual(forward, (descriptors1 @ descriptors0.T).argmax(1))


def numpy_mutual(inputs: dict[str, Any]) -> Run:
    """Mutual nearest neighbours from two products.

    NumPy's argmax down the columns takes longer than computing the product again transposed.
    """
    return partial(_numpy_mutual, *_descriptors(inputs))


def _descriptors(inputs: dict[str, Any]) -> tuple[Array, Array]:
    return np.asarray(inputs["descriptors0"]), np.asarray(inputs["descriptors1"])


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise NotAvailable(f"faiss does not import: {error}") from error
    return faiss


def _faiss_nearest(faiss: Any, queries: Array, base: Array) -> Array:
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    result: Array = index.search(queries, 1)[1][:, 0]
    return result


def faiss_forward(inputs: dict[str, Any]) -> Run:
    """IndexFlatIP: add and search with k = 1, one direction."""
    return partial(_faiss_nearest, _faiss(), *_descriptors(inputs))


def _faiss_mutual(faiss: Any, descriptors0: Array, descriptors1: Array) -> Array:
    forward = _faiss_nearest(faiss, descriptors0, descriptors1)
    return _keep_mutual(forward, _faiss_nearest(faiss, descriptors1, descriptors0))


def faiss_mutual(inputs: dict[str, Any]) -> Run:
    """IndexFlatIP in both directions and the mutual check."""
    return partial(_faiss_mutual, _faiss(), *_descriptors(inputs))


def _softmax_map(patches: Array, queries_t: Array, scale: np.float32) -> Array:
    norms = np.sqrt(np.einsum("bnd,bnd->bn", patches, patches))[..., None]
    scores = patches @ queries_t
    scores *= scale / np.maximum(norms, 1e-12)
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    result: Array = scores
    return result


def numpy_softmax_map(inputs: dict[str, Any]) -> Run:
    """Similarity maps in place on the logits, queries normalised and transposed beforehand."""
    queries = np.asarray(inputs["queries"])
    queries = queries / np.linalg.norm(queries, axis=-1, keepdims=True)
    return partial(
        _softmax_map,
        np.asarray(inputs["patches"]),
        np.ascontiguousarray(queries.T),
        np.float32(inputs["scale"]),
    )


def _matmul(left: Array, right: Array) -> Array:
    result: Array = left @ right
    return result


def matmul_probe(inputs: dict[str, Any]) -> Run:
    """A square float32 product, the arithmetic ceiling of this BLAS."""
    return partial(_matmul, np.asarray(inputs["left"]), np.asarray(inputs["right"]))
