# SPDX-License-Identifier: Apache-2.0
"""Gradients of the similarity maps: two matrix products and what lies around them."""

from __future__ import annotations

import torch
from torch import Tensor


def _norms(vectors: Tensor, cosine: bool, eps: float) -> tuple[Tensor, Tensor | None]:
    """``1 / max(|v|, eps)``, and where the norm itself counts (not clamped); None without norms."""
    if not cosine:
        return vectors.new_ones(()), None
    norm = vectors.norm(dim=-1, keepdim=True)
    return 1 / norm.clamp_min(eps), norm > eps


def _through_norm(
    gradient: Tensor, vectors: Tensor, inverse: Tensor, free: Tensor | None
) -> Tensor:
    """Gradient in ``v`` from the gradient in ``v / max(|v|, eps)``."""
    if free is None:
        return gradient
    along = (gradient * vectors).sum(-1, keepdim=True) * inverse * inverse * free
    return inverse * torch.addcmul(gradient, vectors, along, value=-1)


def _logits_of_prompts(
    x: Tensor, w: Tensor, scale: float | Tensor, bias: float | Tensor, cosine: bool, eps: float
) -> Tensor:
    z = (x * _norms(x, cosine, eps)[0]) @ (w * _norms(w, cosine, eps)[0]).transpose(-1, -2)
    return z * scale + bias


def _group_index(order: Tensor, offsets: Tensor, num_classes: int) -> Tensor:
    """Class of every prompt, ``num_classes`` for prompts of no class."""
    position = torch.arange(order.shape[0], device=order.device)
    ranked = torch.searchsorted(offsets, position, right=True) - 1
    ranked = torch.where((ranked < 0) | (position >= offsets[-1]), num_classes, ranked)
    return torch.empty_like(order).scatter_(0, order, ranked)


def _reduce(
    z: Tensor, take_part: Tensor, group: Tensor, num_classes: int, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits ``[B, N, G]``, classes that take part, each prompt's share of the gradient."""
    index = torch.where(take_part, group, num_classes)  # [B or 1, 1, C]
    index = index.expand_as(z)
    shape = (*z.shape[:2], num_classes + 1)
    count = torch.zeros_like(index[:, :1, :1], dtype=z.dtype).expand(shape).contiguous()
    count = count.scatter_add(-1, index, torch.ones_like(z))
    if mean:
        share = 1 / count.gather(-1, index)
        total = z.new_zeros(shape).scatter_add(-1, index, z)
        classes = total / count
    else:
        keys = torch.where(z.isnan(), -torch.inf, z)
        best = z.new_full(shape, -torch.inf).scatter_reduce(-1, index, keys, "amax")
        wins = keys == best.gather(-1, index)
        number = torch.arange(z.shape[-1], device=z.device).expand_as(index)
        # NaN prompts win only where every prompt is NaN.
        first = torch.full(shape, z.shape[-1], dtype=torch.int64, device=z.device).scatter_reduce(
            -1, index, torch.where(wins & ~z.isnan(), number, z.shape[-1]), "amin"
        )
        share = (number == first.gather(-1, index)).to(z.dtype)
        classes = best
    share = torch.where(index < num_classes, share, 0)
    return classes[..., :num_classes], count[..., :num_classes] > 0, share


def _softmax(z: Tensor, take_part: Tensor | None, background: float | None) -> Tensor:
    """Probabilities ``[B, N, G]``; 0 for classes that do not take part."""
    rivals = z if take_part is None else torch.where(take_part, z, -torch.inf)
    if background is not None:
        rivals = torch.cat([rivals, rivals.new_full((*z.shape[:2], 1), background)], -1)
    probabilities = rivals.softmax(-1)[..., : z.shape[-1]]
    return probabilities if take_part is None else torch.where(take_part, probabilities, 0.0)


def _logit_gradient(gradients: dict[str, Tensor], maps: dict[str, Tensor]) -> Tensor | None:
    """Gradient in the class logits; all tensors ``[B, N, G]``, "logsumexp" ``[B, N, 1]``."""
    terms = []
    if "logits" in gradients:
        terms.append(gradients["logits"])
    if "softmax" in gradients:
        p, g = maps["softmax"], gradients["softmax"]
        terms.append(p * (g - (p * g).sum(-1, keepdim=True)))
    if "logsumexp" in gradients:
        terms.append(maps["softmax"] * gradients["logsumexp"])
    if "sigmoid" in gradients:
        p = maps["sigmoid"]
        terms.append(gradients["sigmoid"] * p * (1 - p))
    total: Tensor | None = None
    for term in terms:
        total = term if total is None else total + term
    return total


def similarity_backward(
    patches: Tensor,
    queries: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    gradients: dict[str, Tensor],
    saved: dict[str, Tensor],
    *,
    class_mask: Tensor | None,
    group_order: Tensor | None,
    group_offsets: Tensor | None,
    num_classes: int,
    group_mean: bool,
    background: float | None,
    channels_last: bool,
    cosine: bool,
    eps: float,
    wanted: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients in patches, queries, scale and bias; None where not ``wanted``.

    Args:
        patches: ``[B, N, D]``.
        queries: ``[C, D]`` or ``[B, C, D]``.
        scale: A number or a tensor of one value.
        bias: A number or ``[C]``.
        gradients: Gradients of "logits", "softmax", "sigmoid" (maps) and "logsumexp".
        saved: The forward maps "softmax" and "sigmoid" where they were made. With them the logits
            are not computed again.
        class_mask: ``[C]`` or ``[B, C]`` bool, True = take part.
        group_order: Prompts sorted by class ``[C]``, or None.
        group_offsets: ``[G + 1]`` into ``group_order``.
        num_classes: ``G``.
        group_mean: Mean instead of maximum.
        background: Constant rival logit, or None.
        channels_last: Layout of the maps.
        cosine: Whether both sides were normalised.
        eps: Lower bound of the norms.
        wanted: Which of the four are needed.
    """
    compute = torch.float64 if patches.dtype == torch.float64 else torch.float32
    x, w = patches.to(compute), queries.to(compute)

    def rows(values: Tensor) -> Tensor:
        return (values if channels_last else values.transpose(1, 2)).to(compute)

    flowing = {
        name: gradient.to(compute)[..., None] if name == "logsumexp" else rows(gradient)
        for name, gradient in gradients.items()
    }
    maps = {name: rows(values) for name, values in saved.items()}
    # Which of the maps the flowing gradients pass through and nobody saved.
    missing = {"softmax": ("softmax", "logsumexp"), "sigmoid": ("sigmoid",)}
    missing = {
        name: users
        for name, users in missing.items()
        if name not in maps and any(user in flowing for user in users)
    }
    take_part = None if class_mask is None else class_mask.view(-1, 1, w.shape[-2])
    grouped = group_order is not None and group_offsets is not None
    group = share = z = None
    if grouped or missing:
        z = _logits_of_prompts(x, w, scale, bias, cosine, eps)
        if group_order is not None and group_offsets is not None:
            group = _group_index(group_order, group_offsets, num_classes)
            if take_part is None:
                take_part = torch.ones((1, 1, w.shape[-2]), dtype=torch.bool, device=w.device)
            z, take_part, share = _reduce(z, take_part, group, num_classes, group_mean)
        if "softmax" in missing:
            maps["softmax"] = _softmax(z, take_part, background)
        if "sigmoid" in missing:
            p = z.sigmoid()
            maps["sigmoid"] = p if take_part is None else torch.where(take_part, p, 0.0)
    dz = _logit_gradient(flowing, maps)
    if dz is None:
        dz = x.new_zeros((*x.shape[:2], num_classes))
    if share is not None and group is not None:
        dz = torch.nn.functional.pad(dz, (0, 1))[..., group] * share

    rx, x_free = _norms(x, cosine, eps)
    rw, w_free = _norms(w, cosine, eps)
    patches_gradient = queries_gradient = scale_gradient = None
    if wanted[0] or wanted[2]:
        h = dz @ (w * rw)  # gradient in the normalised patches without the scale
        scale_gradient = (h * x * rx).sum() if wanted[2] else None
        if wanted[0]:
            patches_gradient = (_through_norm(h, x, rx, x_free) * scale).to(patches.dtype)
    if wanted[1]:
        weighted = dz * rx
        if w.ndim == 2:
            h = weighted.flatten(0, 1).T @ x.flatten(0, 1)
        else:
            h = weighted.transpose(1, 2) @ x
        queries_gradient = (_through_norm(h, w, rw, w_free) * scale).to(queries.dtype)
    bias_gradient = dz.sum((0, 1)) if wanted[3] else None
    return patches_gradient, queries_gradient, scale_gradient, bias_gradient
