# SPDX-License-Identifier: Apache-2.0
"""The attention ops: the CUDA kernels on the CPU execution layer, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from patchword.ops import attention, co_attention, dual_attention, pair_attention

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Relative Frobenius errors of the outputs and of the gradients against float64.
FORWARD = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}
BACKWARD = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(
    params=["simt", pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.sanitizer])],
)
def device(request: pytest.FixtureRequest) -> str:
    """Where the CUDA kernels run: the CPU execution layer, or a GPU."""
    if request.param == "simt":
        request.getfixturevalue("simt")
        return "cpu"
    return "cuda"


def _draw(dtype: torch.dtype, device: str, *shape: int) -> Tensor:
    return torch.randn(shape).to(dtype).to(device)


def _error(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.detach().double(), wanted.detach().double()
    assert got.isfinite().all()
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))


def _check(call: Callable[..., Any], *tensors: Tensor, **options: Any) -> None:
    """Compare outputs, log-sum-exps and gradients with the reference in float64."""
    dtype = tensors[0].dtype
    ours = [t.detach().clone().requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    got = call(*ours, return_lse=True, backend="native", **options)
    wanted = call(*exact, return_lse=True, backend="reference", **options)
    half = len(got) // 2
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.shape == b.shape
        if i < half:
            assert _error(a, b) <= FORWARD[dtype]
        else:
            assert torch.equal(a.isneginf(), b.isneginf())
            seen = ~b.isneginf()
            # The dot tolerance of the contract times the norms, which are about sqrt(d) here.
            torch.testing.assert_close(a[seen].double(), b[seen], atol=3e-5, rtol=0)
    weights = [torch.randn_like(a.detach()) for a in got[:half]]
    for answer in (got, wanted):
        pairs = zip(answer, weights, strict=False)
        torch.stack([(a.double() * w.double()).sum() for a, w in pairs]).sum().backward()
    # All together: with a single key the gradients of queries and keys cancel to nothing.
    gradients = [torch.cat([t.grad.flatten() for t in side]) for side in (ours, exact)]
    assert _error(*gradients) <= BACKWARD[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 4),
        (1, 2, 17, 65, 32),
        (2, 1, 66, 33, 40),
        (1, 1, 130, 31, 128),
        (1, 1, 5, 70, 96),
    ],
    ids=str,
)
def test_pair(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, heads, n0, n1, dim = shape
    tensors = [_draw(dtype, device, batch, heads, n, dim) for n in (n0, n0, n0, n1, n1, n1)]
    _check(pair_attention, *tensors, cross=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masks_and_lengths(device: str, dtype: torch.dtype) -> None:
    tensors = [_draw(dtype, device, 2, 2, n, 24) for n in (9, 9, 9, 70, 70, 70)]
    mask = torch.rand(2, 70, device=device) > 0.5
    lengths = torch.tensor([0, 5], device=device)
    with torch.no_grad():
        tensors[4][~mask[:, None].expand(2, 2, 70)] = torch.nan  # hidden keys are never read
    _clean = [t.nan_to_num() for t in tensors]
    options = {"cross": True, "key_mask1": mask, "key_lengths0": lengths}
    got = pair_attention(*tensors, backend="native", **options)
    for a, b in zip(got, pair_attention(*_clean, backend="native", **options), strict=True):
        assert torch.equal(a, b)
    assert (got[1][0] == 0).all()  # picture 0 of the first pair shows no key
    _check(pair_attention, *_clean, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dual(device: str, dtype: torch.dtype) -> None:
    tensors = [_draw(dtype, device, 1, 2, 21, 64) for _ in range(3)]
    _check(dual_attention, *tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_ragged_sets(device: str, dtype: torch.dtype) -> None:
    sizes0, sizes1 = [10, 0, 3, 65] + [1] * 36, [4, 7, 0, 12] + [2] * 36
    offsets = [torch.tensor([0, *sizes]).cumsum(0).to(device) for sizes in (sizes0, sizes1)]
    tensors = [_draw(dtype, device, sum(sizes), 2, 32) for sizes in (sizes0,) * 3 + (sizes1,) * 3]
    _check(co_attention, *tensors, offsets0=offsets[0], offsets1=offsets[1])


def test_strides_without_copies(device: str) -> None:
    packed = _draw(torch.float16, device, 2, 19, 3, 2, 16)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    _check(attention, q, k, v)
    odd = _draw(torch.float16, device, 2, 2, 19, 17)[..., 1:]  # rows that no 16-byte copy can read
    _check(attention, odd, odd, odd)


def test_two_runs_are_equal_to_the_bit(device: str) -> None:
    tensors = [_draw(torch.float32, device, 1, 2, 40, 32).requires_grad_() for _ in range(3)]
    answers = []
    for _ in range(2):
        out = attention(*tensors, backend="native")
        answers.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
