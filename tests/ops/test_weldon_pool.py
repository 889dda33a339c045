# SPDX-License-Identifier: Apache-2.0
"""weldon_pool: the standard tests against the reference in float64 and the published output."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from golden_inputs import golden, seeded
from op_checks import BACKENDS, DTYPES, FAR, assert_repeats, far_apart, native
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, weldon_pool
from patchword.testing import assert_gradient, assert_within, expanded, layouts, rounding, strided
from patchword.testing import strategies as s

# Empty, one, primes, vector widths of maps and chunks of cells +- 1.
SHAPES = [
    (0, 3, 4, 4),
    (2, 0, 4, 4),
    (1, 1, 1, 1),
    (2, 3, 1, 5),
    (1, 7, 3, 5),
    (1, 8, 4, 4),
    (2, 9, 17, 1),
    (1, 15, 5, 7),
    (3, 17, 7, 9),
    (1, 33, 3, 11),
]
# Lists, extremes, searches, one side alone, overlapping sets.
COUNTS = [(1, 0), (1, 1), (3, 2), (15, 15), (16, 0), (17, 3), (2, 40), (1000, 1000)]


def check(maps: Tensor, k_max: float, k_min: float, what: str, **options) -> Tensor:
    got = weldon_pool(maps, k_max, k_min, backend="native", **options)
    want = weldon_pool(maps.double(), k_max, k_min, backend="reference", **options)
    assert got.dtype == maps.dtype
    if want.numel() == 0:
        assert got.shape == want.shape
        return got
    # Two sums of up to h w values: half a unit of 2^-24 per addition of the largest magnitude.
    size = maps.double().abs().nan_to_num(0.0, 0.0, 0.0).max()
    weight = 1 + abs(options.get("alpha", 1.0))
    bound = weight * size * 2**-24 * (4 + min(maps.shape[2] * maps.shape[3], 64))
    assert_within(got, want, bound + rounding(got.dtype, want), what)
    return got


def gradient(maps: Tensor, grad: Tensor, k_max: float, k_min: float, backend: str) -> Tensor:
    leaf = maps.detach().requires_grad_()
    return torch.autograd.grad(weldon_pool(leaf, k_max, k_min, backend=backend), leaf, grad)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_published_code(backend):
    pooled = weldon_pool(seeded("dsve.maps", (2, 7, 8, 9)), 15, 15, backend=backend)
    assert_within(pooled, golden("weldon", "weldon15")[..., 0, 0], 1e-6, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    def pool(values: list[float], k: float, **options) -> float:
        maps = torch.tensor(values).reshape(1, 1, 1, -1)
        return float(weldon_pool(maps, k, k, backend=backend, **options))

    def upto(n: int) -> list[float]:
        return [float(i) for i in range(n)]

    assert pool(upto(10)[1:], 2) == 10
    assert pool(upto(169), 15) == 168
    assert pool(upto(21)[1:], 15) == 21
    assert pool([i * i for i in upto(64)], 15) == pytest.approx(3222.333333)
    # More values asked for than there are.
    assert pool(upto(10)[1:], 15, too_large="legacy") == pytest.approx(4.4)
    assert pool(upto(4), 15, too_large="legacy") == pytest.approx(0.8)
    ten = [0.0, 1, 2, 3, 4, 8, 9, 10, 11, 12]
    assert pool(ten, 15, too_large="legacy") == pytest.approx(4.666667)
    assert pool(ten, 15) == pytest.approx(12.0)
    # Fractions are rounded down, to one at least.
    assert pool(upto(10), 0.25) == pool(upto(10), 2)
    assert pool(upto(10), 0.01) == pool(upto(10), 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_variants(backend):
    maps = torch.tensor([[1.0, 5.0], [2.0, 8.0]]).reshape(1, 1, 2, 2)

    def pool(k_max: float, k_min: float, **options) -> float:
        return float(weldon_pool(maps, k_max, k_min, backend=backend, **options))

    assert pool(1, 1) == 9
    assert pool(1, 1, alpha=-0.5) == 7.5
    assert pool(1, 1, halve="with_minimum") == 4.5
    assert pool(1, 1, alpha=0.5, halve="with_minimum") == 4.25
    assert pool(1, 0, halve="with_minimum") == 8
    assert pool(1, 1, alpha=0.0, halve="with_minimum") == 8
    assert pool(1, 0, halve="always") == 4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(cpu_level, shape):
    for dtype in DTYPES:
        maps = torch.randn(shape).to(dtype)
        channels_last = maps.contiguous(memory_format=torch.channels_last)
        for k_max, k_min in COUNTS:
            what = f"{cpu_level} {dtype} {k_max} {k_min}"
            got = check(maps, k_max, k_min, what, alpha=0.7, halve="always")
            again = weldon_pool(channels_last, k_max, k_min, alpha=0.7, halve="always")
            assert torch.equal(got, again), f"{what} channels-last"


@native
def test_matches_reference_large():
    maps = torch.randn(2, 260, 14, 14)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check(maps, 15, 15, f"{threads} threads")
        check(maps, 60, 15, f"{threads} threads, searched")
    check(torch.randn(1, 3, 70, 60), 15, 900, "many cells")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(cpu_level, shape, dtype):
    maps = torch.randn(shape).to(dtype)
    grad = torch.randn(shape[:2]).to(dtype)
    for k_max, k_min in COUNTS:
        want = gradient(maps.double(), grad.double(), k_max, k_min, "reference")
        for view in (maps, maps.contiguous(memory_format=torch.channels_last)):
            got = gradient(view, grad, k_max, k_min, "native")
            assert got.dtype == dtype
            assert_gradient(got, want, f"{cpu_level} {k_max} {k_min}")


def test_gradcheck():
    maps = torch.randperm(24).double().reshape(1, 2, 3, 4).requires_grad_()
    for k_max, k_min in ((1, 0), (3, 5), (12, 12)):
        torch.autograd.gradcheck(lambda m, a=k_max, b=k_min: weldon_pool(m, a, b), maps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_by_hand(backend):
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    got = gradient(maps, torch.ones(1, 1), 15, 15, backend).flatten()
    want = torch.full((16,), 2 / 15)
    want[0] = want[15] = 1 / 15
    assert_within(got, want, 1e-7, "15 of 16, twice")
    # Among equals the lowest index, row by row, whatever the memory looks like.
    flat = torch.tensor([[1.0, 2.0, 2.0], [2.0, 1.0, 1.0]]).reshape(1, 1, 2, 3)
    for _, view in layouts(flat):
        got = gradient(view, torch.ones(1, 1), 2, 1, backend)
        assert torch.equal(got[0, 0], torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.0, 0.0]]))


@native
def test_layouts():
    for shape in ((2, 5, 3, 7), (1, 18, 4, 5)):
        maps, grad = torch.randn(shape), torch.randn(shape[:2])
        for k_max, k_min in ((1, 1), (4, 3), (18, 2)):
            want = gradient(maps.double(), grad.double(), k_max, k_min, "reference")
            for name, view in layouts(maps):
                check(view, k_max, k_min, name)
                assert_gradient(gradient(view, grad, k_max, k_min, "native"), want, name)
            for dim in range(4):
                view = expanded(maps, dim)
                check(view, k_max, k_min, f"expanded along {dim}")
                want_expanded = gradient(view.double(), grad.double(), k_max, k_min, "reference")
                got = gradient(view, strided(grad, order=(1, 0)), k_max, k_min, "native")
                assert_gradient(got, want_expanded, f"expanded along {dim}")


@native
def test_ties_on_whole_numbers_are_exact(cpu_level):
    maps = torch.randint(-2, 3, (3, 11, 5, 8)).float()
    grad = torch.randint(-4, 5, (3, 11)).float()
    for k_max, k_min in ((1, 1), (4, 8), (16, 16), (32, 1)):
        got = weldon_pool(maps, k_max, k_min, backend="native")
        want = weldon_pool(maps.double(), k_max, k_min, backend="reference")
        assert_within(got, want, 1e-6, f"{k_max} {k_min}")
        got, want = (
            gradient(maps.to(t), grad.to(t), k_max, k_min, b) != 0
            for t, b in ((torch.float32, "native"), (torch.float64, "reference"))
        )
        assert torch.equal(got, want), "other cells were chosen"


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(
        s.sizes(1, 20), s.sizes(1, 9), s.sizes(1, 9), s.sizes(1, 40), s.sizes(0, 40), s.seeds()
    )
    def run(channels: int, height: int, width: int, k_max: int, k_min: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        maps = torch.randn(1, channels, height, width, generator=generator)
        pooled = weldon_pool(maps, k_max, k_min)
        # The order of cells is irrelevant.
        order = torch.randperm(height * width, generator=generator)
        shuffled = maps.flatten(2)[..., order].reshape(maps.shape)
        assert_within(weldon_pool(shuffled, k_max, k_min), pooled, 1e-5, "shuffled")
        # Powers of two are exact; a constant is added once per set.
        assert torch.equal(weldon_pool(maps * 4, k_max, k_min), pooled * 4)
        sets = 2 if k_min else 1
        assert_within(weldon_pool(maps + 3, k_max, k_min), pooled + 3 * sets, 2e-5, "shifted")
        # Largest and smallest change places with the sign.
        if k_min:
            assert_within(weldon_pool(-maps, k_min, k_max), -pooled, 1e-5, "negated")
        assert torch.equal(weldon_pool(maps, 1, 0), maps.amax((2, 3)))

    run()


def test_errors():
    maps = torch.randn(1, 2, 3, 3)
    with pytest.raises(ShapeError, match=r"maps must have shape \[B, C, h, w\], got \[2, 3, 3\]"):
        weldon_pool(maps[0], 1, 1)
    with pytest.raises(ShapeError, match="maps must have at least one cell"):
        weldon_pool(maps[:, :, :0], 1, 1)
    with pytest.raises(DTypeError, match=r"maps must be floating point, got torch\.int64"):
        weldon_pool(maps.long(), 1, 1)
    for k in (0, -1, 0.0):
        with pytest.raises(OptionError, match="k_max must be positive"):
            weldon_pool(maps, k, 1)
    with pytest.raises(OptionError, match="k_min must be at least 0, got -1"):
        weldon_pool(maps, 1, -1)
    for k in (1.0, 2.5, math.nan):
        with pytest.raises(OptionError, match="k_max must be a count, or a fraction between"):
            weldon_pool(maps, k, 1)
    with pytest.raises(OptionError, match="k_min must be a count, or a fraction"):
        weldon_pool(maps, 1, 1.5)
    with pytest.raises(OptionError, match="alpha must be finite, got nan"):
        weldon_pool(maps, 1, 1, alpha=math.nan)
    with pytest.raises(OptionError, match="halve must be one of never, with_minimum, always"):
        weldon_pool(maps, 1, 1, halve="twice")
    with pytest.raises(OptionError, match="too_large must be one of clamp, legacy, got 'raise'"):
        weldon_pool(maps, 1, 1, too_large="raise")
    with pytest.raises(BackendError, match="weldon_pool has no triton version"):
        weldon_pool(maps, 1, 1, backend="triton")
    if _library.C is not None:
        with pytest.raises(BackendError, match="float64 is not float32/float16/bfloat16"):
            weldon_pool(maps.double(), 1, 1, backend="native")


@native
def test_registration():
    maps = torch.randn(2, 5, 3, 4)
    ops = torch.ops.patchword
    plan = (3, 2, 3.0, 2.0)
    torch.library.opcheck(ops.weldon_pool_forward.default, (maps, *plan, True))
    torch.library.opcheck(ops.weldon_pool_forward.default, (maps, *plan, False))
    _, thresholds = ops.weldon_pool_forward(maps, *plan, True)
    grad = torch.randn(2, 5)
    torch.library.opcheck(ops.weldon_pool_backward.default, (grad, maps, thresholds, *plan))
    assert weldon_pool(maps.to("meta"), 3, 2).shape == (2, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert weldon_pool(maps, 3, 2).dtype == torch.float32
    assert explain("weldon_pool", maps)["native"] is None


@native
def test_second_derivative_is_refused():
    maps = torch.randn(1, 2, 3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(weldon_pool(maps, 2, 2).square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_into_one_graph():
    maps = torch.randn(2, 5, 3, 4, requires_grad=True)
    run = torch.compile(
        lambda m: weldon_pool(m, 3, 0.3).square().sum(), fullgraph=True, backend="aot_eager"
    )
    (got,) = torch.autograd.grad(run(maps), maps)
    (want,) = torch.autograd.grad(weldon_pool(maps, 3, 0.3).square().sum(), maps)
    assert torch.equal(got, want)


@native
@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_edges(cpu_level, k):
    maps = torch.randn(1, 19, 4, 6)
    for dtype in DTYPES:
        check((maps * 1e-3).to(dtype), k, k, f"{dtype} small")
    check(maps * 1e-38, k, k, "tiny")
    check(maps * 1e30, k, k, "huge")
    for value in (math.inf, -math.inf):
        infinite = maps.clone()
        infinite[0, 3, 1, 2] = infinite[0, 4] = value
        check(infinite, k, k, f"{value}")
    # NaN stays out of the largest while there are others, and is among the smallest.
    missing = maps.clone()
    missing[0, 3, 1, 2] = missing[0, 5, 0, 0] = math.nan
    missing[0, 7] = math.nan
    missing[0, 8, :, 1:] = math.nan
    top = check(missing, k, 0, "NaN, largest")
    assert bool(top[0, [3, 5]].isfinite().all())
    assert bool(top[0, 7].isnan())
    assert bool(top[0, 8].isnan()) == (k > 4)
    both = check(missing, k, k, "NaN, both")
    assert bool(both[0, [3, 5, 7, 8]].isnan().all())
    zeros = torch.tensor([0.0, -0.0, -0.0, 0.0]).reshape(1, 1, 2, 2)
    got = gradient(zeros, torch.ones(1, 1), 2, 1, "native").flatten()
    assert torch.equal(got, torch.tensor([1.5, 0.5, 0.0, 0.0])), "-0 equals +0"


@native
def test_gradient_beside_missing_values(cpu_level):
    maps = torch.randn(1, 3, 4, 6)
    maps[0, 1, 0, :4] = math.nan
    for k in (2, 5, 20):
        got = gradient(maps, torch.ones(1, 3), k, k, "native")
        want = gradient(maps.double(), torch.ones(1, 3).double(), k, k, "reference")
        assert_gradient(got, want, f"{k}")


@native
def test_repeats_bit_for_bit(cpu_level):
    maps, grad = torch.randn(3, 70, 9, 11), torch.randn(3, 70)
    for k in (15, 30):
        assert_repeats(lambda k=k: (weldon_pool(maps, k, k), gradient(maps, grad, k, k, "native")))


@native
def test_offsets_beyond_32_bits():
    view = far_apart((1, 2, 3, 4), (0, 0, FAR, 1))
    values = torch.randn(3, 4).bfloat16()
    view[0, 0] = values
    plain = values.expand(1, 2, 3, 4).contiguous()
    assert torch.equal(weldon_pool(view, 5, 2, backend="native"), weldon_pool(plain, 5, 2))


def run_on_cuda_kernels(device: str, shapes: list[tuple[int, ...]]) -> None:
    for shape, (k_max, k_min) in itertools.product(shapes, ((1, 0), (4, 3), (40, 50))):
        maps = torch.randn(shape, device=device)
        grad = torch.randn(shape[:2], device=device)
        what = f"{shape} {k_max} {k_min}"
        check(maps, k_max, k_min, what, alpha=0.5)
        want = gradient(maps.double(), grad.double(), k_max, k_min, "reference")
        assert_gradient(gradient(maps, grad, k_max, k_min, "native"), want, what)
        last = maps.contiguous(memory_format=torch.channels_last)
        assert_gradient(gradient(last, grad, k_max, k_min, "native"), want, what)


def run_cuda_edges(device: str) -> None:
    maps = torch.randint(-2, 3, (2, 3, 5, 7), device=device).float()
    grad = torch.ones(2, 3, device=device)
    maps[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    for dtype in DTYPES:
        check(maps.to(dtype), 4, 0, f"{dtype}")
    got = gradient(maps, grad, 6, 7, "native")
    want = gradient(maps.double(), grad.double(), 6, 7, "reference")
    assert_gradient(got, want, "ties")
    assert torch.equal(got != 0, want != 0)


CUDA_SHAPES = [
    (0, 3, 4, 4),
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 5, 8, 4),
    (1, 2, 9, 31),
    (1, 2, 33, 33),
]


@pytest.mark.parametrize("shape", CUDA_SHAPES, ids=str)
def test_cuda_kernels_on_the_cpu(simt, shape):
    run_on_cuda_kernels("cpu", [shape])


def test_cuda_kernels_on_the_cpu_edges(simt):
    run_cuda_edges("cpu")
    maps = torch.randn(2, 3, 3, 4)
    for name, view in layouts(maps):
        check(view, 3, 2, name)


@pytest.mark.cuda
@pytest.mark.sanitizer
def test_cuda():
    run_on_cuda_kernels("cuda", [*CUDA_SHAPES, (16, 240, 14, 14)])
    run_cuda_edges("cuda")
