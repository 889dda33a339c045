# SPDX-License-Identifier: Apache-2.0
"""The matchers against float64 on every backend, element type and CPU level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial

import pytest
import torch
from correspondence_checks import (
    LARGE,
    METRICS,
    SHAPES,
    check_exact,
    check_logsumexp,
    check_mutual,
    check_neighbors,
    check_ragged,
    make,
)
from op_checks import DTYPES, assert_repeats
from op_checks import native as needs_native
from torch import Tensor

from patchword import _library, ops
from patchword.ops.correspondence import native
from patchword.ops.correspondence._inputs import Pairs, Side
from patchword.ops.correspondence.mutual import Rule, keep_mutual
from patchword.testing import (
    assert_gradient,
    layouts,
)

# ------------------------------------------------------------------ 1. matches the reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_matches_reference_on_every_level(cpu_level: str, metric: str, dtype: torch.dtype) -> None:
    with poisoned():
        for shape in SHAPES:
            a, b = make(shape, dtype)
            what = f"{metric} {dtype} {shape} {cpu_level}"
            for k in (1, 3):
                check_neighbors(a, b, metric, what, k)
            check_mutual(a, b, metric, what)
            if metric != "l2":
                check_logsumexp(a, b, metric, what)


class poisoned:
    """Fresh memory is NaN, so that an element nobody writes cannot pass by luck."""

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        assert torch.utils.deterministic.fill_uninitialized_memory

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)


def test_reference_backend_passes_the_same_checks() -> None:
    with ops.use_backend("reference"):
        for shape in SHAPES:
            a, b = make(shape, torch.float32)
            for metric in METRICS:
                check_neighbors(a, b, metric, f"reference {metric} {shape}", 2)
                check_mutual(a, b, metric, f"reference {metric} {shape}")
            check_logsumexp(a, b, "dot", f"reference {shape}")


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_problem_and_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    a, b = make(LARGE, torch.float32)
    check_mutual(a, b, "cosine", "large")
    check_neighbors(a, b, "l2", "large", 5)
    check_logsumexp(a, b, "cosine", "large", 30.0)
    batch = make((5, 90, 110, 70), torch.float32)
    check_mutual(*batch, "dot", "batch")


@needs_native
def test_results_do_not_depend_on_the_number_of_threads(cpu_level: str) -> None:
    a, b = (torch.randint(-2, 3, (n, 40)).float() for n in (500, 620))

    def run():
        m = ops.mutual_nearest_neighbors(a, b, metric="dot", ratio=0.97, allow_single=True)
        n = ops.nearest_neighbors(a, b, metric="l2", k=4)
        return m.matches0, m.matches1, m.scores0, n.indices, n.scores

    assert_repeats(run)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_ties_go_to_the_lowest_index(cpu_level: str, metric: str, dtype: torch.dtype) -> None:
    for shape in ((1, 50, 70, 3), (2, 37, 129, 5), (1, 5, 1, 2), (1, 1, 5, 2)):
        check_exact(shape, dtype, metric, (1, 2, 32))


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
def test_nearly_equal_descriptors(cpu_level: str, threads: int) -> None:
    """Scores that 16-bit screening cannot tell apart: equal, almost equal, in clusters."""
    torch.set_num_threads(threads)
    base = torch.randn(1, 64)
    for n, noise in ((130, 0.0), (401, 0.0), (401, 1e-6), (401, 1e-4), (300, 1e-2)):
        a = base + noise * torch.randn(n, 64)
        b = base + noise * torch.randn(n + 7, 64)
        check_mutual(a[None], b[None], "cosine", f"noise {noise}")
        if noise == 0.0:
            assert ops.mutual_nearest_neighbors(a, b).matches0.tolist() == [0] + [-1] * (n - 1)
    # Copies of nine centres: the first copies choose each other, whatever the scores' last bits.
    centres = torch.randn(9, 48)
    labels = [torch.cat((torch.randint(9, (n,)), torch.arange(9))) for n in (341, 268)]
    found = ops.mutual_nearest_neighbors(centres[labels[0]], centres[labels[1]])
    first = [[int((side == c).nonzero()[0]) for c in range(9)] for side in labels]
    pairs, _ = found.pairs()
    assert sorted(map(tuple, pairs.tolist())) == sorted(zip(*first, strict=True))


# ------------------------------------------------------------------ 2. gradients


def test_gradcheck_of_the_reference() -> None:
    a = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    near = partial(ops.nearest_neighbors, k=2)
    for metric in METRICS:
        check = torch.autograd.gradcheck
        assert check(lambda x, y, m=metric: near(x, y, metric=m).scores, (a, b))
        if metric == "l2":
            continue
        assert check(partial(ops.match_logsumexp, metric=metric, inverse_temperature=2.0), (a, b))
        dual = partial(ops.dual_softmax_matches, metric=metric, inverse_temperature=3.0)
        assert check(lambda x, y, run=dual: run(x, y).scores0, (a, b))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_match_the_reference(dtype: torch.dtype) -> None:
    def total(a: Tensor, b: Tensor) -> Tensor:
        mutual = ops.mutual_nearest_neighbors(a, b)
        rows, columns = ops.match_logsumexp(a, b, inverse_temperature=5.0)
        dual = ops.dual_softmax_matches(a, b, inverse_temperature=5.0)
        finite = mutual.scores0.masked_fill(mutual.matches0 < 0, 0)
        weight = torch.linspace(-1, 1, finite.shape[1], dtype=finite.dtype)
        return ((finite + rows + dual.scores0) * weight).sum() + columns.square().sum()

    values = [t.to(dtype) for t in (torch.randn(2, 40, 24), torch.randn(2, 33, 24))]
    inputs = [v.clone().requires_grad_() for v in values]
    total(*inputs).backward()
    wide = [v.double().requires_grad_() for v in values]
    total(*wide).backward()
    for got, want in zip(inputs, wide, strict=True):
        assert got.grad is not None
        assert want.grad is not None
        assert_gradient(got.grad, want.grad, f"gradient {dtype}")


def test_no_gradient_flows_where_nothing_matched() -> None:
    a = torch.randn(4, 3, requires_grad=True)
    b = torch.randn(2, 3, requires_grad=True)
    valid = torch.zeros(2, dtype=torch.bool)
    found = ops.dual_softmax_matches(a, b, valid1=valid)
    found.scores0.sum().backward()
    assert a.grad is not None
    assert bool((a.grad == 0).all())


# ------------------------------------------------------------------ 3. layouts


@needs_native
def test_layouts() -> None:
    a, b = make((2, 19, 23, 11), torch.float32)
    want = ops.mutual_nearest_neighbors(a, b)
    sums = ops.match_logsumexp(a, b)
    for name, view in layouts(a):
        for other_name, other in layouts(b):
            got = ops.mutual_nearest_neighbors(view, other)
            assert torch.equal(got.matches0, want.matches0), (name, other_name)
            assert torch.equal(got.scores1, want.scores1), (name, other_name)
        got_sums = ops.match_logsumexp(view, b)
        assert all(torch.equal(x, y) for x, y in zip(got_sums, sums, strict=True)), name
    one = b[:1].expand(2, -1, -1)
    got = ops.mutual_nearest_neighbors(a, one)
    assert torch.equal(got.matches0, ops.mutual_nearest_neighbors(a, one.contiguous()).matches0)
    flags = torch.rand(23, 2).T > 0.4
    got = ops.nearest_neighbors(a, b, valid1=flags)
    assert torch.equal(got.indices, ops.nearest_neighbors(a, b, valid1=flags.contiguous()).indices)


# ------------------------------------------------------------------ masks and lengths


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_and_lengths_equal_deletion(dtype: torch.dtype, cpu_level: str) -> None:
    check_ragged(dtype, None)


def test_masks_and_lengths_equal_deletion_in_the_reference() -> None:
    check_ragged(torch.float32, "reference")


# ------------------------------------------------------------------ the end of a mutual match


def sides(n: int, m: int) -> tuple[Side, Side]:
    """Candidates of three pairs with every kind of value; few, so that many pairs agree."""
    values = torch.tensor([-math.inf, -4.0, -0.25, -0.0, 0.0, 0.25, 0.5, 1.0, math.inf, math.nan])

    def side(count: int, partners: int) -> Side:
        pick = torch.randint(len(values), (2, 3, count))
        return Side(torch.randint(-1, partners, (3, count)), *values[pick])

    side0, side1 = side(n, m), side(m, n)
    # Half of the candidates are returned, as in a real match.
    back = torch.rand(3, n) < 0.5
    for p, i in back.nonzero().tolist():
        if (j := int(side0.indices[p, i])) >= 0:
            side1.indices[p, j] = i
    return side0, side1


@needs_native
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("threshold", [None, -0.25, 0.1, math.nan, 1e300])
@pytest.mark.parametrize("ratio", [None, 0.5, 0.9, 1.0, 3.0])
def test_native_tail_has_the_bits_of_the_torch_form(
    metric: str, threshold: float | None, ratio: float | None
) -> None:
    for n, m, single in ((1, 1, True), (17, 5, False), (60, 71, True)):
        side0, side1 = sides(n, m)
        pairs = Pairs(
            (torch.empty(3, n, 1), torch.empty(3, m, 1)), metric, (None,) * 2, (None,) * 2, True
        )
        want = keep_mutual(pairs, side0, side1, Rule(threshold, ratio, single))
        out = [[t.clone() for t in (s.indices, s.scores, s.second)] for s in (side0, side1)]
        pointers = [tuple(t.data_ptr() for t in side) for side in out]
        number = native.METRICS[metric]
        _library.C.match_mutual_tail((3, n, m), number, *pointers, threshold, ratio, single)
        for got, expected in zip((out[0][0], out[1][0], out[0][1], out[1][1]), want, strict=True):
            assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))
            assert torch.equal(got.isnan(), expected.isnan())


SUMMING = [
    partial(ops.match_logsumexp, inverse_temperature=3.0),
    ops.dual_softmax_matches,
    partial(ops.dual_softmax_matches, threshold=0.2),
    partial(ops.dual_softmax_matches, threshold=-1.0),
]


def every_matcher(metric: str) -> list[Callable[..., object]]:
    found = [
        ops.mutual_nearest_neighbors,
        partial(ops.mutual_nearest_neighbors, ratio=0.9),
        partial(ops.mutual_nearest_neighbors, ratio=1.0, allow_single=True, threshold=-3.0),
        ops.nearest_neighbors,
        partial(ops.nearest_neighbors, k=3),
        lambda a, b, **options: ops.cycle_consistency(a, b, a[..., :2].nan_to_num(), **options),
        *([] if metric == "l2" else SUMMING),
    ]
    return [partial(match, metric=metric) for match in found]


@needs_native
@pytest.mark.parametrize("metric", METRICS)
def test_direct_calls_have_the_bits_of_the_long_way(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = torch.randint(-2, 3, (3, 40, 4)).float(), torch.randint(-2, 3, (3, 31, 4)).float()
    a[1, 3], b[2, 5] = math.nan, math.nan
    lengths = {"lengths0": torch.tensor([40, 0, 17]), "lengths1": torch.tensor([31, 9, 1])}
    masks = {"valid0": torch.rand(3, 40) < 0.5, "valid1": torch.rand(31, 3).T < 0.5}
    one = {"lengths0": torch.tensor([33]), "valid1": torch.rand(62)[::2] < 0.5}
    calls = [
        partial(match, *sets, **options)
        for match in every_matcher(metric)
        for sets, options in (
            ((a, b), {}),
            ((a, b), lengths),
            ((a, b), {**lengths, **masks}),
            ((a[0].T.contiguous().T, b[0]), one),
        )
    ]
    direct = [call() for call in calls]
    monkeypatch.setattr(native, "direct", lambda *_: False)
    for call, got in zip(calls, direct, strict=True):
        want = call()
        pairs = (
            zip(got, want, strict=True)
            if isinstance(got, tuple)
            else ((getattr(got, f.name), getattr(want, f.name)) for f in fields(got))
        )
        for one_field, other in pairs:
            assert torch.equal(one_field.nan_to_num(7.0), other.nan_to_num(7.0)), call
            assert torch.equal(one_field.isnan(), other.isnan()), call
