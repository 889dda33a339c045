# SPDX-License-Identifier: Apache-2.0
"""mask_upsample: properties, errors, registration, and what lies at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from mask_upsample_oracle import upsample_exact
from op_checks import BACKENDS, assert_repeats, native

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, mask_upsample, upsampled_confusion, use_backend

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from patchword.testing import strategies as s  # noqa: E402

OUTPUTS = ["logits", "softmax", "sigmoid", "minmax", "binary", "labels"]


# ------------------------------------------------------------------ properties


@given(
    seed=s.seeds(),
    channels=st.integers(1, 20),
    cells=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    mode=st.sampled_from(["bilinear", "bicubic"]),
)
def test_properties(seed, channels, cells, size, mode):
    (h, w), (height, width) = cells, size
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, channels, h, w, generator=generator)
    values = mask_upsample(logits, (height, width), mode=mode)
    labels, confidence = mask_upsample(
        logits, (height, width), mode=mode, output="labels_confidence"
    )
    softmax = mask_upsample(logits, (height, width), mode=mode, output="softmax")
    # Labels are the argmax of the upsampled maps, probabilities sum to one and their top is the
    # confidence.
    assert torch.equal(labels, values.argmax(1))
    torch.testing.assert_close(softmax.sum(1), torch.ones(1, height, width), rtol=0, atol=3e-6)
    torch.testing.assert_close(softmax.amax(1), confidence, rtol=0, atol=2e-6)
    # Constant in, constant out; the same size, the same map.
    constant = torch.full((1, 1, h, w), 3.7)
    torch.testing.assert_close(
        mask_upsample(constant, (height, width), mode=mode),
        torch.full((1, 1, height, width), 3.7),
        rtol=0,
        atol=3e-6 * 3.7,
    )
    assert torch.equal(mask_upsample(logits, (h, w), mode=mode), logits)
    # Mirrors commute (up to the rounding of mirrored positions).
    flipped = mask_upsample(logits.flip(3), (height, width), mode=mode).flip(3)
    torch.testing.assert_close(flipped, values, rtol=0, atol=2e-5)
    # Permuting classes permutes labels.
    order = torch.randperm(channels, generator=generator)
    permuted = mask_upsample(logits[:, order], (height, width), mode=mode, output="labels")
    assert torch.equal(order[permuted], labels)


# ------------------------------------------------------------------ errors


def call(**change):
    options = {"logits": torch.zeros(2, 3, 4, 4), "size": (8, 8)}
    options.update(change)
    return mask_upsample(options.pop("logits"), options.pop("size"), **options)


@pytest.mark.parametrize(
    ("error", "text", "change"),
    [
        (
            ShapeError,
            r"logits must have shape \[B, C, h, w\], got \[3, 4, 4\]",
            {"logits": torch.zeros(3, 4, 4)},
        ),
        (DTypeError, "logits must be floating point", {"logits": torch.zeros(1, 2, 3, 3).int()}),
        (ShapeError, "at least one cell", {"logits": torch.zeros(1, 2, 0, 3)}),
        (OptionError, "size must be two numbers", {"size": (8, -1)}),
        (OptionError, "size must be two numbers", {"size": (8,)}),
        (OptionError, 'mode must be "bilinear" or "bicubic"', {"mode": "nearest"}),
        (OptionError, "output must be one of", {"output": "argmax"}),
        (
            ShapeError,
            r"class_mask must have shape \[3\] or \[2, 3\]",
            {"class_mask": torch.ones(4, dtype=torch.bool)},
        ),
        (DTypeError, "class_mask must be bool", {"class_mask": torch.ones(3)}),
        (
            ShapeError,
            r"region must have shape \[8, 8\] or \[2, 8, 8\]",
            {"region": torch.ones(4, 4, dtype=torch.bool)},
        ),
        (DTypeError, "region must be bool", {"region": torch.ones(8, 8)}),
        (
            ShapeError,
            "threshold must be a number",
            {"output": "binary", "threshold": torch.zeros(5)},
        ),
        (OptionError, "temperature must be positive", {"temperature": 0.0}),
        (OptionError, "temperature must be positive", {"temperature": math.nan}),
        (
            DTypeError,
            "label_dtype must be uint8",
            {"output": "labels", "label_dtype": torch.float32},
        ),
        (
            OptionError,
            "label_dtype must hold ignore_index -1",
            {"output": "labels", "label_dtype": torch.uint8, "ignore_index": -1},
        ),
        (
            OptionError,
            "label_dtype must hold class 299",
            {"output": "labels", "label_dtype": torch.uint8, "logits": torch.zeros(1, 300, 2, 2)},
        ),
        (
            DTypeError,
            "class_mask must be on cpu",
            {"class_mask": torch.ones(3, dtype=torch.bool, device="meta")},
        ),
    ],
)
def test_errors(error, text, change):
    with pytest.raises(error, match=text):
        call(**change)


def test_errors_of_confusion():
    logits = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ShapeError, match=r"target must have shape \[2, H, W\]"):
        upsampled_confusion(logits, torch.zeros(1, 8, 8, dtype=torch.int64))
    with pytest.raises(DTypeError, match="target must be uint8"):
        upsampled_confusion(logits, torch.zeros(2, 8, 8))


@native
def test_backend_errors():
    double = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    with pytest.raises(BackendError, match="float64 is not float32/float16/bfloat16"):
        mask_upsample(double, (5, 5), backend="native")
    assert explain("mask_upsample", double)["reference"] is None
    assert "float64" in explain("mask_upsample", double)["native"]
    with use_backend("reference"):
        assert mask_upsample(double, (5, 5)).dtype == torch.float64


# ------------------------------------------------------------------ registration


@native
def test_registration():
    ops = torch.ops.patchword
    logits = torch.randn(2, 3, 4, 5)
    region = torch.rand(1, 9, 8) > 0.5
    live = torch.tensor([True, False, True])
    size = [9, 8]
    cases = [
        (ops.mask_upsample_maps, (logits, size, 0, False, 2, 0.0, None, live, region, 1.0)),
        (ops.mask_upsample_maps, (logits, size, 1, True, 4, 0.5, torch.zeros(3), None, None, 1.0)),
        (ops.mask_upsample_labels, (logits, size, 0, False, 6, -1, live, region)),
        (ops.mask_upsample_confidence, (logits, size, 1, False, 3, 255, None, None, 2.0)),
        (
            ops.mask_upsample_confusion,
            (logits, torch.randint(0, 3, (2, 9, 8)), 0, False, 255, None, None),
        ),
        (ops.mask_upsample_backward, (torch.randn(2, 3, 9, 8), 4, 5, 0, False)),
    ]
    for op, arguments in cases:
        torch.library.opcheck(op.default, arguments)


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's own tracing
def test_compile():
    def decide(logits):
        labels, confidence = mask_upsample(logits, (9, 7), output="labels_confidence")
        return labels + 1, confidence * 2, mask_upsample(logits * 2, (5, 5), mode="bicubic")

    logits = torch.randn(1, 3, 4, 4)
    compiled = torch.compile(decide, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(logits), decide(logits), strict=True):
        assert torch.equal(got, want)
    learn = torch.compile(
        lambda x: mask_upsample(x, (9, 7)).square().sum(), fullgraph=True, backend="aot_eager"
    )
    a, b = (logits.clone().requires_grad_() for _ in range(2))
    learn(a).backward()
    mask_upsample(b, (9, 7)).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


@native
def test_meta_and_autocast():
    meta = torch.empty(2, 3, 4, 4, device="meta")
    assert mask_upsample(meta, (8, 9)).shape == (2, 3, 8, 9)
    labels = mask_upsample(meta, (8, 9), output="labels", label_dtype=torch.uint8)
    assert labels.shape == (2, 8, 9)
    assert labels.dtype == torch.uint8
    with torch.autocast("cpu", torch.bfloat16):
        assert mask_upsample(torch.randn(1, 2, 3, 3), (5, 5)).dtype == torch.float32


# ------------------------------------------------------------------ edges


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend):
    for output in OUTPUTS:
        for shape, size in (((0, 2, 3, 3), (4, 4)), ((1, 2, 3, 3), (0, 4)), ((1, 2, 3, 3), (4, 0))):
            out = mask_upsample(torch.zeros(shape), size, output=output, backend=backend)
            assert out.numel() == 0
            assert out.shape[0] == shape[0]
            assert out.shape[-2:] == size
    labels, confidence = mask_upsample(
        torch.zeros(2, 0, 3, 3), (4, 5), output="labels_confidence", backend=backend
    )
    assert (labels == -1).all()
    assert (confidence == 0).all()
    nothing = torch.zeros(2, dtype=torch.bool)
    labels = mask_upsample(
        torch.zeros(1, 2, 3, 3),
        (4, 5),
        output="labels",
        class_mask=nothing,
        label_dtype=torch.uint8,
        backend=backend,
    )
    assert (labels == 255).all()
    assert upsampled_confusion(
        torch.zeros(0, 2, 3, 3), torch.zeros(0, 4, 4, dtype=torch.int64), backend=backend
    ).tolist() == [[0, 0], [0, 0]]


@native
@pytest.mark.parametrize("scale", [1, 2, 4, 8, 16])
def test_ties_take_the_lowest_class(scale, cpu_level):
    """Small integers and powers of two: every value is exact, so labels must be too."""
    logits = torch.randint(-3, 4, (2, 23, 5, 6)).float()
    logits[:, 11:] = logits[:, :12]
    size = (5 * scale, 6 * scale)
    exact = upsample_exact(logits, size)
    best = exact.amax(1, keepdim=True)
    lowest = (exact == best).to(torch.uint8).argmax(1)
    for output in ("labels", "labels_confidence"):
        labels = mask_upsample(logits, size, output=output, backend="native")
        labels = labels[0] if isinstance(labels, tuple) else labels
        assert torch.equal(labels, lowest)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_nan_never_wins(backend, mode):
    logits = torch.randn(1, 5, 4, 4)
    logits[0, 2, 1, 1] = torch.nan
    logits[0, :, 3, 3] = torch.nan
    values = mask_upsample(logits, (64, 64), mode=mode, backend=backend)
    labels, confidence = mask_upsample(
        logits, (64, 64), mode=mode, output="labels_confidence", backend=backend
    )
    usable = torch.where(values.isnan(), -torch.inf, values)
    lost = values.isnan().all(1)
    assert lost.any()
    assert torch.equal(labels, torch.where(lost, -1, usable.argmax(1)))
    assert torch.equal(confidence.isnan(), values.isnan().any(1))
    binary = mask_upsample(
        logits, (64, 64), mode=mode, output="binary", threshold=-9e9, backend=backend
    )
    assert torch.equal(binary, ~values.isnan())


@native
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, 3e38, -3e38, 1e38])
@pytest.mark.parametrize("output", ["labels", "logits", "binary", "labels_confidence"])
def test_infinities_and_huge_values(value, output, cpu_level):
    logits = torch.randn(1, 9, 4, 4)
    logits[0, 3, 1, 2] = value
    logits[0, 5, 2, 2] = -value
    logits[0, 7, 0] = -torch.inf
    options = {"output": output, "threshold": 0.0}
    got = mask_upsample(logits, (33, 64), backend="native", **options)
    want = mask_upsample(logits, (33, 64), backend="reference", **options)
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


@native
def test_minus_infinity_is_a_value(cpu_level):
    logits = torch.full((1, 4, 3, 3), -torch.inf)
    for size in ((3, 3), (48, 48)):
        labels = mask_upsample(logits, size, output="labels")
        want = mask_upsample(logits, size, output="labels", backend="reference")
        assert torch.equal(labels, want)
    masked = mask_upsample(
        logits, (3, 3), output="labels", class_mask=torch.tensor([False, False, True, True])
    )
    assert (masked == 2).all()


@native
@pytest.mark.parametrize("magnitude", [1e-38, 1e-20, 1e20, 9e36])
def test_magnitudes(magnitude, cpu_level):
    logits = torch.randn(1, 12, 4, 4) * magnitude
    got = mask_upsample(logits, (64, 64), output="labels", backend="native")
    exact = upsample_exact(logits, (64, 64))
    top = exact.topk(2, 1).values
    clear = (top[:, 0] - top[:, 1]) > 4e-6 * float(logits.abs().max())
    assert torch.equal(got[clear], exact.argmax(1)[clear])


@native
def test_deterministic(cpu_level):
    logits = torch.randn(2, 30, 9, 9)
    target = torch.randint(0, 30, (2, 90, 90))

    def results():
        grad_of = logits.clone().requires_grad_()
        mask_upsample(grad_of, (90, 90)).cos().sum().backward()
        labels, confidence = mask_upsample(logits, (90, 90), output="labels_confidence")
        return (
            labels,
            confidence,
            grad_of.grad,
            upsampled_confusion(logits, target),
            mask_upsample(logits, (90, 90), output="minmax", mode="bicubic"),
        )

    assert_repeats(results)


@native
def test_pruning_is_exact(cpu_level):
    """Large cells look at few classes; labels must be those of the plain loop over all of them."""
    for mode in ("bilinear", "bicubic"):
        for spread in (0.0, 1e-6, 1.0):
            base = torch.randn(1, 1, 6, 6)
            logits = base + spread * torch.randn(1, 50, 6, 6)
            values = mask_upsample(logits, (96, 96), mode=mode, backend="native")
            labels = mask_upsample(logits, (96, 96), mode=mode, output="labels", backend="native")
            assert torch.equal(labels, values.argmax(1)), f"{mode} {spread}"


@native
def test_workspace_stays_small():
    """C 150, 64^2 -> 4096^2: the only large memory is the output itself."""
    C, tags = _library.C, (0, 6, 0, 5, False)
    output = 4096 * 4096 * 8
    for threads in (1, 2, 16):
        assert C.mask_upsample_workspace(threads, tags, (1, 150, 64, 64, 4096, 4096)) < output / 4


@native
@pytest.mark.slow
def test_beyond_32_bits():
    """Offsets beyond 2^31 elements, in the maps by strides and in the output by size."""
    cell = torch.randn(1, 2, 3, 3)
    memory = torch.zeros(2**31 + 64, dtype=torch.float16)
    far = memory.as_strided((1, 2, 3, 3), (1, 2**31, 3, 1))
    far.copy_(cell)
    got = mask_upsample(far, (7, 7))
    assert torch.equal(got, mask_upsample(far.contiguous(), (7, 7)))
    del memory, far
    height, width = 47000, 46000
    labels = mask_upsample(cell, (height, width), output="labels", label_dtype=torch.uint8)
    exact = upsample_exact(cell, (height, width // 23)).argmax(1)
    assert labels.numel() > 2**31
    assert torch.equal(labels[0, :, 11::23].long(), exact[0])
