# SPDX-License-Identifier: Apache-2.0
"""Our candidates: thin calls of ``patchword.ops``, reported as not available where it is absent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common import NotAvailable, Run
from benchmarks.registry import Inputs


def find_op(name: str) -> Callable[..., Any]:
    """Return ``patchword.ops.<name>``.

    Raises:
        NotAvailable: the package does not import or has no such op.
    """
    try:
        from patchword import ops
    except ImportError as error:
        raise NotAvailable(f"patchword.ops does not import: {error}") from error
    try:
        function: Callable[..., Any] = getattr(ops, name)
    except (AttributeError, ImportError) as error:
        raise NotAvailable(f"patchword.ops.{name} is missing: {error}") from error
    return function


def bind(name: str, backend: str, *arguments: Any, **options: Any) -> Run:
    """Return the call of ``patchword.ops.<name>`` on a backend."""
    return partial(find_op(name), *arguments, backend=backend, **options)


def mutual(inputs: Inputs, backend: str) -> Run:
    """Mutual nearest neighbours, both directions in one pass, with the default metric."""
    sets = inputs["descriptors0"], inputs["descriptors1"]
    return bind("mutual_nearest_neighbors", backend, *sets)


def mutual_dot(inputs: Inputs, backend: str) -> Run:
    """Mutual nearest neighbours of rows taken as they are."""
    sets = inputs["descriptors0"], inputs["descriptors1"]
    return bind("mutual_nearest_neighbors", backend, *sets, metric="dot")


def softmax_map(inputs: Inputs, backend: str) -> Run:
    """Similarity maps with queries packed beforehand."""
    if backend != "native":
        return softmax_map_unpacked(inputs, backend)
    packed = find_op("pack_queries")(inputs["queries"])
    return softmax_map_unpacked({**inputs, "queries": packed}, backend)


def softmax_map_unpacked(inputs: Inputs, backend: str) -> Run:
    """Similarity maps with queries packed in every call."""
    arguments = inputs["patches"], inputs["queries"]
    options = {"scale": inputs["scale"], "output": "softmax", "channels_last": True}
    return bind("patch_similarity", backend, *arguments, **options)


def labels(inputs: Inputs, backend: str) -> Run:
    """Labels of upsampled logits."""
    arguments = inputs["logits"], inputs["size"]
    return bind("mask_upsample", backend, *arguments, mode=inputs["mode"], output="labels")


def masks(inputs: Inputs, backend: str) -> Run:
    """Thresholded upsampled logits."""
    arguments = inputs["logits"], inputs["size"]
    return bind(
        "mask_upsample", backend, *arguments, mode=inputs["mode"], output="binary", threshold=0.5
    )


def sample(inputs: Inputs, backend: str) -> Run:
    """Features sampled at points."""
    arguments = inputs["features"], inputs["points"]
    return bind("sample_features", backend, *arguments, stride=inputs["stride"])


def score(inputs: Inputs, backend: str) -> Run:
    """Match scores under the published rounding, which the peers follow too."""
    names = ("features0", "features1", "points01", "weights0", "mask1")
    arguments = tuple(inputs[name] for name in names)
    return bind("match_score", backend, *arguments, grid=inputs["grid"], rounding="published")


def refine_masks(inputs: Inputs, backend: str) -> Run:
    """Masks refined along the edges of their picture."""
    arguments = (inputs[name] for name in ("image", "masks", "dilations", "iterations"))
    return bind("pamr", backend, *arguments)


def pool(inputs: Inputs, backend: str) -> Run:
    """Top and bottom means."""
    return bind("weldon_pool", backend, inputs["maps"], inputs["k_max"], inputs["k_min"])


def pool_gradient(inputs: Inputs, backend: str) -> Run:
    """Top and bottom means and the gradient of their sum."""
    from benchmarks.peers.pooling import gradient_of, trainable

    pool_maps = partial(find_op("weldon_pool"), backend=backend)
    options = inputs["k_max"], inputs["k_min"]
    return partial(gradient_of, pool_maps, trainable(inputs["maps"]), *options)


def count_pairs(inputs: Inputs, backend: str) -> Run:
    """Joint counts of two label maps."""
    arguments = inputs["prediction"], inputs["target"], inputs["classes"]
    return bind("confusion_counts", backend, *arguments)


def fold_and_locate(inputs: Inputs, backend: str) -> Run:
    """Folded texts, their heat maps, locations and masks."""
    arguments = (inputs[name] for name in ("maps", "text", "projection", "top"))
    return bind("folded_heatmap", backend, *arguments, threshold=inputs["threshold"])
