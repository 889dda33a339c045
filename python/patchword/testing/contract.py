# SPDX-License-Identifier: Apache-2.0
"""The accuracy contract of the kernels: how far a result may be from float64 on the stored inputs.

Every check raises ``AssertionError`` that names the worst element, its value, the oracle's value
and the allowed error. Equal elements pass whatever they are (infinities too); NaN equals NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# How products were formed: from float32, from float32 rounded to TF32, or from half-precision.
Mode = Literal["float32", "tf32", "half"]

_DOT: dict[str, float] = {"float32": 2e-6, "tf32": 1.5e-3, "half": 4e-6}
_PROBABILITY: dict[str, float] = {"float32": 2e-6, "tf32": 2e-3, "half": 2e-6}
_INTERPOLATION = {"bilinear": 1e-6, "nearest": 0.0, "bicubic": 3e-6}
_GRADIENT = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
_ATTENTION = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}


def dot_tolerance(mode: Mode = "float32") -> float:
    """Allowed error of a dot product divided by the product of the two norms."""
    return _DOT[mode]


def rounding(dtype: torch.dtype, values: Tensor) -> Tensor:
    """Half a unit in the last place of ``dtype`` at ``values``, as float64; 0 from float32 on.

    Float32 rounding is part of every float32 tolerance and is not granted a second time.
    """
    values = values.double().abs()
    if dtype in (torch.float32, torch.float64):
        return torch.zeros_like(values)
    info = torch.finfo(dtype)
    smallest_step = info.tiny * info.eps
    return (values * (info.eps / 2)).clamp_min(smallest_step / 2)


def assert_within(actual: Tensor, oracle: Tensor, bound: Tensor | float, what: str) -> None:
    """Assert ``|actual - oracle| <= bound`` for each element.

    Args:
        actual: Result under test, any dtype and device.
        oracle: Expected values of the same shape, usually float64.
        bound: Largest allowed absolute error, broadcast against the oracle.
        what: Starts the failure message, e.g. ``"sample_features avx2 float16"``.

    Raises:
        AssertionError: Naming the worst element.
    """
    assert tuple(actual.shape) == tuple(oracle.shape), (
        f"{what}: shape {tuple(actual.shape)} instead of {tuple(oracle.shape)}"
    )
    got = actual.detach().cpu().double()
    want = oracle.detach().cpu().double()
    limit = torch.as_tensor(bound, dtype=torch.float64, device="cpu").expand_as(want)
    error = (got - want).abs()
    same = (got == want) | (got.isnan() & want.isnan())
    wrong = ~same & ~(error <= limit)
    if not bool(wrong.any()):
        return
    # NaN against a number, or an infinity, is worse than every finite error.
    excess = torch.where(same, 0.0, (error / limit.clamp_min(1e-300)).nan_to_num(nan=torch.inf))
    excess = torch.where(wrong, excess, -1.0)
    worst = int(excess.flatten().argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), want.shape))
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {want.numel()} elements are too far off; the worst, "
        f"at {list(place)}, is {float(got[place])!r} instead of {float(want[place])!r}: "
        f"error {float(error[place]):.3g}, allowed {float(limit[place]):.3g}"
    )


def assert_matches(
    actual: Tensor, oracle: Tensor, plain: Tensor, what: str, floor_ulps: float = 4.0
) -> None:
    """Assert that the error is at most twice that of plain torch in the same dtype, plus a floor.

    Args:
        actual: Result under test.
        oracle: The reference in float64.
        plain: The reference run in the dtype under test.
        what: Starts the failure message.
        floor_ulps: Floor, in units in the last place at the largest magnitude of the oracle.
    """
    want = oracle.detach().cpu().double()
    if want.numel() == 0:
        assert_within(actual, oracle, 0.0, what)
        return
    plain_error = (plain.detach().cpu().double() - want).abs().nan_to_num(0.0, 0.0, 0.0).max()
    scale = want.abs().nan_to_num(0.0, 0.0, 0.0).max()
    floor = floor_ulps * torch.finfo(actual.dtype).eps * scale
    assert_within(actual, want, 2.0 * plain_error + floor, what)


def _with_rounding(actual: Tensor, oracle: Tensor, bound: Tensor) -> Tensor:
    bound = torch.as_tensor(bound, dtype=torch.float64).cpu()
    return bound + rounding(actual.dtype, oracle.detach().cpu().double().abs() + bound)


def assert_dot(
    actual: Tensor,
    oracle: Tensor,
    norm_product: Tensor | float,
    what: str,
    *,
    mode: Mode = "float32",
    scale: float = 1.0,
) -> None:
    """Dot products: error at most the dot tolerance times the product of the norms.

    Args:
        actual: Result under test; half-precision outputs get their rounding on top.
        oracle: Float64 products of the stored inputs.
        norm_product: ``|a| |b|`` for each element (1 for cosines), broadcast.
        what: Starts the failure message.
        mode: How products were formed.
        scale: Factor that the op applied to the products.
    """
    bound = torch.as_tensor(norm_product, dtype=torch.float64).cpu() * (_DOT[mode] * abs(scale))
    assert_within(actual, oracle, _with_rounding(actual, oracle, bound), what)


def assert_probability(
    actual: Tensor, oracle: Tensor, what: str, *, mode: Mode = "float32", scale: float = 1.0
) -> None:
    """Softmax, sigmoid or confidence: absolute error, widened with the scale of the logits."""
    bound = torch.tensor(_PROBABILITY[mode] * max(1.0, abs(scale)), dtype=torch.float64)
    assert_within(actual, oracle, _with_rounding(actual, oracle, bound), what)


def assert_log_sum_exp(
    actual: Tensor,
    oracle: Tensor,
    what: str,
    *,
    norm_product: Tensor | float = 1.0,
    mode: Mode = "float32",
    scale: float = 1.0,
) -> None:
    """Log-sum-exp: 4e-6 plus the dot tolerance times the scale."""
    largest = torch.as_tensor(norm_product, dtype=torch.float64).cpu()
    bound = 4e-6 + largest * (_DOT[mode] * abs(scale))
    assert_within(actual, oracle, _with_rounding(actual, oracle, bound), what)


def assert_interpolation(
    actual: Tensor,
    oracle: Tensor,
    largest_tap: Tensor | float,
    what: str,
    *,
    mode: Literal["bilinear", "nearest", "bicubic"] = "bilinear",
) -> None:
    """Interpolated values: error relative to the largest tap magnitude, plus output rounding."""
    bound = torch.as_tensor(largest_tap, dtype=torch.float64).cpu() * _INTERPOLATION[mode]
    assert_within(actual, oracle, _with_rounding(actual, oracle, bound), what)


def _assert_frobenius(actual: Tensor, oracle: Tensor, tolerance: float, what: str) -> None:
    assert tuple(actual.shape) == tuple(oracle.shape), (
        f"{what}: shape {tuple(actual.shape)} instead of {tuple(oracle.shape)}"
    )
    want = oracle.detach().cpu().double()
    difference = actual.detach().cpu().double() - want
    error, size = float(difference.norm()), float(want.norm())
    if error <= tolerance * size:
        return
    place = tuple(
        int(i)
        for i in torch.unravel_index(
            difference.abs().nan_to_num(torch.inf).flatten().argmax(), want.shape
        )
    )
    raise AssertionError(
        f"{what}: relative Frobenius error {error / size if size else torch.inf:.3g}, allowed "
        f"{tolerance:.3g}; the worst element, at {list(place)}, is "
        f"{float(actual[place])!r} instead of {float(want[place])!r}"
    )


def assert_gradient(
    actual: Tensor,
    oracle: Tensor,
    what: str,
    *,
    tf32: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Gradients: relative Frobenius error by the dtype of the inputs (that of ``actual``)."""
    tolerance = 3e-3 if tf32 else _GRADIENT[dtype if dtype is not None else actual.dtype]
    _assert_frobenius(actual, oracle, tolerance, what)


def assert_attention(actual: Tensor, oracle: Tensor, what: str, *, tf32: bool = False) -> None:
    """Attention outputs: relative Frobenius error by the dtype of ``actual``."""
    _assert_frobenius(actual, oracle, 1e-3 if tf32 else _ATTENTION[actual.dtype], what)


def assert_indices(index: Tensor, scores: Tensor, tau: Tensor | float, what: str) -> None:
    """Assert that each index is a best one up to ``2 tau``, and the best where the gap is wider.

    Args:
        index: ``[..., rows]`` chosen candidates; -1 where no candidate has a number for a score.
        scores: ``[..., rows, candidates]`` float64 scores; NaN never wins.
        tau: Row-wise tolerance of a score, ``[..., rows]`` or a number. 0 demands the exact
            index with the lowest-index rule (use it where all arithmetic is exact).
        what: Starts the failure message.
    """
    got = index.detach().cpu().long()
    table = scores.detach().cpu().double().nan_to_num(nan=-torch.inf, posinf=None, neginf=None)
    valid = (~scores.detach().cpu().isnan()).any(-1)
    if table.shape[-1] == 0:
        best = torch.full_like(got, -1)
        assert bool((got == best).all()), f"{what}: an index other than -1 without candidates"
        return
    top = table.max(-1).values
    # torch.max does not promise the first of equals; the first index that reaches the top does.
    first = (table == top[..., None]).to(torch.uint8).argmax(-1)
    limit = torch.as_tensor(tau, dtype=torch.float64).cpu().expand_as(top)
    chosen = table.gather(-1, got.clamp(0, table.shape[-1] - 1)[..., None])[..., 0]
    near = (chosen >= top - 2 * limit) & (limit > 0)
    right = torch.where(valid, (got == first) | ((got >= 0) & near), got == -1)
    if bool(right.all()):
        return
    worst = tuple(int(i) for i in (~right).nonzero()[0])
    expected = int(first[worst]) if bool(valid[worst]) else -1
    raise AssertionError(
        f"{what}: {int((~right).sum())} of {right.numel()} indices are wrong; the first, at "
        f"{list(worst)}, is {int(got[worst])} with score {float(chosen[worst])!r} instead of "
        f"{expected} with score {float(top[worst])!r} (tolerance {float(limit[worst]):.3g})"
    )


def assert_labels(labels: Tensor, logits: Tensor, tau: Tensor | float, what: str) -> None:
    """Label maps ``[B, H, W]`` against float64 logits ``[B, C, H, W]``: misses are near-ties."""
    assert_indices(labels, logits.movedim(1, -1), tau, what)
