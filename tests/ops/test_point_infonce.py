# SPDX-License-Identifier: Apache-2.0
"""point_infonce: published numbers, the reference in float64, gradients, weights of pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, pair_weights, point_infonce, sample_features
from patchword.ops.point_infonce.reference import point_infonce_reference
from patchword.ops.sample_features import _affine
from patchword.testing import (
    assert_gradient,
    assert_log_sum_exp,
    assert_within,
    expanded,
    layouts,
    strided,
)
from patchword.testing import strategies as s

native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# B, C, h, w, T, negatives: one, primes, vector widths and blocks of channels +- 1, long rows.
SHAPES = [
    (1, 1, 1, 1, 3, 0),
    (2, 3, 5, 7, 5, 2),
    (3, 17, 4, 9, 11, 7),
    (2, 31, 9, 3, 6, 8),
    (4, 64, 6, 8, 10, 16),
    (2, 65, 3, 17, 13, 31),
    (1, 40, 1, 40, 9, 4),
]
# Blocks of channels +- 1, groups of points +- 1, several stretches of channels.
CUDA_SHAPES = [
    (1, 1, 1, 1, 2, 0),
    (2, 3, 3, 5, 5, 6),
    (2, 66, 2, 3, 3, 9),
    (1, 264, 3, 2, 2, 8),
    (1, 40, 1, 34, 2, 7),
]


def uniform(seed: int, *shape: int) -> Tensor:
    """Numbers in [0, 1) that any language can repeat: a SplitMix64 of the index."""
    with np.errstate(over="ignore"):
        z = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64((seed << 32) + 1)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(11)) * 2.0**-53).reshape(shape)


def published() -> tuple[Tensor, ...]:
    """Three queries of map 0, positives in map 2, negatives in maps 2 and 3."""
    features = 2 * uniform(4000, 4, 8, 6, 6) - 1
    queries, positives = uniform(4001, 3, 2).flip(-1), uniform(4002, 3, 2).flip(-1)
    negatives = uniform(4003, 4, 3, 2).flip(-1).transpose(0, 1)
    key_points = torch.cat((positives[:, None], negatives), 1)
    key_images = torch.tensor([2, 3, 2, 3, 3]).expand(3, 5)
    return features, torch.zeros(3, dtype=torch.long), queries, key_images, key_points


def test_published_numbers():
    features, *rest = published()
    features.requires_grad_()
    loss = point_infonce(features, *rest, align_corners=True).mean()
    assert loss.item() == pytest.approx(2.9815799137, rel=1e-6)
    (grad,) = torch.autograd.grad(loss, features)
    wanted = torch.tensor([45.95563695, 0, 33.38817983, 15.13539592], dtype=torch.float64)
    torch.testing.assert_close(grad.abs().sum((1, 2, 3)), wanted, rtol=1e-5, atol=1e-8)


def test_closed_forms():
    one = torch.ones(1, 4, 3, 3)
    images, points = torch.zeros(2, 17, dtype=torch.long), torch.rand(2, 17, 2) * 0.2 + 0.4
    loss = point_infonce(one, images[:, 0], points[:, 0], images, points)
    torch.testing.assert_close(loss, torch.full((2,), math.log(17)))
    axes = torch.eye(2).reshape(1, 2, 1, 2)
    place = torch.tensor([[0.25, 0.5]] + [[0.75, 0.5]] * 16)[None]
    images = torch.zeros(1, 17, dtype=torch.long)
    loss = point_infonce(axes.double(), images[:, 0], place[:, 0], images, place)
    assert loss.item() == pytest.approx(9.99795e-6, rel=1e-3)


def make(dtype: torch.dtype, channels: int = 12) -> tuple[Tensor, ...]:
    features = torch.randn(5, channels, 6, 7).to(dtype)
    return (
        features,
        torch.randint(0, 5, (23,)),
        torch.rand(23, 2) * 1.2 - 0.1,
        torch.randint(0, 5, (23, 4)),
        torch.rand(23, 4, 2) * 1.2 - 0.1,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_matches_reference(dtype, normalize):
    for corners in (False, True):
        inputs = make(dtype)
        options = {"normalize": normalize, "align_corners": corners}
        leaves = [inputs[0].clone().requires_grad_(), *inputs[1:]]
        got = point_infonce(*leaves, **options, temperature=0.5)
        exact = [inputs[0].double().requires_grad_(), *inputs[1:]]
        affine = _affine("unit", 1.0, corners, 7, 6)
        want = point_infonce_reference(*exact, affine, **options, temperature=0.5)
        # Half-precision vectors are rounded once more than the reference's.
        size = 1.0 if normalize else float(inputs[0].double().square().sum(1).max())
        assert_within(got, want, 8 * size * torch.finfo(dtype).eps + 1e-5, f"{dtype} {options}")
        weight = torch.rand(23)
        (made,) = torch.autograd.grad((got * weight).sum(), leaves[0])
        (true,) = torch.autograd.grad((want * weight).sum(), exact[0])
        if dtype == torch.float32:
            assert_gradient(made, true, f"{options}")


def test_gradcheck():
    inputs = [t.double() if t.is_floating_point() else t for t in make(torch.float32, 3)]
    inputs[0].requires_grad_()
    torch.autograd.gradcheck(point_infonce, inputs, fast_mode=True)


def test_a_point_outside_is_a_zero_vector():
    features, images, points, key_images, key_points = make(torch.float32)
    points = torch.full_like(points, 9.0)
    loss = point_infonce(features, images, points, key_images, key_points)
    torch.testing.assert_close(loss, torch.full((23,), math.log(4)))
    empty = [t[:0] for t in (images, points, key_images, key_points)]
    assert point_infonce(features, *empty).shape == (0,)


def test_weights_of_pairs():
    pairs = torch.tensor([3, 0, 0, 1, 3, 3, 5])
    weights = torch.tensor([1.0, 2, 4, 0.5, 1, 1])
    got = pair_weights(pairs, weights)
    torch.testing.assert_close(got, torch.tensor([0.5 / 3, 0.5, 0.5, 0, 0.5 / 3, 0.5 / 3, 0]))
    assert pair_weights(pairs[:0], weights).shape == (0,)


def test_errors():
    features, images, points, key_images, key_points = make(torch.float32)
    cases = [
        (ShapeError, "features must have", (features[0], images, points, key_images, key_points)),
        (ShapeError, "key_images must", (features, images, points, images, key_points)),
        (ShapeError, "query_images must", (features, images[:2], points, key_images, key_points)),
        (ShapeError, "query_points must", (features, images, points[:2], key_images, key_points)),
        (ShapeError, "key_points must", (features, images, points, key_images, points)),
        (DTypeError, "features must be", (features.long(), images, points, key_images, key_points)),
        (
            DTypeError,
            "query_images must be",
            (features, images / 2, points, key_images, key_points),
        ),
        (DTypeError, "key_points must be", (features, images, points, key_images, key_points > 0)),
    ]
    for error, text, arguments in cases:
        with pytest.raises(error, match=f"^point_infonce: {text}"):
            point_infonce(*arguments)
    with pytest.raises(OptionError, match="temperature must be positive, got 0"):
        point_infonce(features, images, points, key_images, key_points, temperature=0)


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Maps and points, of which a few lie outside, on cell centres and on the border."""
    batch, channels, height, width, rows, negatives = shape
    features = torch.randn(batch, channels, height, width).to(dtype)
    images = torch.randint(0, batch, (rows, 2 + negatives))
    points = torch.rand(rows * (2 + negatives), 2) * 1.2 - 0.1
    size = torch.tensor([width, height])
    points[3::5] = ((points * size).floor() + 0.5)[3::5] / size
    points[5::7] = points[5::7].round()
    points = points.reshape(rows, 2 + negatives, 2)
    return features, images[:, 0], points[:, 0], images[:, 1:], points[:, 1:]


def oracle(inputs: tuple[Tensor, ...], **options) -> Tensor:
    return point_infonce(inputs[0].double(), *inputs[1:], backend="reference", **options)


def check(inputs: tuple[Tensor, ...], what: str, **options) -> Tensor:
    out = point_infonce(*inputs, backend="native", **options)
    assert out.dtype == torch.float32
    # A loss is the difference of a log-sum-exp and a logit.
    size = 2.0
    if not options.get("normalize", True):
        size *= float(inputs[0].double().square().sum(1).max())
    scale = 1 / options.get("temperature", 0.07)
    assert_log_sum_exp(out, oracle(inputs, **options), what, norm_product=size, scale=scale)
    return out


def check_gradients(
    inputs: tuple[Tensor, ...], what: str, *, only_features: bool = False, **options
) -> None:
    features, images, points, key_images, key_points = inputs
    weight = torch.randn(len(images)).to(features.device)
    exact = [t.double() for t in (features, points, key_points)]
    stored = [features, points, key_points]
    found = []
    for backend, tensors in (("reference", exact), ("native", stored), ("reference", stored)):
        leaves = [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
        for leaf in leaves:
            leaf.requires_grad_()
        maps, spots, key_spots = leaves
        loss = point_infonce(maps, images, spots, key_images, key_spots, backend=backend, **options)
        found.append(torch.autograd.grad((loss * weight.to(loss)).sum(), leaves))
    want, got, plain = found
    assert got[0].dtype == features.dtype
    assert got[0].stride() == torch.empty_like(features).stride()
    assert_gradient(got[0], want[0], f"{what}: features")
    if only_features:
        return
    # Along a vector that only grows the loss stands still, and what is left of the gradient of such
    # a point is rounding: no more of it than plain torch has.
    size, error, usual = (
        float(torch.cat([g.flatten().double() for g in grads]).norm())
        for grads in (
            want[1:],
            [a - b for a, b in zip(got[1:], want[1:], strict=True)],
            [a - b for a, b in zip(plain[1:], want[1:], strict=True)],
        )
    )
    assert error <= max(1e-5 * size, 2 * usual), f"{what}: points, {error:.3g} of {size:.3g}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_level_matches_the_reference(cpu_level, dtype, shape):
    inputs = random(shape, dtype)
    for normalize, corners in itertools.product((True, False), (True, False)):
        options = {"normalize": normalize, "align_corners": corners, "temperature": 0.3}
        check(inputs, f"{cpu_level} {options}", **options)
    last = inputs[0].contiguous(memory_format=torch.channels_last)
    out = check((last, *inputs[1:]), f"{cpu_level} channels-last")
    # Where channels lie changes no bit.
    assert torch.equal(out, point_infonce(*inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], SHAPES[5], SHAPES[6]], ids=str)
def test_gradients(cpu_level, dtype, shape):
    inputs = random(shape, dtype)
    last = inputs[0].contiguous(memory_format=torch.channels_last)
    for normalize in (True, False):
        options = {"normalize": normalize, "temperature": 0.5}
        check_gradients(inputs, f"{cpu_level} {options}", **options)
        check_gradients((last, *inputs[1:]), f"{cpu_level} channels-last {options}", **options)


@native
def test_matches_reference_large():
    inputs = random((3, 160, 20, 24, 80, 16))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check(inputs, f"{threads} threads", align_corners=True)
        check_gradients(inputs, f"{threads} threads", align_corners=True)


@native
def test_is_what_a_composition_gives():
    features, images, points, key_images, key_points = random((3, 20, 5, 6, 12, 4))
    options = {"coordinates": "pixel", "stride": 4.0}
    points, key_points = points * 20, key_points * 20

    def read(image: Tensor, place: Tensor) -> Tensor:
        place = place.reshape(-1, 1, 2)
        vectors = sample_features(features[image.flatten()], place, **options)[:, 0]
        return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-6)

    queries = read(images, points)
    keys = read(key_images, key_points).reshape(12, 5, 20)
    logits = (queries[:, None] * keys).sum(-1) / 0.07
    want = torch.nn.functional.cross_entropy(
        logits, torch.zeros(12, dtype=torch.long), reduction="none"
    )
    got = point_infonce(features, images, points, key_images, key_points, **options)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


@native
def test_layouts():
    features, images, points, key_images, key_points = random((2, 9, 5, 11, 8, 4))
    rest = (images, points, key_images, key_points)
    for name, view in layouts(features):
        check((view, *rest), name)
    for dim in range(4):
        check((expanded(features, dim), *rest), f"expanded along {dim}")
    for (name, place), (other, key_place) in zip(layouts(points), layouts(key_points), strict=True):
        check((features, images, place, key_images, key_place), f"points {name}, keys {other}")
    same = (images[1:2].expand(8), points[1:2].expand(8, 2), key_images[:, :1].expand(8, 5))
    check((features, *same, expanded(key_points, 0)), "one point for all")
    check_gradients((features, *same, key_points), "one query for all")
    odd = strided(torch.randn(2, 9, 5, 11), order=(2, 0, 3, 1))
    check_gradients((odd, *rest), "strides of no usual order")
    small = (images.to(torch.int32), points.double(), key_images.to(torch.uint8), key_points)
    check((features, *small), "other integers, float64 points")


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(1, 40), s.sizes(1, 9), s.sizes(1, 20), s.sizes(1, 12), s.seeds())
    def run(channels: int, height: int, width: int, rows: int, seed: int) -> None:
        torch.manual_seed(seed)
        features, images, points, key_images, key_points = random(
            (2, channels, height, width, rows, 3)
        )
        losses = point_infonce(features, images, points, key_images, key_points)
        assert bool((losses >= 0).all())
        # Queries do not know of each other.
        order = torch.randperm(rows)
        rest = (images, points, key_images, key_points)
        assert torch.equal(point_infonce(features, *(t[order] for t in rest)), losses[order])
        # The order of the wrong keys matters to rounding alone.
        keys = torch.tensor([0, 3, 1, 2])
        other = point_infonce(features, images, points, key_images[:, keys], key_points[:, keys])
        torch.testing.assert_close(other, losses, rtol=1e-6, atol=1e-5)
        # A key that is the query itself, more often than not the only good one.
        key_images[:, 0], key_points[:, 0] = images, points
        easy = point_infonce(features, images, points, key_images, key_points, temperature=1.0)
        assert bool((easy <= math.log(4) + 1e-5).all())

    run()


@native
def test_small_losses_keep_their_digits(cpu_level):
    # Two directions at a right angle: the loss is log(1 + exp(-1 / temperature)).
    maps = torch.eye(2).reshape(1, 2, 1, 2)
    keys = torch.tensor([[[0.25, 0.5], [0.75, 0.5]]])
    image = torch.zeros(1, 2, dtype=torch.long)
    for backend in ("native", "reference"):
        precise = maps if backend == "native" else maps.double()
        loss = point_infonce(
            precise, image[:, 0], keys[:, 0], image, keys, temperature=0.05, backend=backend
        )
        want = math.log1p(math.exp(-(1 - 2e-6) / 0.05))
        assert loss.item() == pytest.approx(want, rel=1e-4), backend


@native
def test_no_vectors_are_kept_for_the_backward():
    features, *rest = random((4, 128, 8, 8, 50, 16))
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes if tensor.shape != features.shape else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        point_infonce(features.requires_grad_(), *rest)
    # Images (8 bytes) and points (8), a product and a norm (4 each) for each of the points.
    assert kept <= 50 * 18 * 24


@native
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_repeats_bit_for_bit(cpu_level, layout):
    features, *rest = random((5, 48, 9, 11, 400, 8))
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    weight = torch.rand(400)
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        leaves = [t.detach().clone(memory_format=torch.preserve_format) for t in (features, *rest)]
        wanted = [t.requires_grad_() for t in leaves if t.is_floating_point()]
        loss = point_infonce(*leaves)
        results.append((loss.detach(), *torch.autograd.grad((loss * weight).sum(), wanted)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native)])
def test_empty(backend):
    features, *rest = random((2, 5, 3, 4, 6, 3))
    features.requires_grad_()
    nothing = [t[:0] for t in rest]
    loss = point_infonce(features, *nothing, backend=backend)
    assert loss.shape == (0,)
    (grad,) = torch.autograd.grad(loss.sum(), features, allow_unused=True)
    assert grad is None or torch.equal(grad, torch.zeros_like(features))
    images, points, key_images, key_points = rest
    alone = (images, points, key_images[:, :1], key_points[:, :1])
    loss = point_infonce(features, *alone, backend=backend)
    assert torch.equal(loss, torch.zeros(6))
    (grad,) = torch.autograd.grad(loss.sum(), features)
    assert torch.equal(grad, torch.zeros_like(features))
    loss = point_infonce(features[:, :0], *rest, backend=backend)
    torch.testing.assert_close(loss, torch.full((6,), math.log(4)))
    with pytest.raises(ShapeError, match="at least one cell"):
        point_infonce(features[..., :0], *rest, backend=backend)


@native
def test_a_pair_with_one_query_gives_nothing():
    features, *rest = random((3, 10, 4, 4, 5, 2))
    pairs = torch.tensor([0, 0, 1, 2, 2])
    leaves = [features.clone().requires_grad_() for _ in range(2)]
    share = pair_weights(pairs, torch.ones(3))
    whole = (point_infonce(leaves[0], *rest) * share).sum()
    kept = torch.tensor([0, 1, 3, 4])
    part = (point_infonce(leaves[1], *(t[kept] for t in rest)) * share[kept]).sum()
    torch.testing.assert_close(whole, part)
    grads = [torch.autograd.grad(x, leaf)[0] for x, leaf in zip((whole, part), leaves, strict=True)]
    torch.testing.assert_close(grads[0], grads[1])


@native
def test_edges(cpu_level):
    features, images, points, key_images, key_points = random((2, 20, 4, 12, 9, 3))
    points[:5] = torch.tensor(
        [[math.nan, 0.5], [0.5, math.inf], [-math.inf, 0.5], [3e38, -3e38], [1e20, 0.5]]
    )
    rest = (images, points, key_images, key_points)
    check((features, *rest), "queries far away")
    check_gradients((features, *rest), "queries far away", temperature=0.5)
    for magnitude in (1e-20, 1e-3, 1e15):
        check((features * magnitude, *rest), f"magnitude {magnitude}")
    # Vectors of zeros lie inside too: their gradient is that of dividing by 1e-6.
    check((features * 0, *rest), "zeros")
    flat = features.clone()
    flat[:, :, :, 6:] = 0
    check_gradients((flat, *rest), "half of zeros", only_features=True, temperature=0.5)
    # A cell that no corner with weight touches may hold anything; one that is touched spoils the
    # loss of its query alone.
    places = torch.tensor([[0.5, 1.5], [2.5, 2.5], [9.5, 0.5]])
    poisoned = features.clone()
    poisoned[:, :, 1, 1] = math.nan
    poisoned[:, :, 3, 3] = math.inf
    image = torch.zeros(3, 2, dtype=torch.long)
    keys = places[:, None].expand(3, 2, 2).clone()
    inputs = (poisoned, image[:, 0], places, image, keys)
    check(inputs, "poison beside", coordinates="pixel")
    keys[1, 1] += 0.25
    losses = check(inputs, "poison touched", coordinates="pixel")
    assert losses.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native)])
def test_images_that_do_not_exist(backend):
    features, images, points, key_images, key_points = random((2, 5, 3, 4, 6, 3))
    for wrong in (-1, 2, 2**40):
        bad, bad_keys = images.clone(), key_images.clone()
        bad[3] = bad_keys[4, 2] = wrong
        with pytest.raises(IndexError):
            point_infonce(features, bad, points, key_images, key_points, backend=backend)
        with pytest.raises(IndexError):
            point_infonce(features, images, points, bad_keys, key_points, backend=backend)
    if backend == "native":
        with pytest.raises(IndexError, match=r"key_images must lie in 0\.\.1, got 1099511627776\."):
            point_infonce(features, images, points, bad_keys, key_points)


def test_options_are_checked():
    inputs = random((2, 5, 3, 4, 6, 3))
    with pytest.raises(OptionError, match="stride must be positive, got 0"):
        point_infonce(*inputs, stride=0)
    with pytest.raises(OptionError, match=r"coordinates must be .* got 'cells'"):
        point_infonce(*inputs, coordinates="cells")
    with pytest.raises(DTypeError, match="key_points must be on cpu like features, got meta"):
        point_infonce(*inputs[:4], inputs[4].to("meta"))
    with pytest.raises(BackendError, match="has no triton version"):
        point_infonce(*inputs, backend="triton")
    if _library.C is not None:
        with pytest.raises(BackendError, match="float64 is not float32/float16/bfloat16"):
            point_infonce(inputs[0].double(), *inputs[1:], backend="native")


@native
def test_registration():
    inputs = random((2, 12, 4, 5, 7, 3))
    affine, options = [5.0, -0.5, 4.0, -0.5], (0.07, True)
    torch.library.opcheck(
        torch.ops.patchword.point_infonce_forward.default, (*inputs, affine, *options)
    )
    losses, dots, norms = torch.ops.patchword.point_infonce_forward(*inputs, affine, *options)
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            torch.ops.patchword.point_infonce_backward.default,
            (torch.rand(7), *inputs, dots, norms, affine, *options, *wanted),
        )
    meta = point_infonce(*(t.to("meta") for t in inputs))
    assert meta.shape == losses.shape
    assert meta.is_meta
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(point_infonce(*inputs), losses)
    assert explain("point_infonce", *inputs)["native"] is None


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_into_one_graph():
    features, images, points, key_images, key_points = random((2, 12, 4, 5, 7, 3))
    leaves = [features.requires_grad_(), points.requires_grad_()]

    def step(maps: Tensor, places: Tensor) -> Tensor:
        return point_infonce(maps * 2, images, places, key_images, key_points).square().sum()

    run = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(run(*leaves), leaves)
    for a, b in zip(got, torch.autograd.grad(step(*leaves), leaves), strict=True):
        assert_gradient(a, b.double(), "compiled")


@native
def test_offsets_beyond_32_bits():
    # Rows far apart in a buffer that is never touched in between; channels share storage.
    rows, width = 3, 9
    pitch = 2**31 + 5
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would touch all 8 GB
    memory = torch.UntypedStorage(2 * (pitch * (rows - 1) + width))
    base = torch.empty(0, dtype=torch.bfloat16).set_(memory)
    view = base.as_strided((1, 2, rows, width), (0, 0, pitch, 1))
    for row in range(rows):
        view[0, 0, row] = torch.randn(width).bfloat16()
    _, images, points, key_images, key_points = random((1, 2, rows, width, 5, 2))
    got = point_infonce(view, images, points, key_images, key_points, normalize=False)
    want = oracle((view, images, points, key_images, key_points), normalize=False)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def run_on_cuda_kernels(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    inputs = tuple(t.to(device) for t in random(shape, dtype))
    last = inputs[0].contiguous(memory_format=torch.channels_last)
    for features, what in ((inputs[0], "planar"), (last, "channels-last")):
        moved = (features, *inputs[1:])
        check(moved, what, temperature=0.3)
        check_gradients(moved, what, temperature=0.5)
    check(inputs, "as they are", normalize=False, align_corners=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CUDA_SHAPES, ids=str)
def test_cuda_kernels_on_the_cpu(simt, dtype, shape):
    run_on_cuda_kernels(shape, dtype, "cpu")


def test_cuda_kernels_on_the_cpu_at_the_edges(simt):
    features, images, points, key_images, key_points = random((2, 8, 3, 4, 5, 2))
    for name, view in layouts(features):
        check((view, images, points, key_images, key_points), name)
    points[0], key_points[1, 1] = math.nan, math.inf
    check((features, images, points, key_images, key_points), "points far away")
    # Without channels, and with a map that does not exist: no wait, hence no error.
    losses = point_infonce(features[:, :0], images, points, key_images, key_points)
    torch.testing.assert_close(losses, torch.full((5,), math.log(3)))
    key_images[2, 1] = 7
    leaf = features.requires_grad_()
    losses = point_infonce(leaf, images, points, key_images, key_points)
    assert losses.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *CUDA_SHAPES], ids=str)
def test_on_a_gpu(dtype, shape):
    run_on_cuda_kernels(shape, dtype, "cuda")
