# SPDX-License-Identifier: Apache-2.0
"""Folded heat maps in plain torch: the definition that the kernels must meet."""

from __future__ import annotations

import torch
from torch import Tensor


def fold_units_reference(text: Tensor, projection: Tensor, top_units: int) -> Tensor:
    """Fold the top units of ``text [T, E]`` with ``projection [E, D]`` into ``[T, D]``.

    ``sum over the top_units largest entries t_u of |t_u| projection[u]``: largest by value, not by
    magnitude, of equal ones those with the lowest index; NaN counts as smaller than everything.
    """
    missing = text.isnan()
    plain = torch.where(missing, -torch.inf, text)
    order = torch.sort(plain, dim=-1, descending=True, stable=True).indices
    # NaN now stands among -inf: move it past them.
    late = missing.gather(-1, order).to(torch.uint8)
    order = order.gather(-1, torch.sort(late, dim=-1, stable=True).indices)
    chosen = order[:, :top_units].sort(dim=-1).values
    weights = text.gather(-1, chosen).abs()
    kept = torch.zeros_like(text).scatter(-1, chosen, weights)
    # Rows that no text has chosen stay out, whatever they hold.
    used = torch.zeros(text.shape[-1], dtype=torch.bool, device=text.device)
    used = used.index_fill(0, chosen.flatten(), True)
    return kept @ torch.where(used[:, None], projection, 0.0)


def folded_heatmap_reference(
    maps: Tensor,
    folded: Tensor,
    threshold: float | None,
    from_minimum: bool,
    columns_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Products of ``folded [1 or B, T, D]`` with every cell of ``maps [B, D, h, w]``.

    Returns heat ``[B, T, h, w]``, the column and row of its largest value ``[B, T, 2]`` (-1 where
    all are NaN) and the mask ``[B, T, h, w]``, empty without a threshold.
    """
    _, _, height, width = maps.shape
    heat = (folded.to(maps.dtype) @ maps.flatten(2)).unflatten(-1, (height, width))
    missing = heat.isnan()
    plain = torch.where(missing, -torch.inf, heat)
    # The first of the largest, in the wanted order; NaN does not count as -inf here.
    across = (plain.mT if columns_first else plain).flatten(2)
    present = (~missing.mT if columns_first else ~missing).flatten(2)
    high = across.amax(-1, keepdim=True)
    first = ((across == high) & present).to(torch.uint8).argmax(-1)
    along = height if columns_first else width
    major, minor = first // along, first % along
    pair = (major, minor) if columns_first else (minor, major)
    location = torch.where(present.any(-1)[..., None], torch.stack(pair, -1), -1)
    if threshold is None:
        return heat, location, heat.new_empty((0,), dtype=torch.bool)
    low = torch.where(missing, torch.inf, heat).flatten(2).amin(-1, keepdim=True)
    limit = threshold * (high - low) + (low if from_minimum else 0.0)
    return heat, location, heat > limit[..., None]
