# SPDX-License-Identifier: Apache-2.0
"""sample_features: the seven standard tests, against the reference in float64 and grid_sample."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from op_checks import BACKENDS, DTYPES, FAR, assert_graph_replays, assert_repeats, far_apart, native
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, sample_features
from patchword.ops.sample_features import _affine
from patchword.ops.sample_features.reference import sample_features_reference
from patchword.testing import (
    assert_gradient,
    assert_interpolation,
    expanded,
    layouts,
    strided,
)
from patchword.testing import strategies as s

OPTIONS = list(
    itertools.product(["bilinear", "nearest"], ["zeros", "border", "reflection"], [False, True])
)
# B, C, h, w, M: empty, one, primes, vector widths and tiles +- 1; from 64 points on, sorted.
SHAPES = [
    (0, 3, 4, 4, 2),
    (1, 0, 4, 4, 2),
    (2, 3, 4, 4, 0),
    (1, 1, 1, 1, 5),
    (2, 3, 5, 7, 11),
    (1, 7, 2, 31, 13),
    (1, 15, 9, 3, 65),
    (2, 16, 7, 9, 64),
    (1, 17, 8, 16, 97),
    (3, 33, 5, 17, 127),
    (1, 40, 1, 40, 70),
    (1, 64, 33, 1, 80),
]
SMALL = [(2, 3, 4, 5, 6), (1, 17, 3, 4, 33), (2, 40, 5, 3, 70)]


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A map, and points of which a few lie outside, on cell centres and on the border."""
    batch, channels, height, width, count = shape
    features = torch.randn(batch, channels, height, width).to(dtype)
    points = torch.rand(batch, count, 2) * torch.tensor([width + 3.0, height + 3.0]) - 1.5
    points[:, ::5] = points[:, ::5].floor() + 0.5
    points[:, ::7] = points[:, ::7].round()
    return features, points


def oracle(features: Tensor, points: Tensor, **options) -> Tensor:
    return sample_features(features.double(), points, backend="reference", **options)


def check(features: Tensor, points: Tensor, what: str, out: Tensor | None = None, **options):
    if out is None:
        out = sample_features(features, points, backend="native", **options)
    want = oracle(features, points, **options)
    assert out.dtype == features.dtype
    tap = features.double().abs().nan_to_num(0.0, 0.0).max() if features.numel() else 0.0
    if options.get("normalize"):
        # The error of each channel carries over to the norm, relative to a vector that may be
        # much shorter than its taps where they cancel.
        plain = sample_features(
            features.double(), points, backend="reference", **{**options, "normalize": False}
        )
        length = plain.norm(dim=-1, keepdim=True).clamp_min(1e-3)
        tap = 2 * tap * math.sqrt(max(features.shape[1], 1)) / length
    assert_interpolation(out, want, tap, what)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(cpu_level, dtype, shape):
    features, points = make(shape, dtype)
    for mode, padding, corners in OPTIONS:
        options = {"mode": mode, "padding": padding, "align_corners": corners}
        check(features, points, f"{cpu_level} {options}", **options)
    last = features.contiguous(memory_format=torch.channels_last)
    check(last, points, f"{cpu_level} channels-last")
    check(last, points, f"{cpu_level} channels-last normalised", normalize=True)
    check(features, points, f"{cpu_level} normalised", normalize=True)


@native
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_matches_reference_large(layout):
    features, points = make((2, 256, 56, 56, 1031))
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check(features, points, f"{layout}, {threads} threads")
        check(features, points, f"{layout}, {threads} threads, normalised", normalize=True)


@native
def test_wide_map_takes_channel_blocks_and_coarse_buckets():
    features, points = make((1, 96, 2, 1500, 64))
    points[..., 0] = torch.rand(1, 64) * 1500
    check(features, points, "blocks of channels")
    grad = torch.randn(1, 64, 96)
    check_gradients(features, points, grad, "blocks of channels")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 5, 6, 4, 20), (1, 18, 5, 7, 90)], ids=str)
@pytest.mark.parametrize(("mode", "padding", "corners"), OPTIONS)
def test_equals_grid_sample(backend, shape, mode, padding, corners):
    batch, channels, height, width, count = shape
    features = torch.randn(batch, channels, height, width)
    points = torch.rand(batch, count, 2) * 5 - 2.5
    # Away from ties, where rounding of the coordinate itself decides.
    if mode == "nearest":
        affine = torch.tensor(_affine("normalized", 1.0, corners, width, height)).double()
        index = points.double() * affine[::2] + affine[1::2]
        near_tie = ((index - 0.5) - (index - 0.5).round()).abs() < 1e-4
        points = torch.where(near_tie, points + 0.01, points)
    out = sample_features(
        features,
        points,
        coordinates="normalized",
        mode=mode,
        padding=padding,
        align_corners=corners,
        backend=backend,
    )
    want = F.grid_sample(
        features.double(),
        points.double()[:, :, None],
        mode=mode,
        padding_mode=padding,
        align_corners=corners,
    )
    want = want[..., 0].transpose(1, 2)
    assert_interpolation(out, want, features.abs().max(), f"{backend} {mode} {padding} {corners}")


def test_coordinate_conventions():
    features = torch.arange(12.0).reshape(1, 1, 3, 4)
    centre = torch.tensor([[[40.0, 24.0]]])  # cell (1, 2) of stride 16
    assert sample_features(features, centre, stride=16).item() == 6
    assert (
        sample_features(features, torch.tensor([[[2.5 / 4, 1.5 / 3]]]), coordinates="unit").item()
        == 6
    )
    corner = torch.tensor([[[32.0, 16.0]]])
    assert sample_features(features, corner, stride=16, align_corners=True).item() == 6
    assert sample_features(
        features, torch.tensor([[[2 / 3, 0.5]]]), coordinates="unit", align_corners=True
    ).item() == pytest.approx(6)
    between = torch.tensor([[[32.0, 24.0]]])
    assert sample_features(features, between, stride=16).item() == 5.5
    edge = torch.tensor([[[0.0, 8.0]]])  # half of cell (0, 0), half outside
    shifted = features + 1
    assert sample_features(shifted, edge, stride=16).item() == 0.5
    assert sample_features(shifted, edge, stride=16, padding="border").item() == 1


def check_gradients(features: Tensor, points: Tensor, grad: Tensor, what: str, **options):
    wanted = [features.double().requires_grad_(), points.double().requires_grad_()]
    out = sample_features(*wanted, backend="reference", **options)
    want = torch.autograd.grad(out, wanted, grad.double())
    got_in = [
        features.detach().clone(memory_format=torch.preserve_format).requires_grad_(),
        points.clone().requires_grad_(),
    ]
    out = sample_features(*got_in, backend="native", **options)
    got = torch.autograd.grad(out, got_in, grad)
    assert got[0].dtype == features.dtype
    assert got[0].stride() == torch.empty_like(features).stride()
    assert_gradient(got[0], want[0], f"{what}: features")
    assert_gradient(got[1], want[1], f"{what}: points", dtype=features.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_gradients(cpu_level, dtype, shape):
    features, points = make(shape, dtype)
    grad = torch.randn(shape[0], shape[4], shape[1]).to(dtype)
    for mode, padding, corners in OPTIONS:
        options = {"mode": mode, "padding": padding, "align_corners": corners}
        check_gradients(features, points, grad, f"{cpu_level} {options}", **options)
    last = features.contiguous(memory_format=torch.channels_last)
    check_gradients(last, points, grad, f"{cpu_level} channels-last")


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_normalized(dtype):
    features, points = make((2, 40, 5, 3, 70), dtype)
    points = points.clamp(0.6, 2.4)  # inside: no vector is zero
    grad = torch.randn(2, 70, 40).to(dtype)
    check_gradients(features, points, grad, "normalised", normalize=True)


@native
def test_gradient_of_an_empty_call():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    points = torch.zeros(1, 0, 2, requires_grad=True)
    sample_features(features, points, backend="native").sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))
    assert points.grad.shape == (1, 0, 2)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_gradcheck(padding):
    features = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    # Off the cell borders by more than the step of the numerical derivative.
    points = torch.tensor([[[0.7, 0.9], [1.8, 2.2], [3.3, 1.1], [-0.3, 0.4], [4.2, 2.8]]])
    points = points.double().requires_grad_()
    for normalize in (False, True):
        torch.autograd.gradcheck(
            lambda f, p, n=normalize: sample_features(f, p, padding=padding, normalize=n),
            (features, points),
        )


@native
def test_gradient_at_a_cell_centre_looks_right():
    features = torch.tensor([1.0, 2.0, 5.0]).reshape(1, 1, 1, 3)
    for backend in ("native", "reference"):
        points = torch.tensor([[[1.5, 0.5]]], requires_grad=True)
        sample_features(features, points, backend=backend).sum().backward()
        assert points.grad[0, 0, 0].item() == 3.0, backend


@native
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_layouts(shape):
    features, points = make(shape)
    for (name, view), (other, spots) in itertools.product(layouts(features), layouts(points)):
        check(view, spots, f"{name}, points {other}")
    for dim in range(4):
        view = expanded(features, dim)
        check(view, points, f"expanded along {dim}")
        grad = torch.randn(shape[0], shape[4], shape[1])
        leaf, spots = view.clone().requires_grad_(), points.clone().requires_grad_()
        sample_features(leaf, spots, backend="native").backward(grad)
        again = points.clone().requires_grad_()
        sample_features(view, again, backend="native").backward(grad)
        assert_gradient(again.grad, spots.grad.double(), f"expanded along {dim}")
    check(features, expanded(points, 1), "one point for all")
    backwards = strided(torch.randn(shape[0], shape[4], shape[1]), order=(1, 2, 0))
    check_gradients(features, points, backwards, "gradient with strides")


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(1, 20), s.sizes(1, 9), s.sizes(1, 9), s.sizes(0, 90), s.seeds())
    def run(channels: int, height: int, width: int, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(1, channels, height, width, generator=generator)
        points = torch.rand(1, count, 2, generator=generator) * torch.tensor([width, height])
        out = sample_features(features, points, padding="border")
        # An average of taps stays between them, up to rounding.
        low, high = features.amin((2, 3))[:, None], features.amax((2, 3))[:, None]
        slack = 1e-6 * features.abs().max()
        assert bool(((out >= low - slack) & (out <= high + slack)).all())
        # Permuting points permutes rows; other points never matter.
        order = torch.randperm(count, generator=generator)
        assert torch.equal(
            sample_features(features, points[:, order], padding="border"), out[:, order]
        )
        # Linear in the map: powers of two are exact.
        assert torch.equal(sample_features(features * 4, points, padding="border"), out * 4)
        # The map's own cells come back unchanged.
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = torch.stack((x, y), -1).reshape(1, -1, 2) + 0.5
        same = sample_features(features, centres)
        assert torch.equal(same.transpose(1, 2).reshape(features.shape), features)
        lengths = sample_features(features, centres, normalize=True).norm(dim=-1)
        assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5)

    run()


def test_errors():
    features, points = torch.randn(2, 3, 4, 4), torch.rand(2, 5, 2)
    with pytest.raises(ShapeError, match=r"features must have shape \[B, C, h, w\], got \[3, 4\]"):
        sample_features(features[0, :, :, 0], points)
    with pytest.raises(ShapeError, match=r"points must have shape \[2, M, 2\], got \[1, 5, 2\]"):
        sample_features(features, points[:1])
    with pytest.raises(ShapeError, match=r"points must have shape \[2, M, 2\], got \[2, 5, 3\]"):
        sample_features(features, torch.rand(2, 5, 3))
    with pytest.raises(ShapeError, match="at least one cell"):
        sample_features(features[:, :, :0], points)
    with pytest.raises(DTypeError, match=r"features must be floating point, got torch.int64"):
        sample_features(features.long(), points)
    with pytest.raises(DTypeError, match=r"points must be floating point, got torch.int64"):
        sample_features(features, points.long())
    with pytest.raises(DTypeError, match="points must be on cpu like features, got meta"):
        sample_features(features, points.to("meta"))
    with pytest.raises(OptionError, match=r"coordinates must be \"pixel\".* got 'cells'"):
        sample_features(features, points, coordinates="cells")
    with pytest.raises(OptionError, match=r'mode must be "bilinear" or "nearest", got \'cubic\''):
        sample_features(features, points, mode="cubic")
    with pytest.raises(OptionError, match=r"padding must be .* got 'wrap'"):
        sample_features(features, points, padding="wrap")
    for stride in (0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="stride must be positive"):
            sample_features(features, points, stride=stride)
    with pytest.raises(BackendError, match="sample_features has no triton version"):
        sample_features(features, points, backend="triton")
    if _library.C is not None:
        with pytest.raises(BackendError, match="float64 is not float32/float16/bfloat16"):
            sample_features(features.double(), points, backend="native")


@native
def test_registration():
    features, points = make((1, 20, 4, 5, 70))
    affine = [0.5, -0.5, 0.5, -0.5]
    torch.library.opcheck(
        torch.ops.patchword.sample_features_forward.default,
        (features, points, affine, 0, 0, False, False),
    )
    grad = torch.randn(1, 70, 20)
    torch.library.opcheck(
        torch.ops.patchword.sample_features_backward.default,
        (grad, features, points, affine, 0, 0, False, True, True),
    )
    meta = sample_features(features.to("meta"), points.to("meta"))
    assert meta.shape == (1, 70, 20)
    assert meta.is_meta
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sample_features(features, points), sample_features(features, points))
    assert explain("sample_features", features, points)["native"] is None


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_into_one_graph():
    features, points = make((1, 20, 4, 5, 70))
    leaves = [features.requires_grad_(), points.requires_grad_()]
    run = torch.compile(
        lambda f, p: sample_features(f, p, stride=2, normalize=True).square().sum(),
        fullgraph=True,
        backend="aot_eager",
    )
    got = torch.autograd.grad(run(*leaves), leaves)
    plain = sample_features(*leaves, stride=2, normalize=True).square().sum()
    for a, b in zip(got, torch.autograd.grad(plain, leaves), strict=True):
        assert_gradient(a, b.double(), "compiled")


@native
@pytest.mark.parametrize("count", [9, 90])
def test_edges(cpu_level, count):
    features, points = make((1, 20, 4, 4, count))
    points[0, :6] = torch.tensor(
        [[math.nan, 1], [1, math.nan], [math.inf, 1], [1, -math.inf], [3e38, -3e38], [1e20, 1]]
    )
    for padding in ("zeros", "border"):
        check(features, points, f"{padding}: points far away", padding=padding)
    # Reflected far-away points land anywhere inside, but never outside the range of the map.
    out = sample_features(features, points, padding="reflection", backend="native")
    assert bool(out.isfinite().all())
    assert float(out.abs().max()) <= float(features.abs().max()) * (1 + 1e-6)
    # A corner without weight is not read, one with weight is.
    poisoned = features.clone()
    poisoned[0, :, 1, 2], poisoned[0, :, 0, 0] = math.nan, math.inf
    centres = torch.tensor([[[1.5, 1.5], [2.0, 1.5], [0.5, 0.5], [0.5, 1.5]]])
    spots = torch.cat((centres, points[:, 6:].clamp(1.4, 1.6)), 1)
    check(poisoned, spots, "not-a-number cells")
    assert bool(sample_features(poisoned, spots, backend="native")[0, 0].isfinite().all())
    for magnitude in (1e-38, 1e30):
        check(features * magnitude, points, f"magnitude {magnitude}")
    check(features.half() * 6e4, points, "half overflow stays infinity")


@native
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_repeats_bit_for_bit(cpu_level, layout):
    features, points = make((2, 48, 20, 20, 500))
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    grad = torch.randn(2, 500, 48)

    def run():
        leaves = [features.detach().requires_grad_(), points.detach().clone().requires_grad_()]
        out = sample_features(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    assert_repeats(run)


@native
def test_offsets_beyond_32_bits():
    rows, width = 3, 4
    view = far_apart((1, 2, rows, width), (0, 0, FAR, 1))  # channels share storage
    values = torch.randn(rows, width).bfloat16()
    view[0, 0] = values
    points = torch.tensor([[[1.3, 2.2], [3.1, 0.4], [2.0, 1.5]]])
    want = sample_features(values.expand(1, 2, rows, width).double(), points)
    got = sample_features(view, points, backend="native")
    assert_interpolation(got, want, values.double().abs().max(), "far rows")


@pytest.mark.slow
@native
def test_more_than_2_31_outputs():
    count = 2**31 // 8 + 3
    features = torch.randn(1, 8, 2, 2).half()
    points = torch.rand(1, 1, 2).expand(1, count, 2)
    out = sample_features(features, points, backend="native")
    assert out.numel() > 2**31
    assert torch.equal(out[0, -1], out[0, 0])
    assert_interpolation(out[:, -1:], oracle(features, points[:, :1]), features.abs().max(), "last")


def run_on_cuda_kernels(shape, dtype, device: str):
    features, points = make(shape, dtype)
    features, points = features.to(device), points.to(device)
    grad = torch.randn(shape[0], shape[4], shape[1]).to(dtype).to(device)
    for mode, padding, corners in OPTIONS:
        options = {"mode": mode, "padding": padding, "align_corners": corners}
        check(features, points, f"planar {options}", **options)
    last = features.contiguous(memory_format=torch.channels_last)
    for view, what in ((features, "planar"), (last, "channels-last")):
        check(view, points, what)
        check(view, points, f"{what} normalised", normalize=True)
        if points.numel() and features.numel():
            check_gradients(view, points, grad, what)


CUDA_SHAPES = [
    (0, 3, 4, 4, 2),
    (2, 3, 4, 4, 0),
    (1, 1, 1, 1, 3),
    (2, 3, 5, 7, 11),
    (1, 33, 3, 2, 34),
    (2, 40, 2, 3, 33),
    (1, 130, 2, 2, 5),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CUDA_SHAPES, ids=str)
def test_cuda_kernels_on_the_cpu(simt, dtype, shape):
    run_on_cuda_kernels(shape, dtype, "cpu")


def test_cuda_kernels_on_the_cpu_any_layout(simt):
    features, points = make((2, 8, 3, 4, 9))
    for name, view in layouts(features):
        check(view, points, name)
    check(expanded(features, 1), points, "expanded")


@pytest.mark.cuda
@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*CUDA_SHAPES, (2, 256, 56, 56, 1031)], ids=str)
def test_cuda(dtype, shape):
    run_on_cuda_kernels(shape, dtype, "cuda")


@pytest.mark.cuda
def test_cuda_graph():
    features, points = (t.cuda() for t in make((2, 64, 7, 9, 100)))
    assert_graph_replays(lambda: sample_features(features, points))


def test_reference_does_not_depend_on_the_kernel():
    features, points = make((1, 3, 4, 4, 6))
    affine = _affine("pixel", 1.0, False, 4, 4)
    direct = sample_features_reference(features, points, affine)
    assert torch.equal(direct, sample_features(features, points, backend="reference"))
