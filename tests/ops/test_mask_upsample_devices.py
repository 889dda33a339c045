# SPDX-License-Identifier: Apache-2.0
"""mask_upsample on CUDA (real, or its sources on the CPU execution layer) and in Triton."""

from __future__ import annotations

import itertools

import pytest
import torch
from mask_upsample_oracle import check_all_outputs, reference_gradient, upsample_exact
from op_checks import assert_graph_replays
from triton_interpreter import interpret

from patchword.errors import BackendError
from patchword.ops import mask_upsample, upsampled_confusion
from patchword.testing import assert_gradient, layouts

FORMS = list(itertools.product(["bilinear", "bicubic"], [False, True]))
# Tiles are 16 x 64 pixels (8 x 32 downsampling), chunks as many classes as 24 KB hold.
SHAPES = [
    ((0, 3, 4, 4), (8, 8)),
    ((1, 0, 4, 4), (8, 8)),
    ((1, 1, 1, 1), (1, 1)),
    ((2, 2, 1, 1), (5, 6)),
    ((1, 3, 7, 5), (7, 5)),
    ((1, 3, 4, 8), (4, 33)),
    ((1, 2, 17, 40), (9, 33)),
    ((1, 3, 9, 6), (4, 13)),
    ((2, 5, 7, 9), (17, 65)),
    ((1, 9, 3, 3), (32, 48)),
    ((1, 70, 2, 3), (16, 30)),
]


def check_device(device: str, shapes: list) -> None:
    for (shape, size), (mode, align_corners) in itertools.product(shapes, FORMS):
        logits = torch.randn(shape).to(device)
        check_all_outputs(
            logits,
            size,
            f"{device} {shape} {mode} {align_corners}",
            mode=mode,
            align_corners=align_corners,
            backend="native",
        )
        if not logits.numel():
            continue
        leaf = logits.clone().requires_grad_()
        grad = torch.randn(*shape[:2], *size, device=device)
        mask_upsample(leaf, size, mode=mode, align_corners=align_corners).backward(grad)
        oracle = reference_gradient(logits.cpu(), grad, size, mode, align_corners)
        assert_gradient(leaf.grad, oracle, f"{device} {shape} {mode} {align_corners} gradient")


def check_options(device: str) -> None:
    """Masks, regions, thresholds and half types against the reference on the same device."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = torch.randn(2, 7, 3, 4).to(dtype).to(device)
        class_mask = torch.tensor([[True, False] * 3 + [True], [False] * 7], device=device)
        region = (torch.rand(1, 25, 36) > 0.4).to(device)
        for mode, output in itertools.product(
            ("bilinear", "bicubic"),
            ("labels", "labels_confidence", "softmax", "sigmoid", "minmax", "binary", "logits"),
        ):
            options = {
                "mode": mode,
                "output": output,
                "class_mask": class_mask,
                "region": region[0],
                "threshold": torch.linspace(-1, 1, 7, device=device),
                "temperature": 0.6,
            }
            got = mask_upsample(logits, (25, 36), backend="native", **options)
            want = mask_upsample(logits, (25, 36), backend="reference", **options)
            for a, b in zip(
                *(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=torch.finfo(dtype).eps, atol=1e-5)


def check_edges(device: str) -> None:
    """NaN, infinities, huge values and exact ties."""
    logits = torch.randn(1, 9, 3, 3)
    logits[0, 1, 1, 1] = torch.nan
    logits[0, 4, 0, 2] = torch.inf
    logits[0, 5, 2, 0] = -torch.inf
    logits[0, 6, 2, 2] = 3e38
    logits[0, :, 0, 0] = torch.nan
    for size in ((3, 3), (32, 48)):
        for output in ("labels", "labels_confidence", "binary"):
            got = mask_upsample(logits.to(device), size, output=output, backend="native")
            want = mask_upsample(logits, size, output=output, backend="reference")
            for a, b in zip(
                *(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True
            ):
                torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-5, equal_nan=True)
    ties = torch.randint(-2, 3, (1, 12, 3, 4)).float()
    ties[:, 6:] = ties[:, :6]
    exact = upsample_exact(ties, (24, 32))
    lowest = (exact == exact.amax(1, keepdim=True)).to(torch.uint8).argmax(1)
    got = mask_upsample(ties.to(device), (24, 32), output="labels", backend="native")
    assert torch.equal(got.cpu(), lowest)


def check_layouts(device: str) -> None:
    logits = torch.randn(1, 7, 3, 4)
    expected = mask_upsample(logits.to(device), (17, 20), output="labels", backend="native")
    for name, view in layouts(logits):
        on_device = view if device == "cpu" else view.to(device)
        got = mask_upsample(on_device, (17, 20), output="labels", backend="native")
        assert torch.equal(got, expected), name


def test_simt_matches_reference(simt):
    check_device("cpu", SHAPES)


def test_simt_options(simt):
    check_options("cpu")


def test_simt_edges(simt):
    check_edges("cpu")
    check_layouts("cpu")


def test_simt_many_classes(simt):
    """More classes than one candidate list holds."""
    logits = torch.randn(1, 2500, 1, 2)
    labels = mask_upsample(logits, (8, 16), output="labels", backend="native")
    assert torch.equal(labels, mask_upsample(logits, (8, 16), output="labels", backend="reference"))


def test_simt_long_gradient(simt):
    """A window of output columns wider than one vertical sum."""
    leaf = torch.randn(1, 1, 1, 1, requires_grad=True)
    grad = torch.randn(1, 1, 2, 4500)
    mask_upsample(leaf, (2, 4500)).backward(grad)
    assert_gradient(leaf.grad, grad.double().sum().reshape(1, 1, 1, 1), "wide")


@pytest.mark.cuda
def test_cuda():
    check_device("cuda", SHAPES)
    check_options("cuda")
    check_edges("cuda")
    check_layouts("cuda")


@pytest.mark.cuda
def test_cuda_large():
    check_device("cuda", [((2, 150, 32, 32), (300, 512)), ((1, 30, 128, 128), (50, 60))])


@pytest.mark.cuda
def test_cuda_graph():
    logits = torch.randn(1, 20, 8, 8, device="cuda")
    assert_graph_replays(lambda: mask_upsample(logits, (64, 64), output="labels"))


@pytest.mark.cuda
@pytest.mark.sanitizer
def test_cuda_is_deterministic():
    logits = torch.randn(2, 40, 16, 16, device="cuda")
    target = torch.randint(0, 40, (2, 200, 200), device="cuda")
    runs = [
        (
            upsampled_confusion(logits, target),
            mask_upsample(logits, (200, 200), output="minmax"),
            mask_upsample(logits, (200, 200), output="labels"),
        )
        for _ in range(3)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


# The interpreter is slow: every mode, copied and shrinking axes and every dtype once.
TRITON_PROGRAM = """
import torch
from patchword.ops import mask_upsample
torch.manual_seed(0)
up, copied, down = ((1, 5, 3, 4), (5, 7)), ((2, 3, 4, 4), (4, 6)), ((1, 4, 6, 5), (3, 2))
for mode, align, (shape, size), dtype in (
    ("bilinear", False, up, torch.float32),
    ("bilinear", True, down, torch.float16),
    ("bicubic", False, copied, torch.bfloat16),
    ("bicubic", True, up, torch.float32),
):
    logits = torch.randn(shape).to(dtype).transpose(2, 3).contiguous().transpose(2, 3)
    logits[0, 1, 0, 0] = torch.nan
    region = torch.rand(size) > 0.3
    live = torch.tensor([True, False, True, True, True][: shape[1]])
    for options in ({}, {"region": region, "class_mask": live, "label_dtype": torch.uint8}):
        got, want = (
            mask_upsample(logits, size, mode=mode, align_corners=align, output="labels",
                          backend=backend, **options)
            for backend in ("triton", "reference")
        )
        assert torch.equal(got, want), (mode, align, shape, size, dtype)
print("equal")
"""


def test_triton_in_the_interpreter():
    assert interpret(TRITON_PROGRAM) == "equal"


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_triton_on_gpu(dtype):
    pytest.importorskip("triton")
    for size, (mode, align_corners) in itertools.product([(130, 257), (20, 11)], FORMS):
        logits = torch.randn(2, 37, 20, 33, device="cuda").to(dtype)
        logits[1, 3, 4, 5] = torch.nan
        options = {"mode": mode, "align_corners": align_corners, "output": "labels"}
        options["region"] = torch.rand(size, device="cuda") > 0.2
        got = mask_upsample(logits, size, backend="triton", **options)
        # Both follow torch's order of operations; fused or not, they may differ at near-ties.
        want = mask_upsample(logits, size, backend="native", **options)
        assert (got != want).float().mean() < 1e-4, (size, mode, align_corners)


def test_triton_refuses_cpu_tensors_and_other_outputs(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    logits = torch.randn(1, 2, 3, 3)
    with pytest.raises(BackendError, match="Triton needs a CUDA tensor, got one on cpu"):
        mask_upsample(logits, (5, 5), output="labels", backend="triton")
    with pytest.raises(BackendError, match="the Triton version makes labels only, not softmax"):
        mask_upsample(logits, (5, 5), output="softmax", backend="triton")
