# SPDX-License-Identifier: Apache-2.0
"""Packages with CUDA kernels of their own; each is a reason in the table where it is absent."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import NotAvailable, Run
from benchmarks.peers.attention import views
from benchmarks.registry import Inputs


def _require(name: str) -> Any:
    try:
        return import_module(name)
    except Exception as error:  # a package built for another torch fails in many ways
        reason = (str(error).splitlines() or [""])[0]
        raise NotAvailable(f"{name} does not import: {reason}") from error


def _token_major(packed: Tensor) -> list[Tensor]:
    """Queries, keys and values ``[B, N, H, d]``, which these packages read without a copy."""
    return [t.transpose(1, 2) for t in views(packed)]


def _head_major(function: Any, *tensors: Tensor) -> Tensor:
    out: Tensor = function(*tensors)
    return out.transpose(1, 2)


def flash_attention(inputs: Inputs) -> Run:
    """FlashAttention 2."""
    function = _require("flash_attn").flash_attn_func
    return partial(_head_major, function, *_token_major(inputs["packed0"]))


def flash_attention_3(inputs: Inputs) -> Run:
    """FlashAttention 3, for Hopper."""
    function = _require("flash_attn_interface").flash_attn_func

    def first(*tensors: Tensor) -> Tensor:
        out = function(*tensors)
        plain: Tensor = out[0] if isinstance(out, tuple) else out
        return plain

    return partial(_head_major, first, *_token_major(inputs["packed0"]))


def xformers_attention(inputs: Inputs) -> Run:
    """The memory-efficient attention of xformers, with the kernel it chooses."""
    function = _require("xformers.ops").memory_efficient_attention
    return partial(_head_major, function, *_token_major(inputs["packed0"]))


def _mutual(forward: Tensor, backward: Tensor) -> Tensor:
    kept = backward[forward] == torch.arange(len(forward), device=forward.device)
    return torch.where(kept, forward, -1)


def faiss_forward(inputs: Inputs) -> Run:
    """FAISS brute force on the GPU, one direction."""
    faiss = _require("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        raise NotAvailable("this faiss is built for CPUs alone")
    _require("faiss.contrib.torch_utils")
    resources = faiss.StandardGpuResources()
    resources.setDefaultNullStreamAllDevices()
    first, second = inputs["descriptors0"], inputs["descriptors1"]

    def run() -> Tensor:
        _, indices = faiss.knn_gpu(resources, first, second, 1, metric=faiss.METRIC_INNER_PRODUCT)
        found: Tensor = indices[:, 0]
        return found

    return run


def faiss_mutual(inputs: Inputs) -> Run:
    """FAISS brute force on the GPU, both directions."""
    forward = faiss_forward(inputs)
    swapped = {"descriptors0": inputs["descriptors1"], "descriptors1": inputs["descriptors0"]}
    backward = faiss_forward(swapped)
    return lambda: _mutual(forward(), backward())


def cuvs_forward(inputs: Inputs) -> Run:
    """Brute force of cuVS, one direction; its index is built beforehand."""
    brute_force = _require("cuvs.neighbors.brute_force")
    index = brute_force.build(inputs["descriptors1"], metric="inner_product")
    queries = inputs["descriptors0"]

    def run() -> Tensor:
        _, found = brute_force.search(index, queries, 1)
        return torch.as_tensor(found, device=queries.device)[:, 0]

    return run


def kornia_mutual(inputs: Inputs) -> Run:
    """The match_mnn of kornia, which measures Euclidean distances; equal for unit rows."""
    match = _require("kornia.feature").match_mnn
    first, second = inputs["descriptors0"], inputs["descriptors1"]

    def run() -> Tensor:
        _, pairs = match(first, second)
        found = torch.full((len(first),), -1, device=first.device)
        found[pairs[:, 0]] = pairs[:, 1]
        return found

    return run


def sru_package(inputs: Inputs) -> Run:
    """The published package's own kernel; its layout is interleaved, prepared beforehand."""
    compute = getattr(_require("sru.ops"), "elementwise_recurrence_gpu", None)
    if compute is None:
        raise NotAvailable("this sru package has no elementwise_recurrence_gpu")
    interleaved = inputs["gates"].transpose(2, 3).contiguous()
    steps, batch, units, gates = interleaved.shape
    flat = interleaved.view(steps, batch, units * gates)
    start = torch.zeros(batch, units, device=flat.device)
    tanh, bidirectional, skip = 1, False, True
    tensors = flat, inputs["highway"], inputs["weight"], inputs["bias"], start

    def run() -> Tensor:
        out: Tensor = compute(*tensors, tanh, units, bidirectional, skip)[0]
        return out

    return run
