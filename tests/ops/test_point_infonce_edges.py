# SPDX-License-Identifier: Apache-2.0
"""point_infonce: hostile inputs, empty calls, registration, and the CUDA kernels."""

from __future__ import annotations

import math

import pytest
import torch
from infonce_checks import CUDA_SHAPES, SHAPES, check, check_gradients, oracle, random
from op_checks import BACKENDS, DTYPES, FAR, assert_repeats, far_apart, native
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, pair_weights, point_infonce
from patchword.testing import assert_gradient, layouts


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

    def run():
        leaves = [t.detach().clone(memory_format=torch.preserve_format) for t in (features, *rest)]
        wanted = [t.requires_grad_() for t in leaves if t.is_floating_point()]
        loss = point_infonce(*leaves)
        return loss.detach(), *torch.autograd.grad((loss * weight).sum(), wanted)

    assert_repeats(run)


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", BACKENDS)
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
    rows, width = 3, 9
    view = far_apart((1, 2, rows, width), (0, 0, FAR, 1))  # channels share storage
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
