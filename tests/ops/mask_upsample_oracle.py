# SPDX-License-Identifier: Apache-2.0
"""Float64 upsampling with the float32 weights that define the op, and the checks built on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchword.ops import mask_upsample, upsampled_confusion
from patchword.testing import assert_interpolation, assert_labels, assert_probability

TOLERANCE = {"bilinear": 1e-6, "bicubic": 3e-6}


def _fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """One rounding to float32: the product of two float32 numbers is exact in float64."""
    b = b.double() if isinstance(b, Tensor) else b
    c = c.double() if isinstance(c, Tensor) else c
    return (a.double() * b + c).float()


def axis_matrix(cells: int, size: int, mode: str, align_corners: bool) -> Tensor:
    """Weights ``[size, cells]`` of one axis: float32 values, held in float64."""
    if cells == size:
        return torch.eye(cells, dtype=torch.float64)
    o = torch.arange(size, dtype=torch.float32)
    f32 = lambda x: torch.tensor(x, dtype=torch.float32)  # noqa: E731
    if align_corners:
        scale = f32(cells - 1) / f32(size - 1) if size > 1 else f32(0)
        position = scale * o
    else:
        position = _fma(o + 0.5, f32(cells) / f32(size), -0.5)
    if mode == "bilinear":
        position = position.clamp_min(0)
    first = position.floor().clamp_max(cells - 1)
    t = (position - first).clamp(0, 1)
    if mode == "bilinear":
        taps, weights = (0, 1), (1 - t, t)
    else:
        near = lambda x: _fma(_fma(x, 1.25, -2.25) * x, x, 1.0)  # noqa: E731
        far = lambda x: _fma(_fma(_fma(x, -0.75, 3.75), x, -6.0), x, 3.0)  # noqa: E731
        taps, weights = (-1, 0, 1, 2), (far(t + 1), near(t), near(1 - t), far((1 - t) + 1))
    matrix = torch.zeros(size, cells, dtype=torch.float64)
    for tap, weight in zip(taps, weights, strict=True):
        index = (first + tap).clamp(0, cells - 1).long()
        matrix.scatter_add_(1, index[:, None], weight.double()[:, None])
    return matrix


def upsample_exact(
    logits: Tensor, size: tuple[int, int], mode: str = "bilinear", align_corners: bool = False
) -> Tensor:
    """``[B, C, H, W]`` in float64."""
    rows = axis_matrix(logits.shape[2], size[0], mode, align_corners)
    columns = axis_matrix(logits.shape[3], size[1], mode, align_corners)
    return torch.einsum("yi,bcij,xj->bcyx", rows, logits.double().cpu(), columns)


def largest(logits: Tensor) -> float:
    return float(logits.abs().max()) if logits.numel() else 0.0


def check_all_outputs(logits: Tensor, size: tuple[int, int], what: str, **options: Any) -> None:
    """Every output of the op on ``logits`` against float64, by the accuracy contract."""
    mode = options.get("mode", "bilinear")
    align_corners = options.get("align_corners", False)
    exact = upsample_exact(logits, size, mode, align_corners)
    tap = largest(logits)
    tau = TOLERANCE[mode] * tap

    def run(output: str, **more: Any) -> Any:
        return mask_upsample(logits, size, output=output, **options, **more)  # type: ignore[call-overload]

    assert_interpolation(run("logits"), exact, tap, f"{what} logits", mode=mode)
    # The interpolation's own error goes through the functions with slope at most `scale`.
    scale = max(1.0, tap)
    assert_probability(run("sigmoid"), exact.sigmoid(), f"{what} sigmoid", scale=scale)
    if exact.shape[1]:
        softmax = exact.softmax(1)
        assert_probability(run("softmax"), softmax, f"{what} softmax", scale=scale)
        labels, confidence = run("labels_confidence")
        assert_labels(labels, exact, tau, f"{what} labels_confidence")
        top = softmax.amax(1) if softmax.numel() else confidence
        assert_probability(confidence, top, f"{what} confidence", scale=scale)
    labels = run("labels")
    assert_labels(labels, exact, tau, f"{what} labels")
    small = run("labels", label_dtype=torch.uint8, ignore_index=255)
    assert torch.equal(small.long(), labels % 256), f"{what}: uint8 labels differ from int64"
    binary = run("binary", threshold=0.1)
    wrong = (binary.cpu() != (exact > 0.1)) & ((exact - 0.1).abs() > tau + 1e-7)
    assert not wrong.any(), f"{what} binary: {int(wrong.sum())} pixels"
    check_minmax(run("minmax"), exact, tau, what)
    target = torch.randint(0, max(exact.shape[1], 1) + 2, labels.shape, dtype=torch.int32)
    target = target.to(logits.device)
    counts = upsampled_confusion(
        logits, target, mode=mode, align_corners=align_corners, backend=options.get("backend")
    )
    assert torch.equal(counts, count_pairs(labels, target, exact.shape[1])), f"{what} confusion"


def check_minmax(actual: Tensor, exact: Tensor, tau: float, what: str) -> None:
    if exact.numel() == 0:
        assert actual.shape == exact.shape
        return
    span = exact.amax((2, 3), keepdim=True) - exact.amin((2, 3), keepdim=True)
    wide = span > 0.05
    expected = torch.where(wide, (exact - exact.amin((2, 3), keepdim=True)) / span, 0.0)
    got = torch.where(wide.to(actual.device), actual, torch.zeros_like(actual))
    error = (got.cpu().double() - expected).abs()
    ulp = torch.finfo(actual.dtype).eps
    assert bool((error <= 4 * tau / span.clamp_min(0.05) + 2e-6 + ulp / 2).all()), f"{what} minmax"


def count_pairs(labels: Tensor, target: Tensor, channels: int) -> Tensor:
    """The definition of the confusion counts: how often each pair occurs."""
    wanted, found = target.cpu().long().flatten(), labels.cpu().long().flatten()
    kept = (wanted >= 0) & (wanted < channels) & (wanted != 255) & (found >= 0)
    pairs, times = torch.unique(wanted[kept] * channels + found[kept], return_counts=True)
    counts = torch.zeros(channels * channels, dtype=torch.int64).index_copy(0, pairs, times)
    return counts.view(channels, channels).to(labels.device)


def reference_gradient(
    logits: Tensor, grad: Tensor, size: tuple[int, int], mode: str, align_corners: bool
) -> Tensor:
    """Gradient of the upsampled maps, from the transposed weight matrices in float64."""
    rows = axis_matrix(logits.shape[2], size[0], mode, align_corners)
    columns = axis_matrix(logits.shape[3], size[1], mode, align_corners)
    return torch.einsum("yi,bcyx,xj->bcij", rows, grad.double().cpu(), columns)


__all__ = [
    "axis_matrix",
    "check_all_outputs",
    "count_pairs",
    "largest",
    "reference_gradient",
    "upsample_exact",
]
