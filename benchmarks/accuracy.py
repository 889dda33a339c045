# SPDX-License-Identifier: Apache-2.0
"""Correctness gates: every output is held against float64 arithmetic on the stored inputs.

The tolerances are the library's accuracy contract for float32 accumulation: dot products 2e-6 of
the product of the norms (4e-6 for half inputs), probabilities 2e-6 x max(1, scale), interpolation
1e-6 (bilinear) or 3e-6 (bicubic) of the largest tap. An index or a label is right when its float64
value is within twice that of the float64 best.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.registry import Verdict

DOT_TOLERANCE = 2e-6
PROBABILITY_TOLERANCE = 2e-6
TAP_TOLERANCE = {"bilinear": 1e-6, "bicubic": 3e-6}
CUBIC_A = -0.75


def as_tensor(value: Any) -> Tensor:
    """Return a tensor on the CPU from a tensor, an array or a list."""
    return value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value)


class MatchGate:
    """Nearest and mutual nearest neighbours by dot product of [N,D] and [M,D] descriptors."""

    def __init__(
        self, descriptors0: Tensor, descriptors1: Tensor, tolerance: float = DOT_TOLERANCE
    ) -> None:
        """Store both sets; the oracle is computed on first use."""
        self._tolerance = tolerance
        self._first, self._second = descriptors0.double(), descriptors1.double()
        self._norm0, self._norm1 = self._first.norm(dim=1), self._second.norm(dim=1)

    @cached_property
    def _oracle(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Row (best, index, gap) and column (best, index, gap), in blocks of rows."""
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        count = self._second.shape[0]
        best = torch.full((count,), -torch.inf, dtype=torch.float64)
        second, index = best.clone(), torch.full((count,), -1)
        for start in range(0, self._first.shape[0], 512):
            scores = self._first[start : start + 512] @ self._second.T
            value, place = scores.max(1)
            column_value, column_place = scores.max(0)
            column_second = _second_best(scores, column_place, 0)
            rows.append((value, place, value - _second_best(scores, place, 1)))
            wins = column_value > best  # strict: the earlier row keeps a tie
            second = torch.maximum(torch.minimum(best, column_value), second)
            second = torch.maximum(second, column_second)
            index = torch.where(wins, column_place + start, index)
            best = torch.maximum(best, column_value)
        row_best, row_index, row_gap = (torch.cat(part) for part in zip(*rows, strict=True))
        return row_best, row_index, row_gap, best, index, best - second

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge ``output``: indices [N] when ``part`` is forward, else mutual indices."""
        if part == "other":
            return None
        if part == "forward":
            return self._forward(as_tensor(output).reshape(-1).long())
        matches0 = getattr(output, "matches0", output)
        verdict = self._mutual(as_tensor(matches0).reshape(-1).long())
        if (scores := getattr(output, "scores0", None)) is None:
            return verdict
        return self._with_scores(verdict, as_tensor(matches0).long(), as_tensor(scores).double())

    def _scores_at(self, chosen: Tensor) -> Tensor:
        return (self._first * self._second[chosen.clamp(min=0)]).sum(1)

    def _forward(self, chosen: Tensor) -> Verdict:
        row_best, row_index, *_ = self._oracle
        valid = (chosen >= 0) & (chosen < self._second.shape[0])
        chosen = torch.where(valid, chosen, 0)
        deficit = (row_best - self._scores_at(chosen)) / self._scale(chosen)
        ties = int((valid & (chosen != row_index)).sum())
        return Verdict(_most(deficit[valid]), 2 * self._tolerance, int((~valid).sum()), ties)

    def _scale(self, chosen: Tensor) -> Tensor:
        scale: Tensor = self._norm0 * self._norm1[chosen.clamp(min=0)]
        return scale.clamp(min=1e-30)

    def _mutual(self, matches: Tensor) -> Verdict:
        row_best, row_index, row_gap, col_best, col_index, col_gap = self._oracle
        expected = torch.where(col_index[row_index] == torch.arange(len(row_index)), row_index, -1)
        row_tau = 2 * self._tolerance * self._norm0 * self._norm1.max()
        col_tau = 2 * self._tolerance * self._norm1 * self._norm0.max()
        clear = (row_gap > row_tau) & (col_gap > col_tau)[row_index]
        wrong = int((clear & (matches != expected)).sum())
        wrong += int(((matches < -1) | (matches >= len(col_best))).sum())
        inside = matches.clamp(0, len(col_best) - 1)
        deficit = torch.maximum(row_best, col_best[inside]) - self._scores_at(inside)
        deficit = (deficit / self._scale(inside))[matches >= 0]
        ties = int((~clear & (matches != expected)).sum())
        return Verdict(_most(deficit), 2 * self._tolerance, wrong, ties)

    def _with_scores(self, verdict: Verdict, matches: Tensor, scores: Tensor) -> Verdict:
        kept = matches >= 0
        error = ((scores - self._scores_at(matches)).abs() / self._scale(matches))[kept]
        wrong = verdict.mismatches + int((~(error <= self._tolerance)).sum())
        return Verdict(max(verdict.error, _most(error)), verdict.tolerance, wrong, verdict.ties)


def _second_best(scores: Tensor, place: Tensor, dim: int) -> Tensor:
    if scores.shape[dim] < 2:
        return torch.full_like(place, -torch.inf, dtype=scores.dtype)
    hidden = scores.scatter(dim, place.unsqueeze(dim), -torch.inf)
    best: Tensor = hidden.amax(dim)
    return best


def _most(values: Tensor) -> float:
    """Return the largest value, infinity if any is NaN, zero for none."""
    if values.numel() == 0:
        return 0.0
    return float(torch.nan_to_num(values, nan=torch.inf).max())


class SoftmaxGate:
    """Softmax over classes of scaled cosines of [B,N,D] patches and [C,D] queries."""

    def __init__(self, patches: Tensor, queries: Tensor, scale: float) -> None:
        """Store the inputs; the oracle is computed on first use."""
        self._patches, self._queries, self._scale = patches, queries, scale

    @cached_property
    def _oracle(self) -> Tensor:
        patches = torch.nn.functional.normalize(self._patches.double(), dim=-1, eps=1e-12)
        queries = torch.nn.functional.normalize(self._queries.double(), dim=-1, eps=1e-12)
        return torch.softmax(self._scale * (patches @ queries.T), dim=-1)

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge probabilities [B,N,C]; rounding to the output's own type is allowed for."""
        if part == "other":
            return None
        result = as_tensor(output)
        tolerance = PROBABILITY_TOLERANCE * max(1.0, self._scale)
        if result.shape != self._oracle.shape:
            return Verdict(float("inf"), tolerance, result.numel())
        error = (result.double() - self._oracle).abs()
        if result.dtype in (torch.float16, torch.bfloat16):
            exponent = torch.floor(torch.log2(self._oracle.clamp(min=1e-38)))
            info = torch.finfo(result.dtype)
            half_ulp = 0.5 * (info.eps * torch.exp2(exponent)).clamp(min=info.smallest_normal)
            error = (error - half_ulp).clamp(min=0)
        return Verdict(_most(error.flatten()), tolerance)


def axis_weights(size_in: int, size_out: int, mode: str) -> tuple[Tensor, Tensor]:
    """Return (weights float64 [out,in], taps int64 [out,k]) of one axis, align_corners False.

    Positions are computed in float32 as ``torch.nn.functional.interpolate`` defines them for
    float32 maps; only the weighting is float64.
    """
    scale = torch.tensor(size_in, dtype=torch.float32) / size_out
    position = scale * (torch.arange(size_out, dtype=torch.float32) + 0.5) - 0.5
    if mode == "bilinear":
        position = position.clamp(min=0)
    base = position.floor()
    fraction = (position - base).double()
    offsets = torch.tensor([0, 1] if mode == "bilinear" else [-1, 0, 1, 2])
    taps = (base.long()[:, None] + offsets).clamp(0, size_in - 1)
    distance = (fraction[:, None] - offsets).abs()
    if mode == "bilinear":
        values = 1 - distance
    else:
        a = CUBIC_A
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        values = torch.where(distance <= 1, near, far)
    weights = torch.zeros(size_out, size_in, dtype=torch.float64)
    weights.scatter_add_(1, taps, values)
    return weights, taps


class UpsampleGate:
    """Labels (argmax over C) or masks (value > threshold) of upsampled [1,C,h,w] logits."""

    def __init__(
        self, logits: Tensor, size: tuple[int, int], mode: str, rows: Tensor | None = None
    ) -> None:
        """Store the inputs; ``rows`` limits the check to these output rows of a large map."""
        self._logits = logits[0].double()
        self._rows = torch.arange(size[0]) if rows is None else rows
        weights_y, taps_y = axis_weights(logits.shape[2], size[0], mode)
        self._weights_x, self._taps_x = axis_weights(logits.shape[3], size[1], mode)
        self._weights_y, self._taps_y = weights_y[self._rows], taps_y[self._rows]
        self._size, self._tolerance = size, TAP_TOLERANCE[mode]

    def _bands(self) -> Any:
        """Yield (selection, values [C,r,W], largest tap [C,r,W] or [r,W]) for 16-row bands."""
        magnitude = self._logits.abs()
        for start in range(0, len(self._rows), 16):
            band = slice(start, start + 16)
            vertical = torch.einsum("yi,cij->cyj", self._weights_y[band], self._logits)
            values = vertical @ self._weights_x.T
            tap = magnitude[:, self._taps_y[band]].amax(2)[:, :, self._taps_x].amax(3)
            yield band, values, tap

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge labels when ``part`` is full or labels, masks when it is binary."""
        if part == "other":
            return None
        result = as_tensor(output)
        shape = (*self._logits.shape[:1], *self._size) if part == "binary" else self._size
        if result.numel() != torch.Size(shape).numel():
            return Verdict(float("inf"), 0.0, result.numel())
        result = result.reshape(shape)
        judge = self._masks if part == "binary" else self._labels
        return judge(result[..., self._rows, :])

    def _labels(self, labels: Tensor) -> Verdict:
        error, wrong, ties = 0.0, 0, 0
        for band, values, tap in self._bands():
            chosen = labels[band].long()
            valid = (chosen >= 0) & (chosen < len(values))
            chosen = torch.where(valid, chosen, 0)
            best, index = values.max(0)
            deficit = best - values.gather(0, chosen[None])[0]
            error = max(error, _most((deficit / tap.amax(0).clamp(min=1e-30))[valid]))
            wrong += int((~valid).sum())
            ties += int((valid & (chosen != index)).sum())
        return Verdict(error, 2 * self._tolerance, wrong, ties)

    def _masks(self, masks: Tensor, threshold: float = 0.5) -> Verdict:
        error, ties = 0.0, 0
        for band, values, tap in self._bands():
            different = (values > threshold) != (masks[:, band] != 0)
            error = max(
                error, _most(((values - threshold).abs() / tap.clamp(min=1e-30))[different])
            )
            ties += int(different.sum())
        return Verdict(error, self._tolerance, 0, ties)


class SampleGate:
    """Bilinear samples [1,M,C] of [1,C,h,w] features at pixel points inside the map."""

    def __init__(self, features: Tensor, points: Tensor, stride: float) -> None:
        """Compute the oracle from ``points`` (x, y) in pixels; one cell is ``stride`` pixels."""
        maps = features[0].double()
        position = points[0].double() / stride - 0.5
        base = position.floor().long()
        fraction = position - base
        limit = torch.tensor([maps.shape[2] - 1, maps.shape[1] - 1])
        self._oracle = torch.zeros(points.shape[1], maps.shape[0], dtype=torch.float64)
        self._tap = torch.zeros_like(self._oracle)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = torch.minimum(base + torch.tensor([dx, dy]), limit).unbind(1)
            weight = (1 - (fraction - torch.tensor([dx, dy])).abs()).prod(1)
            values = maps[:, y, x].T
            self._oracle += weight[:, None] * values
            self._tap = torch.maximum(self._tap, values.abs())

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge the sampled features."""
        if part == "other":
            return None
        result = as_tensor(output).double()
        if result.numel() != self._oracle.numel():
            return Verdict(float("inf"), TAP_TOLERANCE["bilinear"], result.numel())
        error = (result.reshape(self._oracle.shape) - self._oracle).abs() / self._tap
        return Verdict(_most(error.flatten()), TAP_TOLERANCE["bilinear"])


class ScoreGate:
    """Match scores [B] with the published rounding, against sums worked out in float64."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        """Compute the oracle candidate by candidate."""
        height, width = inputs["grid"]
        points, weights = inputs["points01"].double(), inputs["weights0"].double()
        corner = points * torch.tensor([width, height]) - 0.5
        seen = torch.zeros_like(weights)
        for down in (0, 1):
            for right in (0, 1):
                cell = corner.floor() + torch.tensor([right, down])
                share = (1 - (corner - cell).abs()).prod(-1)
                inside = ((cell >= 0) & (cell < torch.tensor([width, height]))).all(-1)
                x, y = cell[..., 0].clamp(0, width - 1), cell[..., 1].clamp(0, height - 1)
                values = inputs["mask1"].double().flatten(1).gather(1, (y * width + x).long())
                seen += torch.where(inside, share * values, 0.0)
        # The cells are part of the definition in float32.
        column = (inputs["points01"][..., 0] * (width - 1)).round().long()
        row = (inputs["points01"][..., 1] * (height - 1)).round().long()
        first, scores, weighed = inputs["features0"].double(), [], []
        for b, cells in enumerate(row * width + column):
            like = (first * inputs["features1"][b, cells].double()).sum(1)
            values = (weights[b] * seen[b] * like).clamp(min=0)
            best = torch.zeros(height * width, dtype=torch.float64)
            scores.append(best.scatter_reduce(0, cells, values, "amax").sum())
            weighed.append((weights[b] * seen[b]).abs().sum())
        self._oracle, self._scale = torch.stack(scores), torch.stack(weighed)

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge scores of unit features; half inputs are read exactly, so one bound holds."""
        if part == "other":
            return None
        result = as_tensor(output).double()
        if result.shape != self._oracle.shape:
            return Verdict(float("inf"), DOT_TOLERANCE, result.numel())
        # A bilinear weight adds its own rounding to that of the product.
        tolerance = DOT_TOLERANCE + TAP_TOLERANCE["bilinear"]
        return Verdict(_most((result - self._oracle).abs() / self._scale), tolerance)


class RefinementGate:
    """Refined masks [B,C,h,w]: the error of a step is at most 2e-6 of the largest value."""

    def __init__(
        self, image: Tensor, masks: Tensor, dilations: Sequence[int], iterations: int
    ) -> None:
        """Compute the oracle by gathering each neighbour by its clamped index."""
        picture, self._oracle = image.double(), masks.double()
        height, width = image.shape[-2:]
        y, x = torch.arange(height)[:, None], torch.arange(width)
        ring = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
        places = [
            ((y + d * dy).clamp(0, height - 1), (x + d * dx).clamp(0, width - 1))
            for d in dilations
            for dy, dx in ring
        ]
        around = torch.stack([picture[..., rows, columns] for rows, columns in places], 2)
        centre = picture[:, :, None]
        values = torch.cat((around, centre.expand(-1, -1, len(dilations), -1, -1)), 2)
        distance = (around - centre).abs() / (1e-8 + 0.1 * values.std(2, keepdim=True))
        weights = torch.softmax(-distance.mean(1), 1)
        for _ in range(iterations):
            total = torch.zeros_like(self._oracle)
            for n, (rows, columns) in enumerate(places):
                total += weights[:, n, None] * self._oracle[..., rows, columns]
            self._oracle = total
        self._tolerance = 2e-6 * iterations
        self._largest = masks.abs().max().double()

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge the refined masks."""
        result = as_tensor(output).double()
        if result.shape != self._oracle.shape:
            return Verdict(float("inf"), self._tolerance, result.numel())
        error = (result - self._oracle).abs() / self._largest
        return Verdict(_most(error.flatten()), self._tolerance)


class PoolGate:
    """Top and bottom means [B,C], or their gradient: 4e-6 of the largest value that occurs."""

    def __init__(self, maps: Tensor, k_max: int, k_min: int, gradient: bool) -> None:
        """Sort in float64; random maps have no ties, so the gradient is unique."""
        cells = maps.double().flatten(2)
        order = cells.argsort(dim=-1, descending=True)
        shares = torch.zeros_like(cells).scatter_(-1, order[..., :k_max], 1.0 / k_max)
        if k_min:
            last = order[..., -k_min:]
            shares.scatter_add_(-1, last, torch.full_like(last, 1.0 / k_min, dtype=shares.dtype))
        self._oracle = shares.reshape(maps.shape) if gradient else (shares * cells).sum(-1)
        self._largest = 1.0 if gradient else cells.abs().max()

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge the means or the gradient."""
        result = as_tensor(output).double()
        if result.shape != self._oracle.shape:
            return Verdict(float("inf"), 4e-6, result.numel())
        return Verdict(_most(((result - self._oracle).abs() / self._largest).flatten()), 4e-6)


class CountsGate:
    """Joint counts [C,C] of two label maps: exact."""

    def __init__(self, prediction: Tensor, target: Tensor, classes: int) -> None:
        """Count pair by pair."""
        pairs = [
            [int(((target == t) & (prediction == p)).sum()) for p in range(classes)]
            for t in range(classes)
        ]
        self._oracle = torch.tensor(pairs)

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge the counts."""
        result = as_tensor(output)
        if result.shape != self._oracle.shape:
            return Verdict(0.0, 0.0, result.numel())
        return Verdict(0.0, 0.0, int((result != self._oracle).sum()))


class HeatGate:
    """Heat maps [B,T,h,w] of folded texts: the dot tolerance of two products in a row."""

    def __init__(self, maps: Tensor, text: Tensor, projection: Tensor, top: int) -> None:
        """Fold and multiply in float64."""
        values, places = text.double().topk(top, dim=-1)
        weights = torch.zeros_like(text, dtype=torch.float64).scatter_(-1, places, values.abs())
        folded = weights @ projection.double()
        self._oracle = torch.einsum("td,bdhw->bthw", folded, maps.double())
        lengths = maps.double().norm(dim=1, keepdim=True)
        self._norms = lengths * folded.norm(dim=-1)[None, :, None, None]

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge the maps, which come first."""
        result = as_tensor(output[0]).double()
        if result.shape != self._oracle.shape:
            return Verdict(float("inf"), 2 * DOT_TOLERANCE, result.numel())
        error = (result - self._oracle).abs() / self._norms
        return Verdict(_most(error.flatten()), 2 * DOT_TOLERANCE)


class AttentionGate:
    """Outputs of attention streams, or the gradients of one, by relative Frobenius error."""

    def __init__(self, streams: Sequence[tuple[Tensor, ...]], seed: Tensor | None = None) -> None:
        """Store queries, keys and values of each stream, and the gradient of the only output."""
        self._streams, self._seed = streams, seed
        narrow = streams[0][0].dtype != torch.float32
        self._tolerance = (4e-3 if narrow else 2e-6) if seed is None else (1e-2 if narrow else 1e-5)

    @cached_property
    def _oracle(self) -> list[Tensor]:
        attend = torch.nn.functional.scaled_dot_product_attention
        # Timing runs in inference mode, whose tensors have no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            wide = [[t.clone().detach().double() for t in stream] for stream in self._streams]
            if self._seed is None:
                return [attend(*stream) for stream in wide]
            tensors = [t.clone().requires_grad_() for t in wide[0]]
            seed = self._seed.clone().double()
            return list(torch.autograd.grad(attend(*tensors), tensors, seed))

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge a tensor or a tuple of them; joined tokens count as the streams end to end."""
        if part == "other":
            return None
        results = [output] if isinstance(output, Tensor) else list(output)
        oracle = self._oracle
        if len(results) < len(oracle):
            oracle = [torch.cat(oracle, 2)]
        error = 0.0
        for result, want in zip(results, oracle, strict=True):
            if result.shape != want.shape:
                return Verdict(float("inf"), self._tolerance, result.numel())
            got = as_tensor(result).double()
            error = max(error, float(((got - want).norm() / want.norm()).nan_to_num(torch.inf)))
        return Verdict(error, self._tolerance)
