# SPDX-License-Identifier: Apache-2.0
"""keypoint_join: exact results against the reference and NumPy, bad lists, both phases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_checks import BACKENDS, assert_repeats, native
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import explain, keypoint_join
from patchword.testing import layouts
from patchword.testing import strategies as s


def collection(
    sizes: list[int], most: int, pairs: int = 40, repeats: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Images with ``sizes`` ids below ``most``, and random pairs of them."""
    lists = []
    for size in sizes:
        ids = torch.randint(most, (size,)) if repeats else torch.randperm(most)[:size]
        lists.append(ids.sort().values)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    ids = torch.cat(lists) if lists else torch.zeros(0, dtype=torch.int64)
    return ids, offsets, torch.randint(0, max(len(sizes), 1), (pairs, 2))


SIZES = [
    [],
    [0],
    [0, 1, 1],
    [1, 2, 3, 5, 7],
    [31, 32, 33, 63, 64, 65],
    [100, 101, 127, 90],
    [5, 4000, 300, 0, 77],  # long against short: searched, not walked
    [1000, 1500, 999],
]


def check(ids: Tensor, offsets: Tensor, pairs: Tensor, what: str, **options) -> None:
    got = keypoint_join(ids, offsets, pairs, backend="native", **options)
    want = keypoint_join(ids, offsets, pairs, backend="reference", **options)
    for name, a, b in zip(got._fields, got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu()), f"{what}: {name}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    ids = torch.tensor([2, 5, 7, 9, 1, 5, 9, 5])
    offsets = torch.tensor([0, 4, 7, 7, 8])
    pairs = torch.tensor([[0, 1], [1, 0], [0, 2], [3, 0], [0, 0], [0, 9], [-1, 0]])
    join = keypoint_join(ids, offsets, pairs, backend=backend)
    assert join.offsets.tolist() == [0, 2, 4, 4, 5, 9, 9, 9]
    assert join.rows0.tolist() == [1, 3, 1, 2, 0, 0, 1, 2, 3]
    assert join.rows1.tolist() == [1, 2, 1, 3, 1, 0, 1, 2, 3]
    assert not bool(join.duplicates.any())
    assert not bool(join.unsorted.any())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_of_equal_ids_wins(backend):
    ids = torch.tensor([3, 3, 5, 5, 5, 3, 5, 5, 8, 9, 7])
    offsets = torch.tensor([0, 5, 9, 11])
    join = keypoint_join(ids, offsets, torch.tensor([[0, 1], [1, 0]]), backend=backend)
    assert join.rows0.tolist() == [0, 2, 0, 1]
    assert join.rows1.tolist() == [0, 1, 0, 2]
    assert join.duplicates.tolist() == [True, True, False]
    assert join.unsorted.tolist() == [False, False, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_capacity(backend):
    ids, offsets = torch.tensor([1, 2, 3, 1, 2, 3]), torch.tensor([0, 3, 6])
    pairs = torch.tensor([[0, 1], [1, 0]])
    for capacity, rows in ((0, []), (4, [0, 1, 2, 0]), (8, [0, 1, 2, 0, 1, 2, -1, -1])):
        join = keypoint_join(ids, offsets, pairs, capacity=capacity, backend=backend)
        assert join.rows0.tolist() == join.rows1.tolist() == rows
        assert join.offsets.tolist() == [0, 3, 6]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_matches_reference(cpu_level, sizes):
    longest = max([*sizes, 1])
    for most in (longest, 3 * longest, 10**5):
        check(*collection(sizes, most), f"{cpu_level} {most}")
    if sizes:
        check(*collection(sizes, 60, repeats=True), f"{cpu_level} repeated ids")


@native
def test_equals_numpy():
    ids, offsets, pairs = collection([5000, 4800, 5100, 100], 9000, pairs=12)
    join = keypoint_join(ids, offsets, pairs)
    for i, (a, b) in enumerate(pairs.tolist()):
        lists = [ids[offsets[k] : offsets[k + 1]].numpy() for k in (a, b)]
        _, rows0, rows1 = np.intersect1d(*lists, assume_unique=True, return_indices=True)
        part = slice(int(join.offsets[i]), int(join.offsets[i + 1]))
        assert np.array_equal(join.rows0[part].numpy(), rows0)
        assert np.array_equal(join.rows1[part].numpy(), rows1)


@native
def test_layouts_and_types():
    ids, offsets, pairs = collection([20, 30, 25], 50)
    for name, view in layouts(ids):
        check(view, offsets, pairs, f"ids {name}")
    for name, view in layouts(pairs):
        check(ids, offsets, view, f"pairs {name}")
    check(ids.int(), offsets.int(), pairs.short(), "small integers")
    extremes = torch.tensor([-(2**63), -1, 0, 2**63 - 1])
    check(extremes.repeat(2), torch.tensor([0, 4, 8]), torch.tensor([[0, 1]]), "extreme ids")


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(0, 40), s.sizes(0, 70), s.seeds())
    def run(size0: int, size1: int, seed: int) -> None:
        torch.manual_seed(seed)
        ids, offsets, _ = collection([size0, size1], 80)
        pairs = torch.tensor([[0, 1], [1, 0], [0, 0]])
        join = keypoint_join(ids, offsets, pairs)
        ends = join.offsets.tolist()
        assert torch.equal(ids[join.rows0[: ends[1]]], ids[size0 + join.rows1[: ends[1]]])
        assert torch.equal(join.rows0[: ends[1]], join.rows1[ends[1] : ends[2]])
        assert torch.equal(join.rows1[: ends[1]], join.rows0[ends[1] : ends[2]])
        assert torch.equal(join.rows0[ends[2] :], torch.arange(size0))
        shared = set(ids[:size0].tolist()) & set(ids[size0:].tolist())
        assert ends[1] == len(shared)

    run()


def test_errors():
    ids, offsets, pairs = collection([3, 4], 9)
    cases = [
        (ShapeError, r"ids must have shape \[T\]", (ids[None], offsets, pairs)),
        (ShapeError, r"offsets must have shape \[I \+ 1\]", (ids, offsets[:0], pairs)),
        (ShapeError, r"pairs must have shape \[P, 2\]", (ids, offsets, pairs[:, :1])),
        (DTypeError, "ids must be integers", (ids.float(), offsets, pairs)),
        (DTypeError, "pairs must be integers", (ids, offsets, pairs > 0)),
        (DTypeError, "offsets must be on cpu", (ids, offsets.to("meta"), pairs)),
    ]
    for error, text, arguments in cases:
        with pytest.raises(error, match=f"^keypoint_join: {text}"):
            keypoint_join(*arguments)
    with pytest.raises(OptionError, match="capacity must not be negative, got -1"):
        keypoint_join(ids, offsets, pairs, capacity=-1)


@native
def test_hostile_values_stay_in_bounds(cpu_level):
    ids = torch.randint(-50, 50, (200,))  # unsorted throughout
    offsets = torch.tensor([0, 100, 50, 1000, -7, 200])
    pairs = torch.randint(-3, 8, (60, 2))
    join = keypoint_join(ids, offsets, pairs, backend="native")
    assert bool(join.unsorted[0])
    assert bool((join.offsets.diff() >= 0).all())
    assert int(join.offsets[-1]) == len(join.rows0)
    assert bool(((join.rows0 >= 0) & (join.rows0 < 200)).all())
    assert bool(((join.rows1 >= 0) & (join.rows1 < 200)).all())


@native
def test_registration():
    arguments = collection([20, 30, 25], 50)
    torch.library.opcheck(torch.ops.patchword.keypoint_join_count.default, arguments)
    starts, flags, _, _ = torch.ops.patchword.keypoint_join_count(*arguments)
    torch.library.opcheck(
        torch.ops.patchword.keypoint_join_fill.default, (*arguments, flags, starts, 99)
    )
    meta = keypoint_join(*(t.to("meta") for t in arguments), capacity=12)
    assert meta.rows0.shape == (12,)
    assert explain("keypoint_join", *arguments)["native"] is None


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_into_one_graph():
    arguments = collection([20, 30, 25], 50)
    run = torch.compile(
        lambda *a: keypoint_join(*a, capacity=500), fullgraph=True, backend="aot_eager"
    )
    got, want = run(*arguments), keypoint_join(*arguments, capacity=500)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@native
def test_repeats_for_every_number_of_threads():
    arguments = collection([700, 900, 800, 50], 1500, pairs=300)
    assert_repeats(lambda: keypoint_join(*arguments))


def run_on_cuda_kernels(sizes: list[int], device: str) -> None:
    most = max([*sizes, 1])
    for span in (most, 3 * most):
        check(*(t.to(device) for t in collection(sizes, span, pairs=9)), "cuda kernels")
    if sizes:
        repeated = collection(sizes, 60, pairs=9, repeats=True)
        check(*(t.to(device) for t in repeated), "repeated ids")
        check(*(t.to(device) for t in repeated), "capacity", capacity=50)


@pytest.mark.parametrize("sizes", SIZES[:6], ids=str)
def test_cuda_kernels_on_the_cpu(simt, sizes):
    run_on_cuda_kernels(sizes, "cpu")


@pytest.mark.cuda
@pytest.mark.sanitizer
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_cuda(sizes):
    run_on_cuda_kernels(sizes, "cuda")
