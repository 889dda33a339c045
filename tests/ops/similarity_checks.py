# SPDX-License-Identifier: Apache-2.0
"""Compare every output of patch_similarity with the float64 reference under the contract."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchword.ops import PackedQueries, patch_similarity
from patchword.testing import (
    assert_indices,
    assert_log_sum_exp,
    assert_probability,
    assert_within,
    dot_tolerance,
    rounding,
)

ALL = ("logits", "softmax", "sigmoid", "topk", "argmax", "logsumexp", "minmax")

# B, N, D, C: empty, one, primes, around the tiles (4, 6, 8, 12, 16, 32 wide), one large.
SHAPES = (
    (0, 3, 4, 5),
    (2, 0, 4, 5),
    (2, 3, 0, 5),
    (2, 3, 4, 0),
    (1, 1, 1, 1),
    (1, 7, 5, 2),
    (2, 17, 13, 7),
    (1, 31, 33, 12),
    (2, 33, 40, 13),
    (1, 16, 129, 11),
    (1, 15, 257, 6),
    (1, 65, 300, 37),
    (1, 200, 770, 151),
)


def random_inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, batched: bool = False
) -> tuple[Tensor, Tensor]:
    batch, count, dim, classes = shape
    patches = torch.randn(batch, count, dim).to(dtype)
    queries = torch.randn((batch, classes, dim) if batched else (classes, dim)).to(dtype)
    return patches, queries


def _on_cpu(value: Any) -> Any:
    return (
        value.detach().cpu().double()
        if isinstance(value, Tensor) and value.is_floating_point()
        else (value.detach().cpu() if isinstance(value, Tensor) else value)
    )


def check(
    patches: Tensor,
    queries: Tensor | PackedQueries,
    what: str,
    *,
    outputs: tuple[str, ...] = ALL,
    backend: str = "native",
    **options: Any,
) -> dict[str, Any]:
    """Run all outputs in one pass and compare each with float64 on the stored inputs."""
    plain = queries.queries if isinstance(queries, PackedQueries) else queries
    results = patch_similarity(patches, queries, output=outputs, backend=backend, **options)
    exact = {name: _on_cpu(value) for name, value in options.items()}
    oracle = patch_similarity(
        _on_cpu(patches), _on_cpu(plain), output=ALL, backend="reference", **exact
    )
    scale = abs(float(options.get("scale", 1.0)))
    mode = "float32" if torch.float32 in (patches.dtype, plain.dtype) else "half"
    norms = torch.tensor(1.0, dtype=torch.float64)
    if options.get("metric") == "dot" and patches.numel() and plain.numel():
        norms = (_on_cpu(patches).norm(dim=-1).max() * _on_cpu(plain).norm(dim=-1).max()).cpu()
    # The bias and the logit itself are float32 numbers: their rounding comes on top of the dot's.
    largest = oracle["logits"].nan_to_num(0, 0, 0).abs().max() if oracle["logits"].numel() else 0.0
    tau = norms * dot_tolerance(mode) * scale + largest * 2.0**-23
    spread = float(tau) / dot_tolerance(mode)  # what the scale of a probability's error amounts to

    for name in outputs:
        got, want, label = results[name], oracle[name], f"{what} {name}"
        if name == "logits":
            assert got.dtype == patches.dtype, label
            assert_within(got, want, tau + rounding(got.dtype, want.abs() + tau), label)
        elif name in ("softmax", "sigmoid"):
            assert got.dtype == patches.dtype, label
            assert_probability(got, want, label, scale=spread, mode=mode)
        elif name == "logsumexp":
            assert_log_sum_exp(got, want, label, scale=1.0, norm_product=spread, mode=mode)
        elif name == "minmax":
            assert_within(got.minimum, want.minimum, tau, label)
            assert_within(got.maximum, want.maximum, tau, label)
        elif name == "topk":
            assert_within(got.values, want.values, tau, label)
            _check_ranks(got.indices.cpu(), oracle, tau, label, options)
        else:
            assert_probability(got.confidence, want.confidence, label, scale=spread, mode=mode)
            _check_winner(got.indices.cpu(), oracle, tau, label, options)
    return dict(results)


def _candidates(oracle: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """Float64 logits ``[B, N, C]`` with NaN where a class does not take part."""
    logits = oracle["logits"]
    if options.get("grid") is not None:
        logits = logits.flatten(1, 2) if options.get("channels_last") else logits.flatten(2)
    if not options.get("channels_last"):
        logits = logits.transpose(1, 2)
    mask = options.get("class_mask")
    if mask is not None and options.get("groups") is None:
        logits = torch.where(mask.cpu().view(-1, 1, logits.shape[2]), logits, torch.nan)
    return torch.where(logits.isneginf(), torch.nan, logits)


def _check_winner(
    index: Tensor, oracle: dict[str, Any], tau: Tensor, label: str, options: dict[str, Any]
) -> None:
    scores = _candidates(oracle, options)
    background = options.get("background")
    if background is not None:
        # As a last candidate: classes come before it among equals.
        scores = torch.cat([scores, scores.new_full((*scores.shape[:2], 1), background)], -1)
        index = torch.where(index < 0, scores.shape[-1] - 1, index)
    assert_indices(index, scores, tau, label)


def _check_ranks(
    index: Tensor, oracle: dict[str, Any], tau: Tensor, label: str, options: dict[str, Any]
) -> None:
    scores = _candidates(oracle, options)
    missing = oracle["topk"].indices < 0
    assert torch.equal(index < 0, missing), f"{label}: -1 at the wrong places"
    if scores.shape[-1] == 0:
        return
    chosen = scores.gather(-1, index.clamp_min(0))
    assert_within(
        torch.where(missing, 0.0, chosen),
        torch.where(missing, 0.0, oracle["topk"].values),
        2 * tau,
        f"{label}: scores of the indices",
    )
    for row in index.flatten(0, -2).tolist():
        found = [i for i in row if i >= 0]
        assert len(set(found)) == len(found), f"{label}: an index twice in {row}"
