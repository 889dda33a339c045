# SPDX-License-Identifier: Apache-2.0
"""Inputs and checks that the test files of point_infonce share."""

from __future__ import annotations

import torch
from torch import Tensor

from patchword.ops import point_infonce
from patchword.testing import assert_gradient, assert_log_sum_exp

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
