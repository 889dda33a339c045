# SPDX-License-Identifier: Apache-2.0
"""The wgmma form of attention, which runs for who asks: on the CPU execution layer and on sm_90."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cuda_checks import BACKWARD, FORWARD, check_results, draw, draw_ragged, error
from torch import Tensor

from patchword.ops import attention, co_attention, dual_attention, pair_attention

DTYPES = (torch.float16, torch.bfloat16)
SETTING = "PATCHWORD_ATTENTION_WGMMA"


@pytest.fixture(
    params=["simt", pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.sanitizer])],
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernel runs, and no other form: the CPU execution layer, or a GPU with wgmma."""
    monkeypatch.setenv(SETTING, "must")
    if request.param == "simt":
        request.getfixturevalue("simt")
        return "cpu"
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma needs a GPU of compute capability 9.0")
    return "cuda"


@pytest.fixture(params=[1, 100], ids=["two-consumers", "one-consumer"])
def consumers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Enough tiles for the multiprocessors of the played device, or too few of them."""
    if device == "cuda" and request.param == 1:
        pytest.skip("the GPU's own size decides: test_many_tiles has enough of them")
    monkeypatch.setenv("PATCHWORD_SIMT_MULTIPROCESSORS", str(request.param))


def _compare(call: Callable[..., Any], *tensors: Tensor, **options: Any) -> None:
    """Outputs and log-sum-exps against the reference in float64."""
    got = call(*tensors, return_lse=True, backend="native", **options)
    exact = [t.double() for t in tensors]
    wanted = call(*exact, return_lse=True, backend="reference", **options)
    check_results(got, wanted, tensors[0].dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 8),
        (1, 2, 17, 129, 32),
        (2, 1, 66, 33, 40),
        (1, 1, 130, 257, 64),
        (1, 1, 5, 70, 96),
        (1, 1, 63, 385, 128),
    ],
    ids=str,
)
def test_pair(device: str, consumers: None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, heads, n0, n1, dim = shape
    tensors = [draw(dtype, device, batch, heads, n, dim) for n in (n0, n0, n0, n1, n1, n1)]
    _compare(pair_attention, *tensors, cross=True)


def test_masks_and_lengths(device: str, consumers: None) -> None:
    tensors = [draw(torch.bfloat16, device, 2, 2, n, 24) for n in (9, 9, 9, 140, 140, 140)]
    mask = torch.rand(2, 140, device=device) > 0.5
    lengths = torch.tensor([0, 5], device=device)
    clean = [t.clone() for t in tensors]
    for hidden in tensors[4:]:
        hidden[~mask[:, None].expand(2, 2, 140)] = torch.nan  # hidden keys are never read
    options = {"cross": True, "key_mask1": mask, "key_lengths0": lengths}
    got = pair_attention(*tensors, backend="native", **options)
    for a, b in zip(got, pair_attention(*clean, backend="native", **options), strict=True):
        assert torch.equal(a, b)
    assert (got[1][0] == 0).all()  # picture 0 of the first pair shows no key
    _compare(pair_attention, *clean, **options)


def test_no_visible_key_in_a_whole_tile(device: str, consumers: None) -> None:
    q, k, v = (draw(torch.float16, device, 1, 1, n, 32) for n in (3, 300, 300))
    mask = torch.zeros(1, 300, dtype=torch.bool, device=device)
    mask[0, 280] = True
    out = attention(q, k, v, key_mask=mask, backend="native")
    assert torch.equal(out, v[:, :, 280:281].expand_as(out))


def test_dual(device: str, consumers: None) -> None:
    _compare(dual_attention, *(draw(torch.bfloat16, device, 1, 2, 21, 64) for _ in range(3)))


def test_ragged_sets(device: str, consumers: None) -> None:
    sizes0, sizes1 = [10, 0, 3, 135] + [1] * 36, [4, 7, 0, 12] + [2] * 36
    tensors, offsets = draw_ragged(torch.float16, device, (sizes0, sizes1), 1, 32)
    _compare(co_attention, *tensors, **offsets)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 4.0])
def test_scales(device: str, scale: float) -> None:
    _compare(attention, *(draw(torch.float16, device, 1, 1, 70, 32) for _ in range(3)), scale=scale)


def test_views_of_a_packed_projection(device: str) -> None:
    q, k, v = draw(torch.float16, device, 2, 19, 3, 2, 16).permute(2, 0, 3, 1, 4)
    _compare(attention, q, k, v)


def test_gradients_take_its_log_sum_exp(device: str) -> None:
    ours = [draw(torch.float16, device, 1, 2, n, 32).requires_grad_() for n in (70, 40, 40)]
    exact = [t.detach().double().requires_grad_() for t in ours]
    weights = torch.randn(1, 2, 70, 32, device=device)
    for tensors, backend in ((ours, "native"), (exact, "reference")):
        (attention(*tensors, backend=backend).double() * weights).sum().backward()
    got, wanted = (torch.cat([t.grad.double().flatten() for t in side]) for side in (ours, exact))
    assert error(got, wanted) <= BACKWARD[torch.float16]


def test_many_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHWORD_SIMT_MULTIPROCESSORS", "2")
    batch = 3 if device == "cpu" else 300
    _compare(attention, *(draw(torch.float16, device, batch, 1, 150, 64) for _ in range(3)))


@pytest.mark.parametrize("copies", ["late", "early"])
@pytest.mark.parametrize("order", ["reverse", "random:1", "random:2"])
def test_any_order_of_threads_gives_the_same_bits(
    simt: object, monkeypatch: pytest.MonkeyPatch, order: str, copies: str
) -> None:
    monkeypatch.setenv(SETTING, "must")
    monkeypatch.setenv("PATCHWORD_SIMT_MULTIPROCESSORS", "1")
    q, k, v = (draw(torch.float16, "cpu", 1, 1, n, 32) for n in (130, 600, 600))
    forward = attention(q, k, v, backend="native")
    monkeypatch.setenv("PATCHWORD_SIMT_ORDER", order)
    monkeypatch.setenv("PATCHWORD_SIMT_COPIES", copies)
    assert torch.equal(attention(q, k, v, backend="native"), forward)


def test_both_forms_agree(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (draw(torch.bfloat16, device, 2, 2, 200, 64) for _ in range(3))
    ours = attention(q, k, v, backend="native")
    monkeypatch.delenv(SETTING)
    other = attention(q, k, v, backend="native")
    assert (
        0 < error(ours, other) <= FORWARD[torch.bfloat16]
    )  # zero would mean that the setting does nothing


def test_what_it_cannot_do_is_refused_or_left_to_the_other_form(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = draw(torch.float32, device, 1, 1, 5, 32)
    odd = draw(torch.float16, device, 1, 1, 5, 33)[..., 1:]
    for rows, rule in ((single, "takes 16-bit types only"), (odd, "at multiples of 16 bytes only")):
        with pytest.raises(NotImplementedError, match=f"the wgmma kernel .*{rule}"):
            attention(rows, rows, rows, backend="native")
        monkeypatch.setenv(SETTING, "1")
        left = attention(rows, rows, rows, backend="native")
        monkeypatch.delenv(SETTING)
        assert torch.equal(left, attention(rows, rows, rows, backend="native"))
        monkeypatch.setenv(SETTING, "must")
