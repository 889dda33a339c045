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

    take_part: Tensor | None = None
    if class_mask is not None:
        take_part = class_mask.view(-1, 1, w.shape[-2])
    share: Tensor | None = None
    group: Tensor | None = None
    z: Tensor | None = None
    grouped = group_order is not None and group_offsets is not None
    needs_softmax = "softmax" in gradients or "logsumexp" in gradients
    if (
        grouped
        or (needs_softmax and "softmax" not in saved)
        or ("sigmoid" in gradients and "sigmoid" not in saved)
    ):
        z = _logits_of_prompts(x, w, scale, bias, cosine, eps)
    if group_order is not None and group_offsets is not None and z is not None:
        group = _group_index(group_order, group_offsets, num_classes)
        everyone = torch.ones((1, 1, w.shape[-2]), dtype=torch.bool, device=w.device)
        z, take_part, share = _reduce(
            z, everyone if take_part is None else take_part, group, num_classes, group_mean
        )

    def participating(values: Tensor) -> Tensor:
        return values if take_part is None else torch.where(take_part, values, 0.0)

    probabilities: Tensor | None = None
    if needs_softmax:
        if "softmax" in saved:
            probabilities = rows(saved["softmax"])
        elif z is not None:
            rivals = z if take_part is None else torch.where(take_part, z, -torch.inf)
            if background is not None:
                rivals = torch.cat([rivals, rivals.new_full((*z.shape[:2], 1), background)], -1)
            probabilities = participating(rivals.softmax(-1)[..., : z.shape[-1]])
    dz: Tensor | None = rows(gradients["logits"]) if "logits" in gradients else None

    def add(term: Tensor) -> Tensor:
        return term if dz is None else dz + term

    if probabilities is not None and "softmax" in gradients:
        g = rows(gradients["softmax"])
        dz = add(probabilities * (g - (probabilities * g).sum(-1, keepdim=True)))
    if probabilities is not None and "logsumexp" in gradients:
        dz = add(probabilities * gradients["logsumexp"].to(compute)[..., None])
    if "sigmoid" in gradients:
        if "sigmoid" in saved:
            p = rows(saved["sigmoid"])
        else:
            p = participating(z.sigmoid()) if z is not None else rows(gradients["sigmoid"])
        dz = add(rows(gradients["sigmoid"]) * p * (1 - p))
    if dz is None:
        dz = x.new_zeros((*x.shape[:2], num_classes))
    if share is not None and group is not None:
        padded = torch.nn.functional.pad(dz, (0, 1))
        dz = padded[..., group] * share

    rx, x_free = _norms(x, cosine, eps)
    rw, w_free = _norms(w, cosine, eps)
    patches_gradient = queries_gradient = scale_gradient = bias_gradient = None
    if wanted[0] or wanted[2]:
        h = dz @ (w * rw)  # gradient in the normalised patches without the scale
        if wanted[2]:
            scale_gradient = (h * x * rx).sum()
        if wanted[0]:
            patches_gradient = (_through_norm(h, x, rx, x_free) * scale).to(patches.dtype)
    if wanted[1]:
        weighted = dz * rx if cosine else dz
        if w.ndim == 2:
            h = weighted.flatten(0, 1).T @ x.flatten(0, 1)
        else:
            h = weighted.transpose(1, 2) @ x
        queries_gradient = (_through_norm(h, w, rw, w_free) * scale).to(queries.dtype)
    if wanted[3]:
        bias_gradient = dz.sum((0, 1))
    return patches_gradient, queries_gradient, scale_gradient, bias_gradient
