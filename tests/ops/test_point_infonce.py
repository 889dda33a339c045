# SPDX-License-Identifier: Apache-2.0
"""point_infonce: published numbers, the reference in float64, gradients, weights of pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from infonce_checks import SHAPES, check, check_gradients, random
from op_checks import DTYPES, native
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import pair_weights, point_infonce, sample_features
from patchword.ops.point_infonce.reference import point_infonce_reference
from patchword.ops.sample_features import _affine
from patchword.testing import assert_gradient, assert_within, expanded, layouts, strided
from patchword.testing import strategies as s


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
