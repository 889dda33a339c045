# SPDX-License-Identifier: Apache-2.0
"""mask_upsample against float64: every output, backend, dtype, level and layout; gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from mask_upsample_oracle import (
    axis_matrix,
    check_all_outputs,
    largest,
    reference_gradient,
    upsample_exact,
)
from op_checks import BACKENDS, DTYPES, native

from patchword import _library
from patchword.ops import intersection_and_union, mask_upsample, upsampled_confusion
from patchword.testing import assert_gradient, assert_interpolation, expanded, layouts

FORMS = list(itertools.product(["bilinear", "bicubic"], [False, True]))
# (B, C, h, w), (H, W): empty, one, primes, copies, one copied axis, down, strips and vectors +- 1,
# cells large enough to be pruned, several pruned cells of uneven width.
SHAPES = [
    ((0, 3, 4, 4), (8, 8)),
    ((1, 0, 4, 4), (8, 8)),
    ((1, 2, 3, 3), (0, 5)),
    ((1, 1, 1, 1), (1, 1)),
    ((2, 2, 1, 1), (5, 6)),
    ((1, 3, 7, 5), (7, 5)),
    ((2, 3, 4, 8), (4, 33)),
    ((1, 4, 16, 13), (5, 7)),
    ((1, 3, 9, 6), (4, 13)),
    ((2, 5, 7, 9), (31, 15)),
    ((1, 17, 5, 6), (17, 31)),
    ((1, 21, 4, 4), (64, 64)),
    ((2, 40, 3, 5), (37, 71)),
    ((1, 150, 6, 6), (96, 96)),
]


def maps(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, smooth: bool = False):
    logits = torch.randn(shape)
    if smooth:
        logits = logits.cumsum(2) / 2 + logits.cumsum(3) / 2
    return logits.to(dtype)


@pytest.mark.parametrize(("cells", "size"), [(33, 449), (7, 31), (30, 7), (1, 4), (5, 5)])
@pytest.mark.parametrize(("mode", "align_corners"), FORMS)
def test_oracle_has_the_weights_of_interpolate(cells, size, mode, align_corners):
    eye = torch.eye(cells).reshape(1, cells, 1, cells)
    # Interpolating unit vectors along one axis reads the weights off; the other axis is a copy.
    ours = mask_upsample(eye, (1, size), mode=mode, align_corners=align_corners)[0, :, 0]
    exact = axis_matrix(cells, size, mode, align_corners).T
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-7)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.parametrize(("mode", "align_corners"), FORMS)
def test_matches_reference(shape, size, mode, align_corners, cpu_level):
    what = f"{shape} -> {size} {mode} {align_corners} {cpu_level}"
    for smooth in (False, True):
        logits = maps(shape, smooth=smooth)
        check_all_outputs(
            logits, size, what, mode=mode, align_corners=align_corners, backend="native"
        )


@pytest.mark.parametrize(("shape", "size"), SHAPES[3:12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_backend(shape, size, dtype):
    for mode, align_corners in FORMS:
        logits = maps(shape, dtype)
        check_all_outputs(
            logits,
            size,
            f"reference {dtype}",
            mode=mode,
            align_corners=align_corners,
            backend="reference",
        )


@native
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("shape", "size"), [SHAPES[6], SHAPES[9], SHAPES[11]])
def test_half_types(shape, size, dtype, cpu_level):
    for mode, align_corners in FORMS:
        check_all_outputs(
            maps(shape, dtype),
            size,
            f"{dtype} {cpu_level}",
            mode=mode,
            align_corners=align_corners,
            backend="native",
        )


@native
def test_agrees_with_interpolate(cpu_level):
    """Labels of torch's own interpolation, pixel for pixel, on smooth maps and on noise."""
    for smooth, (mode, align_corners) in itertools.product((True, False), FORMS):
        logits = maps((1, 30, 9, 9), smooth=smooth)
        torch_labels = F.interpolate(
            logits, size=(144, 90), mode=mode, align_corners=align_corners
        ).argmax(1)
        labels = mask_upsample(
            logits, (144, 90), mode=mode, align_corners=align_corners, output="labels"
        )
        assert torch.equal(labels, torch_labels)


@native
def test_layouts(cpu_level):
    logits = maps((2, 19, 3, 4))
    for output in ("logits", "labels", "binary", "softmax"):
        for mode in ("bilinear", "bicubic"):
            expected = mask_upsample(logits, (29, 35), mode=mode, output=output)
            for name, view in layouts(logits):
                got = mask_upsample(view, (29, 35), mode=mode, output=output, backend="native")
                assert torch.equal(got, expected), f"{name} {output}"
    for dim in (0, 1, 2, 3):
        view = expanded(logits, dim)
        expected = mask_upsample(view.contiguous(), (29, 35), output="labels")
        assert torch.equal(mask_upsample(view, (29, 35), output="labels"), expected)


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "size"), SHAPES[3:12])
def test_gradients(shape, size, dtype, cpu_level):
    for mode, align_corners in FORMS:
        logits = maps(shape, dtype).requires_grad_()
        grad = torch.randn(*shape[:2], *size).to(dtype)
        mask_upsample(logits, size, mode=mode, align_corners=align_corners).backward(grad)
        oracle = reference_gradient(logits.detach(), grad, size, mode, align_corners)
        assert_gradient(logits.grad, oracle, f"{mode} {align_corners} {cpu_level}")


@pytest.mark.parametrize("output", ["logits", "softmax", "sigmoid", "minmax"])
def test_gradients_of_outputs(output):
    """The compiled path composes; it must have the gradient of the reference."""
    region = torch.rand(9, 11) > 0.3
    class_mask = torch.tensor([True, False, True])
    grads = []
    for backend in ("native", "reference") if _library.C else ("reference",):
        torch.manual_seed(1)
        logits = torch.randn(2, 3, 4, 5, requires_grad=True)
        out = mask_upsample(
            logits,
            (9, 11),
            output=output,
            region=region,
            class_mask=class_mask,
            temperature=0.7,
            backend=backend,
        )
        out.backward(torch.randn(out.shape))
        grads.append(logits.grad)
    assert grads[0].abs().sum() > 0
    assert_gradient(grads[0], grads[-1], output)


@native
def test_confidence_has_a_gradient_and_labels_do_not():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    labels, confidence = mask_upsample(logits, (8, 8), output="labels_confidence")
    assert not labels.requires_grad
    confidence.sum().backward()
    again = logits.detach().clone().requires_grad_()
    _, expected = mask_upsample(again, (8, 8), output="labels_confidence", backend="reference")
    expected.sum().backward()
    assert_gradient(logits.grad, again.grad, "confidence")


def test_gradcheck():
    logits = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    for mode, align_corners in FORMS:
        assert torch.autograd.gradcheck(
            lambda x, m=mode, a=align_corners: mask_upsample(x, (4, 5), mode=m, align_corners=a),
            logits,
        )


@native
def test_class_mask_region_and_thresholds(cpu_level):
    """Against the same decisions made from the materialised tensor."""
    logits = maps((2, 20, 4, 5))
    class_mask = torch.rand(2, 20) > 0.5
    class_mask[0] = False
    region = torch.rand(2, 64, 70) > 0.6
    region[:, 8:40, :48] = False
    threshold = torch.randn(2, 20)
    for mode in ("bilinear", "bicubic"):
        for output in (
            "labels",
            "labels_confidence",
            "softmax",
            "sigmoid",
            "minmax",
            "binary",
            "logits",
        ):
            options = {
                "mode": mode,
                "output": output,
                "class_mask": class_mask,
                "region": region,
                "threshold": threshold,
                "temperature": 0.5,
                "ignore_index": -7,
            }
            got = mask_upsample(logits, (64, 70), backend="native", **options)
            want = mask_upsample(logits, (64, 70), backend="reference", **options)
            pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
                assert a.dtype == b.dtype
    shared = mask_upsample(logits, (64, 70), output="binary", threshold=threshold[0])
    assert torch.equal(shared[1], mask_upsample(logits, (64, 70))[1] > threshold[0][:, None, None])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_confusion(backend, dtype):
    maps_ = torch.tensor([[[[4.0, 0.0]], [[1.0, 1.0]]]])
    target = torch.tensor([[[0, 0, 0, 1, 1, 99]]], dtype=dtype)
    counts = upsampled_confusion(maps_, target, backend=backend)
    assert counts.tolist() == [[3, 0], [1, 1]]
    both, either = intersection_and_union(counts)
    assert both.tolist() == [3, 1]
    assert either.tolist() == [4, 2]
    region = torch.tensor([[True, False, True, True, True, True]])
    assert upsampled_confusion(maps_, target, region=region, backend=backend).tolist() == [
        [2, 0],
        [1, 1],
    ]
    ignored = upsampled_confusion(maps_, target, ignore_index=1, backend=backend)
    assert ignored.tolist() == [[3, 0], [0, 0]]


@native
def test_large(cpu_level):
    logits = maps((1, 60, 33, 33), smooth=True)
    exact = upsample_exact(logits, (448, 448), "bicubic")
    got = mask_upsample(logits, (448, 448), mode="bicubic")
    assert_interpolation(got, exact, largest(logits), f"large {cpu_level}", mode="bicubic")
    labels = mask_upsample(logits, (448, 448), mode="bicubic", output="labels")
    assert torch.equal(labels, got.argmax(1))
