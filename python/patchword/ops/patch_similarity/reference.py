# SPDX-License-Identifier: Apache-2.0
"""Similarity of patches to queries in plain torch: the definition that kernels must meet."""

from __future__ import annotations

import torch
from torch import Tensor


def _inverse_norm(vectors: Tensor, cosine: bool, eps: float) -> Tensor:
    if not cosine:
        return vectors.new_ones(())
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return 1 / norm.clamp_min(eps)


def _reduce_groups(
    z: Tensor, take_part: Tensor, groups: Tensor, num_classes: int, mean: bool
) -> tuple[Tensor, Tensor]:
    """Prompts to classes: ``z [B, N, G]`` and ``take_part [B or 1, 1, G]``."""
    values, present = [], []
    for group in range(num_classes):
        members = take_part & (groups == group)
        some = members.any(-1, keepdim=True)
        if mean:
            total = torch.where(members, z, 0).sum(-1, keepdim=True)
            value = total / members.sum(-1, keepdim=True)
        elif z.shape[-1] == 0:
            value = z.new_zeros((*z.shape[:2], 1))
        else:
            # NaN loses to every number, the lowest index wins, and takes the gradient.
            keys = torch.where(members & ~z.isnan(), z.detach(), -torch.inf)
            ranked = torch.where(keys == keys.amax(-1, keepdim=True), members & ~z.isnan(), False)
            winner = torch.where(ranked.any(-1, keepdim=True), ranked, members).byte().argmax(-1)
            value = z.gather(-1, winner[..., None])
        values.append(torch.where(some, value, -torch.inf))
        present.append(some)
    if not values:
        return z.new_zeros((*z.shape[:2], 0)), take_part[..., :0]
    return torch.cat(values, -1), torch.cat(present, -1)


def _ranked(z: Tensor, take_part: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best ``k`` of each row, lowest index first among equals; then -inf and -1."""
    valid = take_part & ~z.isnan()
    order = torch.where(valid, z, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    rank = valid.gather(-1, order).byte().sort(dim=-1, descending=True, stable=True).indices
    order = order.gather(-1, rank)
    order = order[..., :k]
    found = valid.gather(-1, order)
    values = torch.where(found, z.gather(-1, order), -torch.inf)
    indices = torch.where(found, order, -1)
    missing = k - order.shape[-1]
    if missing > 0:
        values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
        indices = torch.nn.functional.pad(indices, (0, missing), value=-1)
    return values, indices


def patch_similarity_reference(
    patches: Tensor,
    queries: Tensor,
    *,
    outputs: tuple[str, ...],
    cosine: bool = True,
    scale: float | Tensor = 1.0,
    bias: float | Tensor = 0.0,
    class_mask: Tensor | None = None,
    groups: Tensor | None = None,
    num_classes: int = 0,
    group_mean: bool = False,
    top_k: int = 5,
    background: float | None = None,
    channels_last: bool = False,
    eps: float = 1e-12,
) -> dict[str, tuple[Tensor, ...]]:
    """What is wanted of ``z[b, n, c] = scale <x, w> / (max(|x|, eps) max(|w|, eps)) + bias``.

    ``take_part`` follows from ``class_mask`` (True = take part) and holds for probabilities,
    ranks and sums; ``logits`` and ``minmax`` are those of every class. Maps have the dtype of
    ``patches``, statistics float32 (float64 for float64). See :func:`patch_similarity`.
    """
    compute = torch.float64 if patches.dtype == torch.float64 else torch.float32
    x, w = patches.to(compute), queries.to(compute)
    x = x * _inverse_norm(x, cosine, eps)
    w = w * _inverse_norm(w, cosine, eps)
    z = scale * (x @ w.transpose(-1, -2)) + bias
    z = z.to(compute)
    take_part = torch.ones((1, 1, z.shape[-1]), dtype=torch.bool, device=z.device)
    if class_mask is not None:
        take_part = class_mask.view(-1, 1, z.shape[-1])
    if groups is not None:
        z, take_part = _reduce_groups(z, take_part, groups, num_classes, group_mean)

    def as_map(values: Tensor) -> Tensor:
        return (values if channels_last else values.transpose(1, 2)).to(patches.dtype).contiguous()

    some = take_part.any(-1, keepdim=True)
    # A row without a candidate gets zeros here, so that no NaN arises that a gradient would keep.
    rivals = torch.where(take_part, z, torch.where(some, -torch.inf, 0.0).to(compute))
    if background is not None:
        rivals = torch.where(take_part, z, -torch.inf)
        rivals = torch.cat([rivals, rivals.new_full((*z.shape[:2], 1), background)], -1)
        some = torch.ones_like(some)

    results: dict[str, tuple[Tensor, ...]] = {}
    probabilities = torch.where(take_part, rivals.softmax(-1)[..., : z.shape[-1]], 0.0)
    if "logits" in outputs:
        results["logits"] = (as_map(z),)
    if "softmax" in outputs:
        results["softmax"] = (as_map(probabilities),)
    if "sigmoid" in outputs:
        results["sigmoid"] = (as_map(torch.where(take_part, z.sigmoid(), 0.0)),)
    if "topk" in outputs:
        results["topk"] = _ranked(z, take_part, top_k)
    if "argmax" in outputs:
        values, indices = _ranked(z, take_part, 1)
        value, index = values[..., 0], indices[..., 0]
        if background is not None:
            index = torch.where(background > value, -1, index)
        # The winner's probability, the background's included; NaN rows have none.
        peak = rivals.softmax(-1).amax(-1) if rivals.shape[-1] else value.new_zeros(value.shape)
        results["argmax"] = (index, torch.where(some[..., 0], peak, 0.0))
    if "logsumexp" in outputs:
        total = rivals.logsumexp(-1) if rivals.shape[-1] else z.new_zeros(z.shape[:2])
        results["logsumexp"] = (torch.where(some[..., 0], total, -torch.inf),)
    if "minmax" in outputs:
        edge = z.new_full((z.shape[0], 1, z.shape[2]), torch.inf)
        low = torch.cat([torch.where(z.isnan(), torch.inf, z), edge], 1).amin(1)
        high = torch.cat([torch.where(z.isnan(), -torch.inf, z), -edge], 1).amax(1)
        results["minmax"] = (low, high)
    return results
