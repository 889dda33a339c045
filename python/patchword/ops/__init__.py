# SPDX-License-Identifier: Apache-2.0
"""The ops: functions of tensors, each compiled, in plain torch, and in Triton where it pays."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from patchword.ops import _backends, _environment
from patchword.ops._backends import Backend, use_backend
from patchword.ops.attention import (
    AttentionRoute,
    attention,
    attention_route,
    co_attention,
    dual_attention,
    pair_attention,
    value_attention,
)
from patchword.ops.confusion_counts import confusion_counts
from patchword.ops.correspondence import (
    CycleConsistency,
    Matches,
    NearestNeighbors,
    cycle_consistency,
    dual_softmax_matches,
    match_logsumexp,
    mutual_nearest_neighbors,
    nearest_neighbors,
)
from patchword.ops.folded_heatmap import FoldedHeatmap, fold_units, folded_heatmap
from patchword.ops.keypoint_join import KeypointJoin, keypoint_join
from patchword.ops.mask_upsample import intersection_and_union, mask_upsample, upsampled_confusion
from patchword.ops.match_score import match_score
from patchword.ops.pamr import pamr
from patchword.ops.patch_similarity import PackedQueries, pack_queries, patch_similarity
from patchword.ops.point_infonce import pair_weights, point_infonce
from patchword.ops.retrieval_ranks import RetrievalRanks, retrieval_ranks, score_ranks
from patchword.ops.sample_features import sample_features
from patchword.ops.sru import sru
from patchword.ops.weldon_pool import weldon_pool

__all__ = [
    "OPS",
    "AttentionRoute",
    "Backend",
    "CycleConsistency",
    "FoldedHeatmap",
    "KeypointJoin",
    "Matches",
    "NearestNeighbors",
    "PackedQueries",
    "RetrievalRanks",
    "attention",
    "attention_route",
    "co_attention",
    "confusion_counts",
    "cycle_consistency",
    "dual_attention",
    "dual_softmax_matches",
    "explain",
    "explain_environment",
    "fold_units",
    "folded_heatmap",
    "intersection_and_union",
    "keypoint_join",
    "mask_upsample",
    "match_logsumexp",
    "match_score",
    "mutual_nearest_neighbors",
    "nearest_neighbors",
    "pack_queries",
    "pair_attention",
    "pair_weights",
    "pamr",
    "patch_similarity",
    "point_infonce",
    "retrieval_ranks",
    "sample_features",
    "score_ranks",
    "sru",
    "upsampled_confusion",
    "use_backend",
    "value_attention",
    "weldon_pool",
]

# Public op -> room that holds it.
OPS: dict[str, str] = {
    "attention": "attention",
    "co_attention": "attention",
    "dual_attention": "attention",
    "pair_attention": "attention",
    "value_attention": "attention",
    "confusion_counts": "confusion_counts",
    "cycle_consistency": "correspondence",
    "dual_softmax_matches": "correspondence",
    "fold_units": "folded_heatmap",
    "folded_heatmap": "folded_heatmap",
    "match_logsumexp": "correspondence",
    "mutual_nearest_neighbors": "correspondence",
    "nearest_neighbors": "correspondence",
    "keypoint_join": "keypoint_join",
    "mask_upsample": "mask_upsample",
    "match_score": "match_score",
    "pamr": "pamr",
    "patch_similarity": "patch_similarity",
    "point_infonce": "point_infonce",
    "retrieval_ranks": "retrieval_ranks",
    "sample_features": "sample_features",
    "score_ranks": "retrieval_ranks",
    "sru": "sru",
    "upsampled_confusion": "mask_upsample",
    "weldon_pool": "weldon_pool",
}


def explain(op: str, *args: Any, **options: Any) -> dict[str, str | None]:
    """Why each backend would refuse these inputs of ``op``; None where it would run.

    Args:
        op: Name of a public op, a key of ``OPS``.
        args: The tensors that the op would get.
        options: Its options, where a backend's answer depends on them.
    """
    room = import_module(f"patchword.ops.{OPS[op]}")
    return _backends.reasons(room.refusals, *args, **options)


def explain_environment() -> dict[str, Any]:
    """Versions, devices, CPU level, and per op which backend would run and why not the others."""
    return _environment.explain_environment(OPS)
