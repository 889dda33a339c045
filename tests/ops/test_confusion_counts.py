# SPDX-License-Identifier: Apache-2.0
"""confusion_counts: exact against the reference on every backend, type, layout and size."""

from __future__ import annotations

import itertools

import pytest
import torch
from op_checks import BACKENDS, native
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import (
    confusion_counts,
    explain,
    intersection_and_union,
    mask_upsample,
    upsampled_confusion,
)
from patchword.testing import expanded, layouts
from patchword.testing import strategies as s

LABELS = [torch.uint8, torch.int16, torch.int32, torch.int64]
# Around the chunks of 2048 pixels, with one copy of the histogram (from 129 classes on) and four.
SHAPES = [(0, 4, 4), (2, 0, 3), (1, 1, 1), (3, 5, 7), (1, 32, 64), (2, 2049, 1), (1, 67, 65)]


def make(shape: tuple[int, ...], classes: int, kind: torch.dtype) -> Tensor:
    """Labels of which some are no class: beyond the last one, 255, and negative where possible."""
    labels = torch.randint(0, classes + 2, shape)
    labels[torch.rand(shape) < 0.1] = 255
    if kind != torch.uint8:
        labels[torch.rand(shape) < 0.1] = -1
    return labels.to(kind)


def check(prediction: Tensor, target: Tensor, classes: int, what: str, **options) -> Tensor:
    got = confusion_counts(prediction, target, classes, backend="native", **options)
    want = confusion_counts(prediction, target, classes, backend="reference", **options)
    assert got.dtype == torch.int64
    assert torch.equal(got, want), what
    return got


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    target = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255], [2, 2, 2, 0]])
    prediction = torch.tensor([[0, 1, 1, 1], [0, 0, 2, 1], [2, 0, 2, 0]])
    counts = confusion_counts(prediction, target, 3, backend=backend)
    assert counts.tolist() == [[4, 1, 0], [0, 2, 1], [1, 0, 2]]
    both, either = intersection_and_union(counts)
    assert torch.allclose(both / either, torch.tensor([2 / 3, 0.5, 0.5]))
    rows = confusion_counts(prediction, target, 3, per_image=True, backend=backend)
    assert rows.shape == (3, 3, 3)
    assert torch.equal(rows.sum(0), counts)
    ignored = confusion_counts(prediction, target, 3, ignore_index=0, backend=backend)
    assert ignored.tolist() == [[0, 0, 0], [0, 2, 1], [1, 0, 2]]
    # The ignored value is one of the target: such predictions count.
    assert confusion_counts(target, target, 3, ignore_index=-1, backend=backend).sum() == 11
    assert confusion_counts(prediction, target, 0, backend=backend).shape == (0, 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("classes", [1, 21, 150])
def test_matches_reference(cpu_level, shape, classes):
    for kind, other in itertools.product(LABELS, LABELS):
        target, prediction = make(shape, classes, kind), make(shape, classes, other)
        what = f"{cpu_level} {kind} {other}"
        check(prediction, target, classes, what)
        check(prediction, target, classes, what, per_image=True)
        check(prediction, target, classes, what, ignore_index=0)


@native
@pytest.mark.parametrize("threads", [1, 2])
def test_matches_reference_large(threads):
    torch.set_num_threads(threads)
    for classes in (11, 200):
        target = make((2, 300, 401), classes, torch.uint8)
        prediction = make((2, 300, 401), classes, torch.int64)
        check(prediction, target, classes, f"{classes} classes")


@native
def test_agrees_with_upsampled_confusion():
    logits = torch.randn(2, 7, 9, 11)
    target = torch.randint(0, 7, (2, 40, 50))
    target[torch.rand(2, 40, 50) < 0.1] = 255
    labels = mask_upsample(logits, (40, 50), output="labels")
    assert torch.equal(confusion_counts(labels, target, 7), upsampled_confusion(logits, target))


@native
def test_layouts():
    target, prediction = make((2, 6, 9), 5, torch.int32), make((2, 6, 9), 5, torch.uint8)
    for (name, view), (other, guess) in itertools.product(layouts(target), layouts(prediction)):
        check(guess, view, 5, f"target {name}, prediction {other}", per_image=True)
    for dim in range(3):
        check(expanded(prediction, dim), target, 5, f"expanded along {dim}")
    check(prediction[0, 0, 0], target[0, 0, 0], 5, "single numbers")


@native
def test_extreme_labels():
    for kind in (torch.int16, torch.int32, torch.int64):
        info = torch.iinfo(kind)
        labels = torch.tensor(
            [info.min, info.max, -1, 0, 1, 2**15 - 1, -(2**15)], dtype=torch.int64
        )
        pairs = torch.cartesian_prod(labels.to(kind), labels.to(kind))
        got = check(pairs[:, 0], pairs[:, 1], 2, f"{kind}", ignore_index=info.max)
        assert got.tolist() == [[1, 1], [1, 1]]
    # 2^32 and its multiples are no class, although their low halves are.
    wide = torch.tensor([0, 2**32, 2**33 + 1, 1])
    assert check(wide, wide, 2, "wide").tolist() == [[1, 0], [0, 1]]


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(0, 33), s.sizes(0, 33), s.sizes(1, 31), s.seeds())
    def run(height: int, width: int, classes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        target, prediction = torch.randint(0, classes, (2, height, width), generator=generator)
        counts = confusion_counts(prediction, target, classes)
        assert counts.sum() == height * width
        assert torch.equal(confusion_counts(target, prediction, classes), counts.T)
        assert torch.equal(counts.sum(1), torch.bincount(target.flatten(), minlength=classes))
        assert torch.equal(counts.sum(0), torch.bincount(prediction.flatten(), minlength=classes))

    run()


def test_errors():
    maps = torch.zeros(2, 3, 4, dtype=torch.uint8)
    with pytest.raises(
        ShapeError, match=r"must have the shape \[2, 3, 4\] of target, got \[3, 4\]"
    ):
        confusion_counts(maps[0], maps, 3)
    with pytest.raises(ShapeError, match=r"per_image must have maps \[B, \.\.\.\], got one number"):
        confusion_counts(maps[0, 0, 0], maps[0, 0, 0], 3, per_image=True)
    with pytest.raises(DTypeError, match=r"prediction must be uint8, .* got torch\.float32"):
        confusion_counts(maps.float(), maps, 3)
    with pytest.raises(DTypeError, match=r"target must be uint8, .* got torch\.bool"):
        confusion_counts(maps, maps.bool(), 3)
    with pytest.raises(DTypeError, match="target must be on cpu like prediction, got meta"):
        confusion_counts(maps, maps.to("meta"), 3)
    with pytest.raises(OptionError, match="num_classes must be at least 0, got -1"):
        confusion_counts(maps, maps, -1)
    with pytest.raises(BackendError, match="confusion_counts has no triton version"):
        confusion_counts(maps, maps, 3, backend="triton")
    if _library.C is not None:
        with pytest.raises(BackendError, match="more than 8192 classes"):
            confusion_counts(maps, maps, 8193, backend="native")


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_registration():
    target, prediction = make((2, 30), 4, torch.int64), make((2, 30), 4, torch.uint8)
    op = torch.ops.patchword.confusion_counts.default
    torch.library.opcheck(op, (prediction, target, 4, 255))
    assert confusion_counts(prediction.to("meta"), target.to("meta"), 4).shape == (4, 4)
    assert explain("confusion_counts", prediction, target)["native"] is None
    run = torch.compile(
        lambda p, t: confusion_counts(p, t, 4, per_image=True) + 1,
        fullgraph=True,
        backend="aot_eager",
    )
    want = confusion_counts(prediction, target, 4, per_image=True) + 1
    assert torch.equal(run(prediction, target), want)


@native
def test_offsets_beyond_32_bits():
    # The second image lies 2^32 bytes after the first, in a buffer untouched in between.
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would touch all of it
    memory = torch.UntypedStorage(2**32 + 64)
    flat = torch.empty(0, dtype=torch.uint8).set_(memory)
    view = flat.as_strided((2, 20), (2**32, 1))
    labels = torch.randint(0, 3, (2, 20)).to(torch.uint8)
    view.copy_(labels)
    check(view, labels, 3, "far apart")
    assert torch.equal(confusion_counts(view, labels, 3), confusion_counts(labels, labels, 3))


@pytest.mark.slow
@native
def test_more_than_2_31_pixels():
    labels = torch.ones(2**31 + 5000, dtype=torch.uint8)
    labels[-3:] = 0
    counts = confusion_counts(labels, labels, 2, backend="native")
    assert counts.tolist() == [[3, 0], [0, 2**31 + 4997]]


def run_on_cuda_kernels(device: str) -> None:
    for shape, classes in itertools.product([(0, 4), (1, 1), (3, 70), (2, 700)], [1, 5, 100]):
        for kind, other in zip(LABELS, reversed(LABELS), strict=True):
            target = make(shape, classes, kind).to(device)
            prediction = make(shape, classes, other).to(device)
            check(prediction, target, classes, f"{shape} {kind} {other}", per_image=True)
            check(prediction, target, classes, f"{shape} {kind} {other}", ignore_index=0)


def test_cuda_kernels_on_the_cpu(simt):
    run_on_cuda_kernels("cpu")


def test_cuda_kernels_on_the_cpu_several_blocks(simt):
    target, prediction = make((1, 8200), 5, torch.uint8), make((1, 8200), 5, torch.uint8)
    check(prediction, target, 5, "two blocks")


@pytest.mark.cuda
@pytest.mark.sanitizer
def test_cuda():
    run_on_cuda_kernels("cuda")
    target, prediction = (make((4, 500, 375), 21, torch.uint8).cuda() for _ in range(2))
    check(prediction, target, 21, "large")
