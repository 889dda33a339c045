# SPDX-License-Identifier: Apache-2.0
"""attention and its relatives against the reference in float64: results, masks, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attention_checks import DTYPES, SHAPES, check, check_gradients, make
from torch import Tensor

from patchword import _library
from patchword.ops import (
    attention,
    co_attention,
    dual_attention,
    pair_attention,
    value_attention,
)
from patchword.testing import assert_attention, assert_gradient

native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")
BOTH = ["reference", pytest.param("native", marks=native)]


def some_mask(batch: int, count: int) -> Tensor:
    """About two thirds of the keys; the last batch element has none."""
    mask = torch.rand(batch, count) > 0.33
    if batch > 1:
        mask[-1] = False
    return mask


def test_by_hand():
    # Scores 0 and log 3: weights 1/4 and 3/4.
    q = torch.tensor([[[[1.0, 0.0]]]])
    k = torch.tensor([[[[0.0, 5.0], [float(torch.tensor(3.0).log()), 0.0]]]])
    v = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    for backend in ("reference", *(["native"] if _library.C is not None else [])):
        out, lse = attention(q, k, v, scale=1.0, return_lse=True, backend=backend)
        assert torch.allclose(out, torch.tensor([1.0, 6.0]))
        assert torch.allclose(lse, torch.tensor(4.0).log())


@pytest.mark.parametrize("backend", BOTH)
def test_equals_torch(backend):
    q, k, v = make((2, 3, 20, 30, 16))
    mask = torch.rand(2, 30) > 0.3
    mask[:, 0] = True
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert_attention(attention(q, k, v, backend=backend), want, "plain")
    want = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=mask[:, None, None], scale=0.7
    )
    got = attention(q, k, v, key_mask=mask, scale=0.7, backend=backend)
    assert_attention(got, want, "masked")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(cpu_level, dtype, shape):
    tensors = make(shape, dtype)
    lengths = torch.randint(-1, shape[3] + 2, (shape[0],))
    mask = some_mask(shape[0], shape[3])
    for name, options in (
        ("plain", {}),
        ("scaled", {"scale": 1.7 * shape[4] ** -0.5}),
        ("masked", {"key_mask": mask}),
        ("lengths", {"key_lengths": lengths}),
        ("both", {"key_mask": mask, "key_lengths": lengths}),
    ):
        out, lse = attention(*tensors, **options, return_lse=True, backend="native")
        check(out, lse, tensors, f"{cpu_level} {name}", **options)
        assert torch.equal(attention(*tensors, **options, backend="native"), out)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matches_reference_large(dtype):
    tensors = make((1, 2, 901, 773, 64), dtype)
    outs = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        out, lse = attention(*tensors, return_lse=True, backend="native")
        check(out, lse, tensors, f"{threads} threads")
        outs.append(torch.cat([out.flatten().float(), lse.flatten()]))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@native
def test_error_is_no_worse_than_that_of_torch():
    for dtype in DTYPES:
        tensors = make((1, 4, 300, 300, 64), dtype)
        want = F.scaled_dot_product_attention(*(t.double() for t in tensors))
        theirs = (F.scaled_dot_product_attention(*tensors).double() - want).norm()
        ours = (attention(*tensors, backend="native").double() - want).norm()
        assert ours <= 1.1 * theirs + 2e-7 * want.norm(), dtype


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("cross", [False, True])
def test_pair_equals_the_joined_sequence_under_a_block_mask(backend, cross):
    sets = [make((2, 2, n, n, 8)) for n in (19, 26)]
    masks = [torch.rand(2, n) > 0.3 for n in (19, 26)]
    for mask in masks:
        mask[:, 0] = True
    joined = [torch.cat([a, b], 2).double() for a, b in zip(*sets, strict=True)]
    side = torch.arange(45) >= 19
    block = (side[:, None] == side) ^ cross
    visible = block & torch.cat(masks, 1)[:, None, None]
    want = F.scaled_dot_product_attention(*joined, attn_mask=visible)
    out0, out1, lse0, lse1 = pair_attention(
        *sets[0], *sets[1], cross=cross, key_mask0=masks[0], key_mask1=masks[1], return_lse=True,
        backend=backend,
    )  # fmt: skip
    assert_attention(out0, want[:, :, :19], "set 0")
    assert_attention(out1, want[:, :, 19:], "set 1")
    assert lse0.shape == (2, 2, 19)
    assert lse1.shape == (2, 2, 26)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pair_streams_equal_single_ones(cpu_level, dtype):
    sets = [make((2, 2, n, n, 32), dtype) for n in (31, 50)]
    lengths = torch.tensor([50, 12])
    for cross in (False, True):
        out = pair_attention(
            *sets[0], *sets[1], cross=cross, key_lengths1=lengths, backend="native"
        )
        for side in (0, 1):
            keys = sets[1 - side if cross else side]
            options = {"key_lengths": lengths} if keys is sets[1] else {}
            alone = attention(sets[side][0], *keys[1:], **options, backend="native")
            assert torch.equal(out[side], alone)


@native
def test_query_subset_is_a_slice_of_the_whole():
    q, k, v = make((2, 3, 60, 70, 32))
    rows = torch.tensor([3, 17, 58])
    whole = attention(q, k, v, backend="native")
    assert torch.equal(attention(q[:, :, rows], k, v, backend="native"), whole[:, :, rows])


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 33, 64, 100, 128])
def test_a_few_queries_get_the_bits_that_they_get_among_many(cpu_level, dtype, dim):
    # Few queries take a form of their own, with keys in lanes; many take the one of the tiles.
    q, k, v = make((2, 2, 30, 300, dim), dtype)
    mask = some_mask(2, 300)
    for keys in ({}, {"key_mask": mask}, {"key_lengths": torch.tensor([129, 7])}):
        options = {**keys, "return_lse": True, "backend": "native"}
        whole, whole_lse = attention(q, k, v, **options)
        for count in (1, 2, 3, 4, 5):
            out, lse = attention(q[:, :, 7 : 7 + count], k, v, **options)
            assert torch.equal(out, whole[:, :, 7 : 7 + count]), (count, list(keys))
            # Its one product and sum may round together or apart.
            torch.testing.assert_close(lse, whole_lse[:, :, 7 : 7 + count], atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("normalize", [False, True])
def test_value_and_dual(backend, normalize):
    q, k, v = make((2, 3, 37, 37, 16))
    options = {"normalize": normalize, "key_lengths": torch.tensor([37, 20]), "backend": backend}
    scale = 6.0 if normalize else 0.3
    ordinary, values, lse, value_lse = dual_attention(
        q, k, v, value_scale=scale, return_lse=True, **options
    )
    lengths = options["key_lengths"]
    check(ordinary, lse, (q, k, v), "ordinary", key_lengths=lengths)
    rows = F.normalize(v.double(), dim=-1) if normalize else v.double()
    want, want_lse = attention(
        rows, rows, v.double(), scale=scale, key_lengths=lengths, return_lse=True
    )
    assert_attention(values, want, "values")
    assert torch.allclose(value_lse.double(), want_lse, atol=1e-5)
    alone = value_attention(v, scale=scale, **options)
    assert torch.equal(values, alone)


@native
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_normalized_halves_run_in_float32(dtype):
    v = torch.randn(1, 2, 40, 32).to(dtype)
    out = value_attention(v, scale=20.0, normalize=True, backend="native")
    want = value_attention(v.double(), scale=20.0, normalize=True)
    assert out.dtype == dtype
    assert_attention(out, want, "normalised")


def ragged(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("backend", BOTH)
def test_packed_sets_equal_single_ones(backend):
    offsets, key_offsets = ragged([3, 0, 40, 1]), ragged([7, 2, 0, 30])
    q, k, v = (torch.randn(n, 2, 24) for n in (44, 39, 39))
    mask = torch.rand(39) > 0.2
    out, lse = attention(
        q, k, v, offsets=offsets, key_offsets=key_offsets, key_mask=mask, return_lse=True,
        backend=backend,
    )  # fmt: skip
    for b in range(4):
        rows, keys = slice(offsets[b], offsets[b + 1]), slice(key_offsets[b], key_offsets[b + 1])
        one = [t.transpose(0, 1)[None].double() for t in (q[rows], k[keys], v[keys])]
        want, want_lse = attention(*one, key_mask=mask[None, keys], return_lse=True)
        assert_attention(out[rows], want[0].transpose(0, 1), f"set {b}")
        assert torch.allclose(lse[rows].double(), want_lse[0].T, atol=1e-5)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_co_attention_of_words_and_regions(cpu_level, dtype):
    offsets = ragged([5, 0, 26, 17])
    words = [torch.randn(48, 2, 32).to(dtype) for _ in range(3)]
    regions = [torch.randn(4, 2, 37, 32).to(dtype) for _ in range(3)]
    mask = torch.rand(4, 37) > 0.2
    options = {"offsets0": offsets, "key_mask1": mask, "return_lse": True}
    got = co_attention(*words, *regions, **options, backend="native")
    wide = [t.double() for t in (*words, *regions)]
    want = co_attention(*wide, **options, backend="reference")
    assert_attention(got[0], want[0], "words")
    assert_attention(got[1], want[1], "regions")
    assert got[0].shape == words[0].shape
    assert got[1].shape == regions[0].shape
    for mine, oracle in zip(got[2:], want[2:], strict=True):
        assert torch.allclose(mine.double(), oracle, atol=1e-5)


@native
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(cpu_level, dtype, shape):
    tensors = make(shape, dtype)
    if min(tensors[0].numel(), tensors[1].numel()) == 0 and dtype != torch.float32:
        return
    mask = some_mask(shape[0], shape[3])
    for options in ({}, {"key_mask": mask}):

        def run(*t: Tensor, backend: str, options=options):
            return attention(*t, **options, return_lse=True, backend=backend)

        check_gradients(run, tensors, f"{cpu_level} {list(options)}")


@native
def test_gradients_do_not_depend_on_the_number_of_threads():
    # One problem is shared out over the threads in two sweeps; on one thread it is one sweep.
    for shape in ((1, 1, 500, 410, 64), (1, 3, 500, 410, 64)):
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            torch.manual_seed(7)
            tensors = [t.requires_grad_() for t in make(shape)]
            out = attention(*tensors, backend="native")
            results.append(torch.autograd.grad(out, tensors, torch.randn_like(out)))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@native
def test_gradients_of_pairs_and_ragged_sets():
    sets = [make((2, 2, n, n, 16)) for n in (21, 30)]
    mask = torch.rand(2, 30) > 0.3

    def pair(*t: Tensor, backend: str):
        return pair_attention(*t, cross=True, key_mask1=mask, return_lse=True, backend=backend)

    check_gradients(pair, (*sets[0], *sets[1]), "pair")
    offsets = ragged([5, 0, 12])
    words = [torch.randn(17, 2, 8) for _ in range(3)]
    regions = [torch.randn(3, 2, 6, 8) for _ in range(3)]

    def co(*t: Tensor, backend: str):
        return co_attention(
            *t, offsets0=offsets, key_lengths1=torch.tensor([6, 2, 0]), backend=backend
        )

    check_gradients(co, (*words, *regions), "words and regions")


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_values_among_themselves(dtype):
    q, k, v = make((1, 2, 33, 33, 32), dtype)

    def dual(*t: Tensor, backend: str):
        return dual_attention(*t, backend=backend)

    check_gradients(dual, (q, k, v), "dual")

    def normalized(t: Tensor, backend: str):
        return (value_attention(t, scale=5.0, normalize=True, backend=backend),)

    check_gradients(normalized, (v,), "normalised")


@native
def test_gradient_of_one_result_alone():
    q, k, v = make((1, 1, 5, 6, 4))
    for chosen in (0, 1):

        def one(*t: Tensor, backend: str, chosen=chosen):
            return (attention(*t, return_lse=True, backend=backend)[chosen],)

        if chosen == 1:
            inputs = [t.clone().requires_grad_() for t in (q, k)]
            (lse,) = one(*inputs, v, backend="native")
            got = torch.autograd.grad(lse.sum(), inputs)
            wide = [t.double().requires_grad_() for t in (q, k)]
            (lse,) = one(*wide, v.double(), backend="reference")
            for a, b in zip(got, torch.autograd.grad(lse.sum(), wide), strict=True):
                assert_gradient(a, b, "log-sum-exp alone")
        else:
            check_gradients(one, (q, k, v), "output alone")


def test_gradcheck():
    tensors = [t.double().requires_grad_() for t in make((2, 1, 3, 4, 2))]
    mask = torch.tensor([[True, False, True, True], [False] * 4])

    def run(*t: Tensor):
        out, lse = attention(*t, key_mask=mask, return_lse=True)
        return out, lse[:1]

    torch.autograd.gradcheck(run, tensors)
