# SPDX-License-Identifier: Apache-2.0
"""attention: layouts, properties, errors, registration, and inputs at the edges."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from attention_checks import DTYPES, check, check_gradients, make

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import (
    attention,
    co_attention,
    dual_attention,
    explain,
    pair_attention,
    value_attention,
)
from patchword.testing import assert_attention, expanded, layouts
from patchword.testing import strategies as s

native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")


@native
def test_layouts():
    q, k, v = make((2, 3, 9, 11, 20))
    views = zip(layouts(q), layouts(k), layouts(v), strict=True)
    for (name, a), (_, b), (_, c) in views:
        out, lse = attention(a, b, c, return_lse=True, backend="native")
        check(out, lse, (q, k, v), name)
    for dim in range(4):
        wide = [expanded(t, dim) for t in (q, k, v)]
        out, lse = attention(*wide, return_lse=True, backend="native")
        check(out, lse, wide, f"stride 0 of dimension {dim}")


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_projections_run_through_strides(dtype):
    packed = torch.randn(2, 17, 3, 4, 24).to(dtype)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    out = attention(q, k, v, backend="native")
    check(out, None, (q, k, v), "packed projections")
    assert out.transpose(1, 2).is_contiguous()

    def run(t: torch.Tensor, backend: str):
        return (attention(*t.permute(2, 0, 3, 1, 4).unbind(0), backend=backend),)

    check_gradients(run, (packed,), "packed projections")


@native
def test_gradient_layouts():
    q, k, v = make((1, 2, 9, 11, 20))
    out = attention(*(t.requires_grad_() for t in (q, k, v)), backend="native")
    want = torch.autograd.grad(out, (q, k, v), torch.ones(out.shape), retain_graph=True)
    got = torch.autograd.grad(out, (q, k, v), torch.ones(()).expand(out.shape))
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@native
def test_weights_sum_to_one_and_keys_can_be_permuted():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(1, 33), s.sizes(1, 33), s.sizes(1, 33), s.dtypes(), s.seeds())
    def run(queries, keys, dim, dtype, seed):
        torch.manual_seed(seed)
        q, k, _ = make((1, 2, queries, keys, dim), dtype)
        ones = torch.ones_like(k)
        # bfloat16 weights are rounded one by one on some levels: their sum is 1 up to that.
        tolerance = {"atol": 8e-3 if dtype == torch.bfloat16 else 1e-3}
        assert torch.allclose(attention(q, k, ones).float(), torch.ones(()), **tolerance)
        v = torch.randn_like(k)
        order = torch.randperm(keys)
        out, lse = attention(q, k, v, return_lse=True)
        again, lse_again = attention(q, k[:, :, order], v[:, :, order], return_lse=True)
        assert torch.allclose(lse, lse_again, atol=1e-5)
        if dtype == torch.float32:
            assert_attention(again, out.double(), "permuted")

    run()


@native
def test_masked_keys_equal_absent_ones(cpu_level):
    q, k, v = make((1, 2, 20, 30, 16))
    mask = torch.rand(1, 30) > 0.5
    hidden = ~mask[0]
    out = attention(q, k, v, key_mask=mask, backend="native")
    fewer = attention(q, k[:, :, mask[0]], v[:, :, mask[0]], backend="native")
    assert torch.equal(out, fewer)
    for poison in (torch.nan, torch.inf):
        k[:, :, hidden] = poison
        v[:, :, hidden] = poison
        for backend in ("native", "reference"):
            assert_attention(attention(q, k, v, key_mask=mask, backend=backend), out.double(), "")
    grads = [t.requires_grad_() for t in (q, k, v)]
    attention(*grads, key_mask=mask, backend="native").sum().backward()
    assert all(t.grad.isfinite().all() for t in grads)
    assert (k.grad[:, :, hidden] == 0).all()


@native
def test_lengths_beyond_the_set_and_below_zero(cpu_level):
    q, k, v = make((3, 1, 4, 6, 8))
    lengths = torch.tensor([-3, 2, 99])
    out, lse = attention(q, k, v, key_lengths=lengths, return_lse=True, backend="native")
    check(out, lse, (q, k, v), "lengths", key_lengths=lengths)
    assert (out[0] == 0).all()
    assert (lse[0] == -torch.inf).all()
    assert torch.equal(lse, attention(q, k, v, key_lengths=lengths.int(), return_lse=True)[1])


@native
def test_nan_and_infinity(cpu_level):
    q, k, v = make((1, 1, 30, 140, 8))
    q[0, 0, 5, 2] = torch.nan
    out = attention(q, k, v, backend="native")
    assert out[0, 0, 5].isnan().all()
    assert out[0, 0, torch.arange(30) != 5].isfinite().all()
    q, k, v = make((1, 1, 30, 140, 8))
    k[0, 0, 130, 0] = torch.inf  # scores of +inf or -inf by the sign of q
    positive = q[0, 0, :, 0] > 0
    out = attention(q, k, v, backend="native")
    assert out[0, 0, positive].isnan().all()
    keep = torch.arange(140) != 130
    want = attention(q.double(), k[:, :, keep].double(), v[:, :, keep].double())
    assert_attention(out[:, :, ~positive], want[:, :, ~positive], "score -inf")
    # A whole block of keys at -inf before the first number.
    k = make((1, 1, 1, 140, 8))[1]
    k[0, 0, :129, 0] = torch.inf
    q = -torch.rand(1, 1, 30, 8) - 0.1
    want = attention(q.double(), k[:, :, 129:].double(), v[:, :, 129:].double())
    assert_attention(attention(q, k, v, backend="native"), want, "block of -inf")
    everything = torch.full_like(k, torch.inf)
    assert attention(q, everything, v, backend="native").isnan().all()


@native
@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 30.0, 1e15])
def test_magnitudes(cpu_level, magnitude):
    q, k, v = make((1, 2, 33, 150, 16))
    q = q * magnitude
    out, lse = attention(q, k, v, return_lse=True, backend="native")
    if magnitude > 100:  # one key takes all, up to rounding of scores that are nearly equal
        best = (q.double() @ k.double().transpose(-1, -2)).argmax(-1)
        want = v.gather(2, best[..., None].expand(-1, -1, -1, 16))
        assert ((out - want).abs().amax(-1) < 1e-5).float().mean() > 0.95
    else:
        want, want_lse = attention(q.double(), k.double(), v.double(), return_lse=True)
        # The error of a weight is that of its score: relative to the size of the scores.
        error = (out.double() - want).norm() / want.norm()
        assert error < 2e-6 * max(1.0, magnitude)
        assert ((lse - want_lse).abs() <= 4e-6 * max(1.0, float(want_lse.abs().max()))).all()


@native
def test_equal_scores_average_exactly(cpu_level):
    q = torch.zeros(1, 1, 50, 8)
    v = torch.randint(-8, 8, (1, 1, 128, 8)).float()
    for dtype in (torch.float32, torch.float16):
        out = attention(q.to(dtype), v.to(dtype), v.to(dtype), backend="native")
        want = v.mean(2, keepdim=True).expand(-1, -1, 50, -1).to(dtype)
        assert torch.equal(out, want)


def raises(error: type[Exception], text: str):
    return pytest.raises(error, match=text)


def test_errors():
    q, k, v = make((2, 3, 4, 5, 8))
    with raises(ShapeError, r"attention: q must have shape \[B, H, N, d\], got \[4, 8\]"):
        attention(q[0, 0], k, v)
    with raises(ShapeError, r"attention: k must have 3 heads of size 8, got \[2, 2, 5, 8\]"):
        attention(q, k[:, :2], v)
    with raises(ShapeError, r"attention: v must have shape \[2, 3, 5, 8\] like k"):
        attention(q, k, v[:, :, :4])
    with raises(ShapeError, r"attention: k must have batch size 2 like q, got 1"):
        attention(q, k[:1], v[:1])
    with raises(DTypeError, r"attention: k must be torch.float32, got torch.float64"):
        attention(q, k.double(), v)
    with raises(DTypeError, r"attention: q must be floating point, got torch.int64"):
        attention(q.long(), k, v)
    with raises(ShapeError, r"attention: key_mask must have shape \[2, 5\], got \[2, 4\]"):
        attention(q, k, v, key_mask=torch.ones(2, 4, dtype=torch.bool))
    with raises(DTypeError, r"attention: key_mask must be bool"):
        attention(q, k, v, key_mask=torch.ones(2, 5))
    with raises(ShapeError, r"attention: key_lengths must have shape \[2\], got \[3\]"):
        attention(q, k, v, key_lengths=torch.ones(3, dtype=torch.long))
    with raises(DTypeError, r"attention: key_lengths must be int64 or int32"):
        attention(q, k, v, key_lengths=torch.ones(2))
    with raises(OptionError, r"attention: scale must be finite, got nan"):
        attention(q, k, v, scale=float("nan"))
    with raises(ShapeError, r"pair_attention: v1 must have shape \[2, 3, 5, 8\] like k1"):
        pair_attention(q, q, q, q, k, q, cross=True)
    with raises(ShapeError, r"pair_attention: key_mask1 must have shape \[2, 5\]"):
        pair_attention(q, q, q, k, k, k, cross=True, key_mask1=torch.ones(2, 4, dtype=torch.bool))
    with raises(OptionError, r"value_attention: normalize must come with a scale of its own"):
        value_attention(v, normalize=True)
    with raises(OptionError, r"dual_attention: value_scale must be finite"):
        dual_attention(v, v, v, value_scale=float("inf"))
    packed = torch.randn(5, 3, 8)
    offsets = torch.tensor([0, 2, 5])
    with raises(ShapeError, r"co_attention: q0 must have shape \[T, H, d\] with offsets"):
        co_attention(q, q, q, k, k, k, offsets0=offsets)
    with raises(OptionError, r"co_attention: key_lengths0 must be absent for packed keys"):
        co_attention(*[packed] * 3, k, k, k, offsets0=offsets, key_lengths0=torch.tensor([1, 1]))
    with raises(ShapeError, r"attention: offsets must have shape \[B \+ 1\], got \[0\]"):
        attention(packed, packed, packed, offsets=offsets[:0])


@native
def test_offsets_are_checked_where_they_can_be_seen():
    packed = torch.randn(5, 3, 8)
    for wrong in ([0, 3], [1, 5], [0, 4, 2, 5], [0, 9, 5]):
        with pytest.raises(ValueError, match="offsets must ascend from 0 to the number of rows"):
            attention(packed, packed, packed, offsets=torch.tensor(wrong), backend="native")


@native
def test_refusals():
    wide = torch.randn(1, 1, 3, 129)
    with raises(BackendError, r"the head size 129 is not 1 to 128"):
        attention(wide, wide, wide, backend="native")
    assert attention(wide, wide, wide).shape == wide.shape
    double = torch.randn(1, 1, 3, 8).double()
    with raises(BackendError, r"dtype float64 is not float32/float16/bfloat16"):
        attention(double, double, double, backend="native")
    assert explain("attention", *make((1, 1, 2, 2, 4)))["native"] is None
    none = torch.randn(1, 1, 3, 0)
    assert attention(none, none, none).shape == (1, 1, 3, 0)


@native
def test_opcheck():
    q, k, v = make((1, 2, 3, 4, 8))
    nothing = (None,) * 4
    second = (None,) * 7
    forward = torch.ops.patchword.attention_forward.default
    torch.library.opcheck(forward, (q, k, v, *nothing, *second, [0.3]))
    torch.library.opcheck(forward, (q, k, v, *nothing, k, q, q, *nothing, [0.3, 0.2]))
    out, _, lse, _ = forward(q, k, v, *nothing, *second, [0.3])
    torch.library.opcheck(
        torch.ops.patchword.attention_backward.default,
        (q, k, v, *nothing, *second, [0.3], out, lse, torch.randn_like(out), None, *nothing),
    )


@native
# torch.compile makes an instance itself while it traces the gradient.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_graph_breaks():
    sets = [make((1, 2, n, n, 8)) for n in (5, 7)]
    mask = torch.rand(1, 7) > 0.3

    def function(*t):
        out = pair_attention(*t, cross=True, key_mask1=mask)
        first = dual_attention(*t[:3])
        return sum(x.square().sum() for x in itertools.chain(out, first))

    inputs = [t.requires_grad_() for t in (*sets[0], *sets[1])]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(function(*inputs), inputs)
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_meta_and_autocast():
    q, k, v = make((2, 3, 4, 5, 8), device="meta")
    out, lse = attention(q, k, v, return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (2, 3, 4)
    q, k, v = make((2, 3, 4, 5, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # The product of a linear layer is narrow, the residual stream is not.
        out = attention(q, k.bfloat16(), v)
        assert out.dtype == F.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16
    assert torch.equal(out, attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))


@native
def test_inference_mode_and_recorded_calls_agree():
    q, k, v = make((1, 2, 9, 9, 8))
    want = attention(q, k, v, backend="native")
    with torch.inference_mode():
        assert torch.equal(attention(q, k, v, backend="native"), want)
    assert torch.equal(attention(q.requires_grad_(), k, v, backend="native"), want)


@pytest.mark.slow
@native
def test_offsets_beyond_32_bits():
    # Strides of more than 2^31 elements between heads, over memory that is never touched.
    memory = torch.empty(3 << 30, dtype=torch.bfloat16)
    q, k, v = make((1, 2, 5, 9, 16), torch.bfloat16)
    far = memory.as_strided(k.shape, (0, (3 << 30) - 9 * 16, 16, 1))
    far.copy_(k)
    assert torch.equal(attention(q, far, v, backend="native"), attention(q, k, v))
