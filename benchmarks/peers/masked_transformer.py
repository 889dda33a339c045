# SPDX-License-Identifier: Apache-2.0
"""SegSwap's network with torch's own layers: both pictures in one sequence under a block mask."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.common import Run
from benchmarks.registry import Inputs


class MaskedTransformer(nn.Module):
    """The published network, its attention confined by a mask; weights of ours."""

    def __init__(self, ours: nn.Module, tokens: int, places: Tensor) -> None:
        """Copy the weights and prepare both masks and the positions of ``tokens`` per picture."""
        super().__init__()
        config = ours.config
        self.project, self.head = ours.project, ours.head
        both = config.position_weight * torch.cat([places, places])
        self.register_buffer("places", both[:, None])
        self.kinds = [kind for kind, _ in ours.plan]
        self.layers = nn.ModuleList(_as_torch(layer, config) for layer in ours.layers)
        side = torch.arange(2 * tokens) // tokens
        same = side[:, None] == side[None]
        for name, forbidden in (("I", ~same), ("C", same)):
            mask = torch.zeros(same.shape).masked_fill(forbidden, -torch.inf)
            self.register_buffer(f"mask{name}", mask)

    def forward(self, maps0: Tensor, maps1: Tensor) -> tuple[Tensor, Tensor]:
        """Map features ``[B, C, h, w]`` of equal size to two outputs ``[B, 3, h, w]``."""
        both = torch.cat([maps0.flatten(2), maps1.flatten(2)], dim=2)
        # Tokens before pictures, as published: measured faster than batch_first.
        tokens = self.project(both.permute(2, 0, 1))
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            placed = tokens + self.places if kind == "I" else tokens
            tokens = layer(placed, src_mask=self.maskI if kind == "I" else self.maskC)
        rows = self.head(tokens).sigmoid().clamp(1e-7, 1 - 1e-7).permute(1, 2, 0)
        first, second = rows.chunk(2, dim=2)
        return first.unflatten(2, maps0.shape[2:]), second.unflatten(2, maps1.shape[2:])


def _as_torch(ours: nn.Module, config: object) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(config.width, config.heads, config.hidden, config.dropout)
    attention = layer.self_attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(ours.qkv.weight)
        attention.in_proj_bias.copy_(ours.qkv.bias)
    for theirs, name in (
        (attention.out_proj, "out"),
        (layer.linear1, "widen"),
        (layer.linear2, "narrow"),
        (layer.norm1, "norm1"),
        (layer.norm2, "norm2"),
    ):
        theirs.load_state_dict(getattr(ours, name).state_dict())
    return layer


def _network(inputs: Inputs) -> MaskedTransformer:
    from patchword.nn.positional import sine_encoding

    maps = inputs["maps0"]
    grid = (maps.shape[2], maps.shape[3])
    ours = inputs["transformer"]
    places = sine_encoding(grid, ours.config.width, maps.device)
    return MaskedTransformer(ours, grid[0] * grid[1], places).to(maps.device).eval()


def _run(network: nn.Module, maps0: Tensor, maps1: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    first, second = [], []
    with torch.inference_mode():
        for start in range(0, len(maps1), batch):
            part = maps1[start : start + batch]
            out0, out1 = network(maps0.expand(len(part), -1, -1, -1), part)
            first.append(out0)
            second.append(out1)
    return torch.cat(first), torch.cat(second)


def pairs(inputs: Inputs, batch: int = 32) -> Run:
    """Relate one query to every candidate, ``batch`` pairs at a time."""
    return partial(_run, _network(inputs), inputs["maps0"], inputs["maps1"], batch)


def described(inputs: Inputs) -> Run:
    """Describe both pictures with the backbone and relate them."""
    network, backbone = _network(inputs), inputs["backbone"]
    pixels0, pixels1 = inputs["pixels0"], inputs["pixels1"]

    def run() -> tuple[Tensor, Tensor]:
        maps0, maps1 = backbone.describe(pixels0), backbone.describe(pixels1)
        return _run(network, maps0, maps1, len(maps1))

    return run
