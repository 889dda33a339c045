# SPDX-License-Identifier: Apache-2.0
"""Transformer over the patches of two pictures, which look at themselves and at each other.

Nothing here knows how features are made or what the three outputs are used for. The two pictures
stay two streams of tokens: they are never joined into one sequence under a block mask, which would
double the multiplications for the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword import ops
from patchword.errors import OptionError, ShapeError
from patchword.nn.match_prior import PRIOR_CHANNELS, match_prior
from patchword.nn.positional import sine_encoding

# Keeps the logarithms of the losses finite; part of the method.
_EDGE = 1e-7
# Partners this near to an edge start a little inside it, where the sigmoid still has a slope.
_NEAR_EDGE = 0.01


@dataclass(frozen=True)
class CrossTransformerConfig:
    """Sizes and weights of a :class:`CrossTransformer`; the defaults are the published "small".

    Attributes:
        channels: Channels of the features that come in.
        width: Channels of a token, a multiple of 4 and of ``heads``.
        heads: Attention heads.
        hidden: Width of the feed-forward part of a layer.
        pattern: One letter a layer, two letters a block: ``I`` each picture attends to itself,
            ``C`` each attends to the other one, ``N`` nothing. Two equal letters in one block
            share one set of weights.
        activation: Of the feed-forward part.
        dropout: Of attention weights and of both parts of a layer, in training.
        drop_features: Share of projected channels dropped in training.
        feature_weight: Factor of the tokens where an ``I`` layer adds positions to them.
        position_weight: Factor of the positions there.
        prior: Tokens are told what matching without training says of them when two pictures meet,
            and coordinates start from there; not part of the published network.
    """

    channels: int = 1024
    width: int = 256
    heads: int = 2
    hidden: int = 256
    pattern: str = "ICICIN"
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = 0.1
    drop_features: float = 0.1
    feature_weight: float = 1.0
    position_weight: float = 0.1
    prior: bool = False

    def __post_init__(self) -> None:
        """Refuse what no network can be built from.

        Raises:
            OptionError: The pattern or a size makes no sense.
        """
        if len(self.pattern) % 2 or not set(self.pattern) <= set("ICN") or not self.pattern:
            raise OptionError(
                "CrossTransformerConfig: pattern must be an even number of the letters I, C and "
                f"N, got {self.pattern!r}."
            )
        if self.width % 4 or self.width % self.heads or min(self.width, self.heads) < 1:
            raise OptionError(
                "CrossTransformerConfig: width must be a multiple of 4 and of heads, got "
                f"{self.width} with {self.heads} heads."
            )
        if self.activation not in ("relu", "gelu"):
            raise OptionError(
                'CrossTransformerConfig: activation must be "relu" or "gelu", '
                f"got {self.activation!r}."
            )

    def layers(self) -> list[tuple[str, int]]:
        """The layers that do something, in order: letter and number of the weights it uses."""
        plan: list[tuple[str, int]] = []
        count = 0
        for start in range(0, len(self.pattern), 2):
            first, second = self.pattern[start], self.pattern[start + 1]
            if first != "N":
                plan.append((first, count))
                count += 1
            if second != "N":
                count -= first == second
                plan.append((second, count))
                count += 1
        return plan


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """What the transformer knows of pictures before they meet another; depends on them alone.

    Attributes:
        tokens: ``[B, h * w, width]``, row-major.
        grid: ``(h, w)``.
        valid: bool ``[B, h * w]``, True where a token may be attended to; None for everywhere.
        maps: ``[B, C, h, w]`` the features, kept where the network has a prior.
        anchors: ``[B, h * w, 2]`` logits that coordinates start from, once two pictures have met.
    """

    tokens: Tensor
    grid: tuple[int, int]
    valid: Tensor | None = None
    maps: Tensor | None = None
    anchors: Tensor | None = None

    def __getitem__(self, item: slice) -> ImageTokens:
        """Some of the pictures."""
        parts = (
            None if part is None else part[item] for part in (self.valid, self.maps, self.anchors)
        )
        return ImageTokens(self.tokens[item], self.grid, *parts)


Parts = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, ``[B, H, N, d]`` each."""


class EncoderLayer(nn.Module):
    """One post-norm transformer layer, in parts, since two streams go through it."""

    def __init__(self, config: CrossTransformerConfig) -> None:
        """Build the layer with fresh weights."""
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.widen = nn.Linear(width, config.hidden)
        self.narrow = nn.Linear(config.hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.activate = F.relu if config.activation == "relu" else F.gelu
        self.rate = config.dropout
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def heads_of(self, tokens: Tensor, first: int, last: int) -> list[Tensor]:
        """Parts ``first`` to ``last`` of queries 0, keys 1, values 2 of ``[B, N, width]``.

        Returns:
            Views ``[B, heads, N, width / heads]``.
        """
        batch, count, width = tokens.shape
        rows = slice(first * width, (last + 1) * width)
        packed = F.linear(tokens, self.qkv.weight[rows], self.qkv.bias[rows])
        parts = packed.reshape(batch, count, last - first + 1, self.heads, width // self.heads)
        return list(parts.permute(2, 0, 3, 1, 4))

    def parts_of(self, tokens: Tensor) -> Parts:
        """Queries, keys and values of ``[B, N, width]``."""
        queries, keys, values = self.heads_of(tokens, 0, 2)
        return queries, keys, values

    def attend(self, parts: Parts, valid: Tensor | None) -> Tensor:
        """Attention of one stream, ``[B, N, width]``; a batch of one meets any batch."""
        batch = max(parts[0].shape[0], parts[1].shape[0])
        queries, keys, values = (part.expand(batch, -1, -1, -1) for part in parts)
        valid = None if valid is None else valid.expand(batch, -1)
        if self.training and self.rate > 0:
            # Dropping attention weights needs them one by one; no kernel of ours stores them.
            mask = None if valid is None else valid[:, None, None, :]
            seen = F.scaled_dot_product_attention(queries, keys, values, mask, self.rate)
        else:
            found = ops.attention(queries, keys, values, key_mask=valid)
            assert isinstance(found, Tensor)
            seen = found
        return seen.transpose(1, 2).flatten(2)

    def attend_pair(
        self,
        first: Parts,
        second: Parts,
        valid0: Tensor | None,
        valid1: Tensor | None,
        *,
        cross: bool,
    ) -> tuple[Tensor, Tensor]:
        """Attention of both streams, each within itself or each to the other, in one call."""
        if self.training and self.rate > 0:
            keys0, keys1 = (second, first) if cross else (first, second)
            mask0, mask1 = (valid1, valid0) if cross else (valid0, valid1)
            return (
                self.attend((first[0], *keys0[1:]), mask0),
                self.attend((second[0], *keys1[1:]), mask1),
            )
        batch = max(first[0].shape[0], second[0].shape[0])
        seen0, seen1, *_ = ops.pair_attention(
            *(part.expand(batch, -1, -1, -1) for part in (*first, *second)),
            cross=cross,
            key_mask0=None if valid0 is None else valid0.expand(batch, -1),
            key_mask1=None if valid1 is None else valid1.expand(batch, -1),
        )
        return seen0.transpose(1, 2).flatten(2), seen1.transpose(1, 2).flatten(2)

    def finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Residual, norm, feed-forward, residual, norm of ``[B, N, width]``."""
        mixed = self.norm1(tokens + self._drop(self.out(attended)))
        wide = self._drop(self.activate(self.widen(mixed)))
        out: Tensor = self.norm2(mixed + self._drop(self.narrow(wide)))
        return out

    def _drop(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.rate, self.training)


class CrossTransformer(nn.Module):
    """For each patch of two pictures: where it lies in the other one, and whether it is there.

    Every use is exact to rounding against every other: :meth:`forward` at once; :meth:`embed` once
    a picture and :meth:`relate` for each pair; :meth:`before_last` and :meth:`last_at`, which
    evaluate the last layer at some patches only.
    """

    def __init__(self, config: CrossTransformerConfig) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.config = config
        self.plan = config.layers()
        # Layers before the first C see one picture only.
        self.alone = next(
            (i for i, (kind, _) in enumerate(self.plan) if kind == "C"), len(self.plan)
        )
        self.project = nn.Linear(config.channels, config.width)
        count = 1 + max((number for _, number in self.plan), default=-1)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(count))
        self.head = nn.Linear(config.width, 3)
        self.prior = (
            nn.Sequential(
                nn.Linear(PRIOR_CHANNELS, config.width),
                nn.ReLU(),
                nn.Linear(config.width, config.width),
            )
            if config.prior
            else None
        )

    def forward(
        self,
        maps0: Tensor,
        maps1: Tensor,
        valid0: Tensor | None = None,
        valid1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Relate two batches of feature maps.

        Args:
            maps0: ``[B, C, h0, w0]``, cells of unit length as the backbone gives them.
            maps1: ``[B, C, h1, w1]``; either batch may be 1.
            valid0: bool ``[B, h0, w0]``, True where cells of picture 0 may be attended to. A
                picture without any such cell is treated as if it had no mask.
            valid1: The same for picture 1.

        Returns:
            For each picture float32 ``[B, 3, h, w]`` in [1e-7, 1 - 1e-7]: x and y in the other
            picture (0 at its left or top edge, 1 at the opposite one), and the probability that
            the cell is part of what both show.

        Raises:
            ShapeError: Channels, batches or masks do not fit.
        """
        return self.relate(self.embed(maps0, valid0), self.embed(maps1, valid1))

    def embed(self, maps: Tensor, valid: Tensor | None = None) -> ImageTokens:
        """Do what depends on one picture alone: projection and the layers before the first C.

        Args:
            maps: ``[B, C, h, w]``, cells of unit length.
            valid: bool ``[B, h, w]`` as in :meth:`forward`.
        """
        if maps.ndim != 4 or maps.shape[1] != self.config.channels or 0 in maps.shape:
            raise ShapeError(
                f"CrossTransformer: maps must have shape [B, {self.config.channels}, h, w] with "
                f"at least one cell, got {list(maps.shape)}."
            )
        batch, _, height, width = maps.shape
        if valid is not None and valid.shape != (batch, height, width):
            raise ShapeError(
                f"CrossTransformer: valid must have shape {[batch, height, width]}, "
                f"got {list(valid.shape)}."
            )
        tokens = self.project(maps.flatten(2).transpose(1, 2))
        if self.training and self.config.drop_features > 0:
            kept = tokens.new_ones(batch, 1, self.config.width)
            tokens = tokens * F.dropout(kept, self.config.drop_features)
        if valid is not None:
            valid = valid.flatten(1)
            # Attention over nothing has no defined result; in training it would be NaN for good.
            valid = valid | ~valid.any(dim=1, keepdim=True)
        grid = (height, width)
        for _, number in self.plan[: self.alone]:
            layer, placed = self._layer(number), self._placed(tokens, grid)
            tokens = layer.finish(placed, layer.attend(layer.parts_of(placed), valid))
        return ImageTokens(tokens, grid, valid, maps if self.prior is not None else None)

    def relate(self, first: ImageTokens, second: ImageTokens) -> tuple[Tensor, Tensor]:
        """Do the rest for pairs of pictures; result as :meth:`forward`."""
        first, second = self._meet(first, second)
        tokens0, tokens1 = self._run(first, second, len(self.plan))
        return (
            _as_maps(self._head(tokens0, first.anchors), first.grid),
            _as_maps(self._head(tokens1, second.anchors), second.grid),
        )

    def before_last(
        self, first: ImageTokens, second: ImageTokens
    ) -> tuple[ImageTokens, ImageTokens]:
        """Run all layers but the last, which :meth:`last_at` evaluates where it is asked to."""
        first, second = self._meet(first, second)
        tokens0, tokens1 = self._run(first, second, max(self.alone, len(self.plan) - 1))
        return replace(first, tokens=tokens0), replace(second, tokens=tokens1)

    def last_at(self, own: ImageTokens, other: ImageTokens, cells: Tensor) -> Tensor:
        """Output of some cells, from what :meth:`before_last` gave.

        Args:
            own: The side that the cells belong to.
            other: The other side.
            cells: int64 ``[B, Q]`` row-major cell numbers.

        Returns:
            float32 ``[B, Q, 3]``, the rows of :meth:`forward`'s output at these cells.
        """
        tokens = own.tokens.expand(cells.shape[0], -1, -1)
        index = cells[..., None].expand(-1, -1, tokens.shape[2])
        anchors = own.anchors
        if anchors is not None:
            anchors = anchors.expand(cells.shape[0], -1, -1).gather(1, index[..., :2])
        if self.alone == len(self.plan):
            return self._head(tokens.gather(1, index), anchors)
        kind, number = self.plan[-1]
        layer = self._layer(number)
        if kind == "I":
            tokens = self._placed(tokens, own.grid)
            source, valid = tokens, own.valid
        else:
            source, valid = other.tokens, other.valid
        wanted = tokens.gather(1, index)
        (queries,) = layer.heads_of(wanted, 0, 0)
        keys, values = layer.heads_of(source, 1, 2)
        finished = layer.finish(wanted, layer.attend((queries, keys, values), valid))
        return self._head(finished, anchors)

    def _meet(self, first: ImageTokens, second: ImageTokens) -> tuple[ImageTokens, ImageTokens]:
        """Tell tokens how the two pictures match without training, where there is a prior."""
        if self.prior is None:
            return first, second
        assert first.maps is not None
        assert second.maps is not None
        batch = max(first.maps.shape[0], second.maps.shape[0])
        sides = [first, second]
        maps = [side.maps.expand(batch, -1, -1, -1) for side in sides if side.maps is not None]
        found = match_prior(maps[0], maps[1], first.valid, second.valid)
        met = []
        for side, evidence in zip(sides, found, strict=True):
            told = side.tokens + self.prior(evidence.channels.to(side.tokens.dtype))
            met.append(replace(side, tokens=told, anchors=evidence.places.logit(_NEAR_EDGE)))
        return met[0], met[1]

    def _run(self, first: ImageTokens, second: ImageTokens, until: int) -> tuple[Tensor, Tensor]:
        tokens0, tokens1 = first.tokens, second.tokens
        batches = tokens0.shape[0], tokens1.shape[0]
        if batches[0] != batches[1] and 1 not in batches:
            raise ShapeError(
                "CrossTransformer: both sides must have the same batch or one of 1, got "
                f"{batches[0]} and {batches[1]}."
            )
        for kind, number in self.plan[self.alone : until]:
            layer = self._layer(number)
            if kind == "I":
                tokens0 = self._placed(tokens0, first.grid)
                tokens1 = self._placed(tokens1, second.grid)
            seen0, seen1 = layer.attend_pair(
                layer.parts_of(tokens0),
                layer.parts_of(tokens1),
                first.valid,
                second.valid,
                cross=kind == "C",
            )
            tokens0, tokens1 = layer.finish(tokens0, seen0), layer.finish(tokens1, seen1)
        # Without any C the two sides never met in a computation.
        shape = (max(batches), -1, -1)
        return tokens0.expand(shape), tokens1.expand(shape)

    def _layer(self, number: int) -> EncoderLayer:
        layer = self.layers[number]
        assert isinstance(layer, EncoderLayer)
        return layer

    def _placed(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens with their positions added, which also enter values and residual."""
        places = sine_encoding(grid, self.config.width, tokens.device).to(tokens.dtype)
        return self.config.feature_weight * tokens + self.config.position_weight * places

    def _head(self, tokens: Tensor, anchors: Tensor | None = None) -> Tensor:
        # Half precision has no number between 1 - 1e-7 and 1, so the head stays in float32.
        with torch.autocast(tokens.device.type, enabled=False):
            raw = F.linear(tokens.float(), self.head.weight.float(), self.head.bias.float())
            if anchors is not None:
                raw = raw + F.pad(anchors, (0, 1))
            out: Tensor = raw.sigmoid().clamp(_EDGE, 1.0 - _EDGE)
            return out


def _as_maps(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    batch, _, channels = rows.shape
    return rows.transpose(1, 2).reshape(batch, channels, *grid)
