# SPDX-License-Identifier: Apache-2.0
"""Top and bottom means of maps in plain torch: the definition that the kernels must meet."""

from __future__ import annotations

import torch
from torch import Tensor

# top_count, bottom_count: how many values are added; top_divisor, bottom_divisor: what the sums are
# divided by.
Plan = tuple[int, int, float, float]


def _order(values: Tensor, descending: bool) -> Tensor:
    """Indices of sorted values: NaN as the smallest, equal ones by index."""
    missing = values.isnan()
    plain = torch.where(missing, -torch.inf, values)
    order = torch.sort(plain, dim=-1, descending=descending, stable=True).indices
    # NaN now stands among -inf: move it past them.
    last = missing.gather(-1, order)
    again = torch.sort(last.to(torch.uint8), dim=-1, descending=not descending, stable=True).indices
    return order.gather(-1, again)


def weldon_pool_reference(maps: Tensor, plan: Plan) -> Tensor:
    """Pool ``maps [B, C, h, w]`` to ``[B, C]``.

    The sum of the ``top_count`` largest values over ``top_divisor`` plus the sum of the
    ``bottom_count`` smallest over ``bottom_divisor``. Of equal values the one with the lowest index
    counts first. Computes in float32, in float64 for float64 maps.
    """
    top_count, bottom_count, top_divisor, bottom_divisor = plan
    compute = torch.float64 if maps.dtype == torch.float64 else torch.float32
    values = maps.to(compute).flatten(2)
    top = _order(values.detach(), True)[..., :top_count]
    pooled = values.gather(-1, top).sum(-1) / top_divisor
    if bottom_count:
        bottom = _order(values.detach(), False)[..., :bottom_count]
        pooled = pooled + values.gather(-1, bottom).sum(-1) / bottom_divisor
    return pooled.to(maps.dtype)
