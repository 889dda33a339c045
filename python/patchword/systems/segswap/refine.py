# SPDX-License-Identifier: Apache-2.0
"""From masks on the patch grid to masks four times as fine, by looking at the pixels.

Not part of the published system, whose masks stay on the grid: a small convolutional network sees
the picture, the other picture drawn where the coordinates point, and both coarse masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACTOR = 4
"""Fine cells per patch along each axis."""
_EDGE = 1e-4


class MaskRefiner(nn.Module):
    """Fine masks of one picture of a pair."""

    def __init__(self, width: int = 24) -> None:
        """Build the network; at the start it repeats the coarse mask."""
        super().__init__()
        self.width = width
        self.inputs = nn.Conv2d(12 + 6 + 2, width, 3, padding=1)
        self.middle = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (2, 4, 8, 1)
        )
        self.out = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, own: Tensor, other: Tensor, out0: Tensor, out1: Tensor) -> Tensor:
        """Refine the masks of the pictures ``own``.

        Args:
            own: ``[B, 3, 8h, 8w]`` RGB in [0, 1].
            other: ``[B, 3, H, W]`` RGB in [0, 1], the other pictures.
            out0: ``[B, 3, h, w]`` of :class:`CrossTransformer` for ``own``.
            out1: ``[B, 3, h1, w1]`` for ``other``.

        Returns:
            Logits ``[B, 4h, 4w]``.
        """
        size = (own.shape[2] // 2, own.shape[3] // 2)
        mask = out0[:, 2:].clamp(_EDGE, 1 - _EDGE)
        # Weighted by the mask: coordinates beside the object mean nothing and must not mix in.
        weight = mask + 1e-3
        places = _up(out0[:, :2] * weight, size) / _up(weight, size)
        grid = places.permute(0, 2, 3, 1) * 2 - 1
        small = F.avg_pool2d(own, 2)
        drawn = F.grid_sample(other, grid, padding_mode="border", align_corners=False)
        back = F.grid_sample(out1[:, 2:], grid, align_corners=False)
        coarse = _up(mask, size).logit(_EDGE)
        seen = torch.cat(
            [
                F.pixel_unshuffle(own, 2) * 2 - 1,
                drawn * 2 - 1,
                (drawn - small).abs() * 4,
                coarse / 4,
                back * 2 - 1,
            ],
            dim=1,
        )
        hidden = F.relu(self.inputs(seen))
        for layer in self.middle:
            hidden = hidden + F.relu(layer(hidden))
        refined: Tensor = coarse + self.out(hidden)
        return refined[:, 0]


def _up(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
