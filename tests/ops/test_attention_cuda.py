# SPDX-License-Identifier: Apache-2.0
"""The attention ops: the CUDA kernels on the CPU execution layer, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_cuda_checks import BACKWARD, check_results, draw, draw_ragged, error
from torch import Tensor

from patchword.ops import attention, co_attention, dual_attention, pair_attention
from patchword.ops.attention import native

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=["simt", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the CUDA kernels run: the CPU execution layer, or a GPU."""
    if request.param == "simt":
        request.getfixturevalue("simt")
        return "cpu"
    return "cuda"


@pytest.fixture(params=["warps", "tiles:1", "tiles:2", "tiles:5"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each form of the kernels, forced for the test; its name."""
    monkeypatch.setenv("PATCHWORD_ATTENTION_FORM", request.param)
    return str(request.param)


@pytest.fixture
def workspaces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Bytes of workspace that each call asked for, with the name of its entry: shows the form."""
    asked: list[tuple[str, int]] = []
    compiled = native.C
    # No workspace left by a call on the CPU: the kernels would take it without asking.
    monkeypatch.setattr(native, "kept", native._Kept())

    def spy(name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            needed: int = getattr(compiled, name)(*arguments)
            if needed or arguments[4] == 0:  # not the second call, which brings the workspace
                asked.append((name, needed))
            return needed

        return call

    names = ("attention_forward", "attention_backward")
    monkeypatch.setattr(native, "C", SimpleNamespace(**{name: spy(name) for name in names}))
    return asked


def _check(call: Callable[..., Any], *tensors: Tensor, **options: Any) -> None:
    """Compare outputs, log-sum-exps and gradients with the reference in float64."""
    dtype = tensors[0].dtype
    ours = [t.detach().clone().requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    got = call(*ours, return_lse=True, backend="native", **options)
    wanted = call(*exact, return_lse=True, backend="reference", **options)
    check_results(got, wanted, dtype)
    weights = [torch.randn_like(a.detach()) for a in got]
    for answer in (got, wanted):
        # The log-sum-exp of a row without keys is -inf, whatever the queries are.
        finite = [a.double().masked_fill(a.isneginf(), 0.0) for a in answer]
        terms = [(a * w.double()).sum() for a, w in zip(finite, weights, strict=True)]
        torch.stack(terms).sum().backward()
    # All together: with a single key the gradients of queries and keys cancel to nothing.
    gradients = [torch.cat([t.grad.flatten() for t in side]) for side in (ours, exact)]
    assert error(*gradients) <= BACKWARD[dtype]


@pytest.mark.sanitizer
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
    tensors = [draw(dtype, device, batch, heads, n, dim) for n in (n0, n0, n0, n1, n1, n1)]
    _check(pair_attention, *tensors, cross=True)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masks_and_lengths(device: str, form: str, dtype: torch.dtype) -> None:
    tensors = [draw(dtype, device, 2, 2, n, 24) for n in (9, 9, 9, 70, 70, 70)]
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


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dual(device: str, dtype: torch.dtype) -> None:
    tensors = [draw(dtype, device, 1, 2, 21, 64) for _ in range(3)]
    _check(dual_attention, *tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_ragged_sets(device: str, form: str, dtype: torch.dtype) -> None:
    sizes0, sizes1 = [10, 0, 3, 65] + [1] * 36, [4, 7, 0, 12] + [2] * 36
    tensors, offsets = draw_ragged(dtype, device, (sizes0, sizes1), 2, 32)
    _check(co_attention, *tensors, **offsets)


@pytest.mark.sanitizer
def test_strides_without_copies(device: str) -> None:
    packed = draw(torch.float16, device, 2, 19, 3, 2, 16)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    _check(attention, q, k, v)
    odd = draw(torch.float16, device, 2, 2, 19, 17)[..., 1:]  # rows that no 16-byte copy can read
    _check(attention, odd, odd, odd)


@pytest.mark.sanitizer
def test_two_runs_are_equal_to_the_bit(device: str, form: str) -> None:
    tensors = [draw(torch.float32, device, 1, 2, 90, 32).requires_grad_() for _ in range(3)]
    answers = []
    for _ in range(2):
        out = attention(*tensors, backend="native")
        answers.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [17, 40, 64, 96, 128])
def test_head_sizes(device: str, monkeypatch: pytest.MonkeyPatch, dim: int, dtype: Any) -> None:
    # 3 runs of keys for 2 and 5 blocks: the second block gets less, the last two get nothing.
    # Warps walk over 10 tiles of keys, for heads over 128 bytes more than once.
    tensors = [draw(dtype, device, 1, 1, n, dim) for n in (19, 150, 150)]
    for form in ("tiles:2", "tiles:5", "warps"):
        monkeypatch.setenv("PATCHWORD_ATTENTION_FORM", form)
        _check(attention, *tensors)


@pytest.mark.sanitizer
def test_shared_keys_come_to_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (draw(torch.float32, device, 2, 2, n, 32) for n in (70, 200, 200))
    answers = {}
    for form in ("tiles:1", "tiles:2", "tiles:5", "warps"):
        monkeypatch.setenv("PATCHWORD_ATTENTION_FORM", form)
        answers[form] = attention(q, k, v, backend="native")
        assert torch.allclose(answers[form], answers["tiles:1"], atol=1e-6)
    # Other orders of addition: were the bits equal, the same form would have run twice.
    assert len({out.cpu().numpy().tobytes() for out in answers.values()}) == len(answers)


def _splits(workspace: int, rows: int, dim: int) -> int:
    """How many partial results of ``rows`` rows lie in a workspace, up to its padding."""
    splits, rest = divmod(workspace, rows * (dim + 2) * 4)
    assert rest < 16
    return splits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_one_query_shares_its_keys(
    device: str, workspaces: list[tuple[str, int]], dtype: torch.dtype
) -> None:
    tensors = [draw(dtype, device, 1, 2, n, 64) for n in (1, 785, 785)]
    _check(attention, *tensors)
    assert workspaces[0][0] == "attention_forward"
    assert 2 <= _splits(workspaces[0][1], 2, 64) <= 13


@pytest.mark.sanitizer
def test_streams_of_a_pair_share_their_keys_each(
    device: str, workspaces: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHWORD_SIMT_MULTIPROCESSORS", "16")
    # Queries of set 0 see 600 keys, those of set 1 only 20: the second stream is not shared.
    tensors = [draw(torch.float16, device, 1, 1, n, 32) for n in (20, 20, 20, 600, 600, 600)]
    _check(pair_attention, *tensors, cross=True)
    assert 2 <= _splits(workspaces[0][1], 20, 32) <= 10


@pytest.mark.parametrize(
    ("shape", "splits"),
    [
        ((2, 2, 900, 900, 128), 3),  # as both directions of a pair: 60 tiles, 15 runs of keys
        ((1, 12, 1, 785, 64), 7),
        ((1, 1, 1, 100_000, 64), 63),
    ],
    ids=str,
)
def test_shares_on_a_large_gpu(
    simt: object, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], splits: int
) -> None:
    monkeypatch.setenv("PATCHWORD_SIMT_MULTIPROCESSORS", "132")
    monkeypatch.setattr(native, "kept", native._Kept())
    compiled, asked = native.C, []

    def size_alone(*arguments: Any) -> int:
        if arguments[4] != 0:  # with the workspace: the work itself would take long here
            return 0
        asked.append(compiled.attention_forward(*arguments))
        return int(asked[-1])

    monkeypatch.setattr(native, "C", SimpleNamespace(attention_forward=size_alone))
    batch, heads, queries, keys, dim = shape
    q, k = (torch.zeros(dim).expand(batch, heads, n, dim) for n in (queries, keys))
    attention(q, k, k, backend="native")
    assert [_splits(size, batch * heads * queries, dim) for size in asked] == [splits]


def test_many_tiles_or_few_keys_are_not_shared(
    device: str, workspaces: list[tuple[str, int]]
) -> None:
    for shape, keys in (((3, 100, 17, 8), 300), ((1, 1, 70, 8), 64)):
        q = draw(torch.float16, device, *shape)
        k = draw(torch.float16, device, *shape[:2], keys, 8)
        assert attention(q, k, k, backend="native").isfinite().all()
    assert workspaces == [("attention_forward", 0)] * 2


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 10, 10, 64), (1, 1, 16, 16, 128), (3, 1, 1, 16, 17), (1, 5, 16, 3, 100)],
    ids=str,
)
def test_tiny_sets(
    device: str,
    workspaces: list[tuple[str, int]],
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    batch, heads, n0, n1, dim = shape
    tensors = [draw(dtype, device, batch, heads, n, dim) for n in (n0, n0, n0, n1, n1, n1)]
    mask = torch.rand(batch, n1, device=device) > 0.3
    _check(pair_attention, *tensors, cross=True, key_mask1=mask)
    # Neither form with tiles comes without a workspace for the gradients.
    assert workspaces == [("attention_forward", 0), ("attention_backward", 0)]


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tiny_ragged_sets(
    device: str, workspaces: list[tuple[str, int]], dtype: torch.dtype
) -> None:
    # Ten items and a few words each; one set is longer than a tile of the warps.
    sizes0, sizes1 = [10, 10, 0, 3, 40, 1], [7, 16, 5, 0, 33, 2]
    tensors, offsets = draw_ragged(dtype, device, (sizes0, sizes1), 3, 24)
    mask = torch.rand(sum(sizes1), device=device) > 0.2
    _check(co_attention, *tensors, **offsets, key_mask1=mask)
    assert workspaces == [("attention_forward", 0), ("attention_backward", 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_what_is_not_a_number_stays_in_its_row(device: str, form: str, dtype: torch.dtype) -> None:
    q, k, v = (draw(dtype, device, 1, 1, n, 32) for n in (20, 150, 150))
    clean, clean_lse = attention(q, k, v, return_lse=True, backend="native")
    q[0, 0, 5, 2] = torch.nan
    out, lse = attention(q, k, v, return_lse=True, backend="native")
    others = torch.arange(20, device=device) != 5
    assert out[0, 0, 5].isnan().all()
    assert lse[0, 0, 5].isnan()
    assert torch.equal(out[:, :, others], clean[:, :, others])
    assert torch.equal(lse[:, :, others], clean_lse[:, :, others])
    if dtype == torch.float32:
        return  # the parts that float32 is split into know no infinity
    k[0, 0, 140, 0] = torch.inf  # a score of +inf or -inf by the sign of q
    out = attention(q, k, v, backend="native")
    positive = (q[0, 0, :, 0] > 0) & others
    assert out[0, 0, positive].isnan().all()
    assert out[0, 0, ~positive & others].isfinite().all()


def test_negative_scale_hides_nothing_else(device: str, form: str) -> None:
    tensors = [draw(torch.float32, device, 1, 1, n, 32) for n in (9, 130, 130)]
    mask = torch.rand(1, 130, device=device) > 0.5
    _check(attention, *tensors, scale=-0.4, key_mask=mask)
