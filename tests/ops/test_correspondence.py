# SPDX-License-Identifier: Apache-2.0
"""The matchers against float64 on every backend, element type and CPU level."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from patchword import _library, ops
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops.correspondence import reference
from patchword.ops.correspondence.results import Matches
from patchword.testing import (
    assert_dot,
    assert_gradient,
    assert_indices,
    assert_log_sum_exp,
    assert_within,
    dot_tolerance,
    layouts,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
METRICS = ("cosine", "dot", "l2")

# P, N, M, D: empty, one, primes, tile edges of both CPU tiles (6 x 16, 12 x 32) and of depth 512.
SHAPES = [
    (0, 3, 4, 5),
    (1, 0, 4, 5),
    (1, 3, 0, 5),
    (2, 4, 5, 0),
    (1, 1, 1, 1),
    (1, 7, 13, 3),
    (2, 31, 33, 17),
    (1, 11, 31, 8),
    (1, 13, 33, 9),
    (1, 24, 64, 513),
    (3, 37, 101, 64),
    (1, 211, 307, 96),
]
LARGE = (1, 700, 1031, 130)

needs_native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")


def make(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    pairs, n, m, dim = shape
    a, b = torch.randn(pairs, n, dim), torch.randn(pairs, m, dim)
    return a.to(device, dtype), b.to(device, dtype)


def mode(dtype: torch.dtype) -> str:
    return "float32" if dtype == torch.float32 else "half"


def oracle(a: Tensor, b: Tensor, metric: str) -> Tensor:
    return reference.score_matrix(a.double().cpu(), b.double().cpu(), metric)


def score_scale(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """``[P, N, M]`` factor of the dot tolerance: the product of norms, or their squared sum."""
    norm0 = a.double().cpu().norm(dim=-1)[:, :, None]
    norm1 = b.double().cpu().norm(dim=-1)[:, None]
    if metric == "cosine":
        return torch.ones_like(norm0 * norm1)
    return norm0 * norm1 if metric == "dot" else (norm0 + norm1) ** 2


def check_neighbors(a: Tensor, b: Tensor, metric: str, what: str, k: int = 1) -> None:
    """``nearest_neighbors`` on the given tensors against the float64 scores of the same tensors."""
    scores = oracle(a, b, metric)
    scale = score_scale(a, b, metric)
    found = ops.nearest_neighbors(a, b, k=k, metric=metric)
    indices = found.indices if k > 1 else found.indices[..., None]
    values = found.scores if k > 1 else found.scores[..., None]
    assert indices.dtype == torch.int64
    assert values.dtype == torch.float32
    tau = dot_tolerance(mode(a.dtype)) * (scale.amax(-1) if scale.shape[-1] else scale.sum(-1))
    assert_indices(indices[..., 0], scores, tau, what)
    missing = (indices < 0).cpu()
    assert torch.equal(missing, torch.arange(k).expand_as(missing) >= scores.shape[-1])
    if scores.shape[-1] == 0 or scores.numel() == 0:
        assert bool((values == -math.inf).all())
        return
    want = scores.gather(-1, indices.cpu().clamp_min(0)).masked_fill(missing, -math.inf)
    factor = scale.gather(-1, indices.cpu().clamp_min(0))
    assert_dot(values, want, factor, what, mode=mode(a.dtype))
    # Each value is as good as the one of the same place in the float64 order.
    count = min(k, scores.shape[-1])
    best = scores.topk(count, -1).values
    assert_within(values[..., :count], best, 2 * tau[..., None] + 1e-30, what)


def check_mutual(a: Tensor, b: Tensor, metric: str, what: str) -> Matches:
    """Both maps are right as nearest neighbours, and inverse to each other."""
    scores = oracle(a, b, metric)
    found = ops.mutual_nearest_neighbors(a, b, metric=metric)
    tau = dot_tolerance(mode(a.dtype)) * score_scale(a, b, metric)
    assert found.matches0.shape == a.shape[:-1]
    assert found.matches1.shape == b.shape[:-1]
    if scores.numel() == 0:
        assert bool((found.matches0 == -1).all())
        assert bool((found.matches1 == -1).all())
        assert bool((found.scores0 == -math.inf).all())
        return found
    rows, columns = scores.argmax(2), scores.argmax(1)
    for p in range(scores.shape[0]):
        pairs, values = found.pairs(p)
        i, j = pairs.cpu().T
        assert bool((found.matches1[p].cpu()[j] == i).all())
        assert int((found.matches1[p] >= 0).sum()) == len(i)
        # A pair that is returned is best up to rounding, from either side.
        slack = 2 * tau[p].max()
        chosen = scores[p, i, j]
        assert bool((chosen >= scores[p].amax(1)[i] - slack).all()), what
        assert bool((chosen >= scores[p].amax(0)[j] - slack).all()), what
        assert_within(values, chosen, tau[p, i, j] + 1e-30, what)
        # A clear mutual best is returned.
        top0 = scores[p].topk(min(2, scores.shape[2]), 1).values
        top1 = scores[p].topk(min(2, scores.shape[1]), 0).values
        clear0 = (top0[:, 0] - top0[:, -1] > slack) | (scores.shape[2] == 1)
        clear1 = (top1[0] - top1[-1] > slack) | (scores.shape[1] == 1)
        start = torch.arange(scores.shape[1])
        clear = (columns[p][rows[p]] == start) & clear0 & clear1[rows[p]]
        assert torch.equal(found.matches0[p].cpu()[clear], rows[p][clear]), what
    return found


def check_logsumexp(a: Tensor, b: Tensor, metric: str, what: str, t: float = 7.0) -> None:
    scores = t * oracle(a, b, metric)
    scale = t * score_scale(a, b, metric)
    found = ops.match_logsumexp(a, b, metric=metric, inverse_temperature=t)
    for got, dim in zip(found, (2, 1), strict=True):
        if scores.shape[dim] == 0:
            assert bool((got == -math.inf).all())
        elif scores.numel():
            norm = scale.amax(dim)
            assert_log_sum_exp(
                got, scores.logsumexp(dim), what, norm_product=norm, mode=mode(a.dtype)
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
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        m = ops.mutual_nearest_neighbors(a, b, metric="dot", ratio=0.97, allow_single=True)
        n = ops.nearest_neighbors(a, b, metric="l2", k=4)
        results.append((m.matches0, m.matches1, m.scores0, n.indices, n.scores))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def integers(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Small integers, for which every sum is exact and equal scores are frequent."""
    pairs, n, m, dim = shape
    a, b = torch.randint(-2, 3, (pairs, n, dim)), torch.randint(-2, 3, (pairs, m, dim))
    return a.to(device, dtype), b.to(device, dtype)


def check_exact(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    metric: str,
    ks: tuple[int, ...],
    device: str = "cpu",
) -> None:
    a, b = integers(shape, dtype, device)
    for k in ks:
        got = ops.nearest_neighbors(a, b, k=k, metric=metric)
        want = ops.nearest_neighbors(a.double(), b.double(), k=k, metric=metric)
        assert torch.equal(got.indices, want.indices)
        assert torch.equal(got.scores.double(), want.scores)
    for options in ({}, {"ratio": 0.9}, {"ratio": 1.0, "allow_single": True}, {"threshold": -3.0}):
        got = ops.mutual_nearest_neighbors(a, b, metric=metric, **options)
        want = ops.mutual_nearest_neighbors(a.double(), b.double(), metric=metric, **options)
        for field in ("matches0", "matches1", "scores0", "scores1"):
            assert torch.equal(getattr(got, field).double(), getattr(want, field).double()), field


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


def check_ragged(dtype: torch.dtype, backend: str | None) -> None:
    a, b = make((4, 21, 35, 10), dtype)
    lengths0, lengths1 = torch.tensor([21, 7, 0, 1]), torch.tensor([35, 16, 9, 0])
    valid0, valid1 = torch.rand(4, 21) > 0.3, torch.rand(4, 35) > 0.3
    masks = {"lengths0": lengths0, "lengths1": lengths1, "valid0": valid0, "valid1": valid1}
    got = ops.mutual_nearest_neighbors(a, b, **masks, backend=backend)
    near = ops.nearest_neighbors(a, b, k=2, **masks, backend=backend)
    sums = ops.match_logsumexp(a, b, **masks, backend=backend)
    for p in range(4):
        keep0 = (valid0[p] & (torch.arange(21) < lengths0[p])).nonzero()[:, 0]
        keep1 = (valid1[p] & (torch.arange(35) < lengths1[p])).nonzero()[:, 0]
        dense = (a[p, keep0], b[p, keep1])
        want = ops.mutual_nearest_neighbors(*dense, backend="reference")
        pairs, scores = got.pairs(p)
        wanted, wanted_scores = want.pairs()
        expected = torch.stack((keep0[wanted[:, 0]], keep1[wanted[:, 1]]), 1)
        assert torch.equal(pairs, expected)
        assert_dot(scores, wanted_scores, 1.0, "ragged", mode=mode(dtype))
        best = ops.nearest_neighbors(*dense, k=2, backend="reference").indices
        full = torch.full((21, 2), -1)
        mapped = keep1[best.clamp_min(0)] if len(keep1) else best
        full[keep0] = torch.where(best < 0, -1, mapped)
        assert torch.equal(near.indices[p], full)
        for side, keep, count in ((0, keep0, 21), (1, keep1, 35)):
            lse = ops.match_logsumexp(*dense, backend="reference")[side]
            full_lse = torch.full((count,), -math.inf).index_put((keep,), lse)
            assert_log_sum_exp(sums[side][p], full_lse, "ragged", mode=mode(dtype))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_and_lengths_equal_deletion(dtype: torch.dtype, cpu_level: str) -> None:
    check_ragged(dtype, None)


def test_masks_and_lengths_equal_deletion_in_the_reference() -> None:
    check_ragged(torch.float32, "reference")


# ------------------------------------------------------------------ 4. properties


def test_properties() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.given(
        st.integers(1, 20),
        st.integers(1, 20),
        st.integers(1, 9),
        st.sampled_from(METRICS),
        st.integers(0, 2**31),
    )
    def check(n: int, m: int, dim: int, metric: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(n, dim, generator=generator)
        b = torch.randn(m, dim, generator=generator)
        one = ops.mutual_nearest_neighbors(a, b, metric=metric, ratio=0.95)
        two = ops.mutual_nearest_neighbors(b, a, metric=metric, ratio=0.95)
        assert torch.equal(one.matches0, two.matches1)
        assert torch.equal(one.matches1, two.matches0)
        used = one.matches0[one.matches0 >= 0]
        assert len(used.unique()) == len(used)
        order = torch.randperm(m, generator=generator)
        shuffled = ops.nearest_neighbors(a, b[order], metric=metric)
        assert torch.equal(
            order[shuffled.indices], ops.nearest_neighbors(a, b, metric=metric).indices
        )
        self_match = ops.mutual_nearest_neighbors(a, a, metric="l2")
        assert torch.equal(self_match.matches0, torch.arange(n))
        assert bool((self_match.scores0 <= 0).all())
        dual = ops.dual_softmax_matches(a, b, metric="dot", inverse_temperature=2.0)
        assert bool((dual.scores0 >= 0).all())
        assert bool((dual.scores0 <= 1).all())

    check()


def test_duplicates_of_a_descriptor_are_at_distance_zero(cpu_level: str) -> None:
    a = torch.randn(40, 77)
    found = ops.nearest_neighbors(a, torch.cat((a, a)), metric="l2")
    assert torch.equal(found.indices, torch.arange(40))
    assert bool((found.scores == 0).all())


def test_hand_computed_cases() -> None:
    a = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    b = torch.tensor([[0.0, 1.0], [4.0, 0.0]])
    found = ops.mutual_nearest_neighbors(a, b)
    assert found.matches0.tolist() == [1, 0, -1]
    assert found.matches1.tolist() == [1, 0]
    assert found.scores0.tolist() == [1.0, 1.0, -math.inf]
    pairs, scores = found.pairs()
    assert pairs.tolist() == [[0, 1], [1, 0]]
    assert scores.tolist() == [1.0, 1.0]
    # a0 and a1 stand out; for b0 the second is cos 45 degrees.
    assert ops.mutual_nearest_neighbors(a, b, ratio=0.7).matches0.tolist() == [-1, -1, -1]
    assert ops.mutual_nearest_neighbors(a, b, ratio=0.71).matches0.tolist() == [1, 0, -1]
    assert ops.mutual_nearest_neighbors(a, b, threshold=1.0).matches0.tolist() == [-1, -1, -1]
    one = ops.mutual_nearest_neighbors(a[:1], b[:1], ratio=0.9)
    assert one.matches0.tolist() == [-1]
    single = ops.mutual_nearest_neighbors(a[:1], b[:1], ratio=0.9, allow_single=True)
    assert single.matches0.tolist() == [0]
    twins = torch.ones(2, 2)
    for ratio, expected in ((0.99, [-1, -1]), (1.0, [0, -1])):
        found = ops.mutual_nearest_neighbors(twins, twins, metric="l2", ratio=ratio)
        assert found.matches0.tolist() == expected


def test_cycle_consistency() -> None:
    a, b = torch.randn(2, 30, 8), torch.randn(2, 25, 8)
    points = torch.rand(2, 30, 2) * 100
    found = ops.cycle_consistency(a, b, points)
    there = ops.nearest_neighbors(a, b).indices
    back = ops.nearest_neighbors(b, a).indices.gather(1, there)
    assert torch.equal(found.indices01, there)
    assert torch.equal(found.indices10_of_01, back)
    ends = points.gather(1, back[..., None].expand(-1, -1, 2))
    assert torch.allclose(found.distance, (ends - points).norm(dim=-1))
    mutual = ops.mutual_nearest_neighbors(a, b).matches0 >= 0
    assert torch.equal(found.indices10_of_01 == torch.arange(30), mutual)
    none = ops.cycle_consistency(a, b, points, valid1=torch.zeros(2, 25, dtype=torch.bool))
    assert bool((none.distance == math.inf).all())
    assert bool((none.indices10_of_01 == -1).all())
    empty = ops.cycle_consistency(a, b[:, :0], points)
    assert bool((empty.indices01 == -1).all())
    assert bool((empty.distance == math.inf).all())


@needs_native
@pytest.mark.parametrize("t", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_dual_softmax_against_the_definition(cpu_level: str, metric: str, t: float) -> None:
    a, b = make((2, 43, 57, 16), torch.float32)
    if metric == "dot":
        a, b = a / 4, b / 4
    scores = t * oracle(a, b, metric)
    probability = scores.softmax(2) * scores.softmax(1)
    found = ops.dual_softmax_matches(a, b, metric=metric, inverse_temperature=t, threshold=0.2)
    rows, columns = probability.argmax(2), probability.argmax(1)
    mutual = columns.gather(1, rows) == torch.arange(43)
    best = probability.amax(2)
    sure = (best - 0.2).abs() > 1e-4
    want = torch.where(mutual & (best > 0.2), rows, -1)
    assert torch.equal(found.matches0[sure], want[sure])
    kept = found.matches0 >= 0
    bound = 2e-6 * max(1.0, 4 * t)
    assert_within(found.scores0[kept], best[kept], bound, f"dual softmax {metric} {t}")
    assert bool((found.scores0[~kept] == 0).all())


# ------------------------------------------------------------------ 5. errors


def test_errors() -> None:
    a, b = torch.randn(3, 4), torch.randn(5, 4)
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (
            lambda: ops.nearest_neighbors(a[0], b),
            ShapeError,
            r"descriptors0 must have shape \[N, D\]",
        ),
        (
            lambda: ops.nearest_neighbors(a, b[:, :3]),
            ShapeError,
            r"descriptors1 must have shape \['M', 4\]",
        ),
        (lambda: ops.nearest_neighbors(a[None], b), ShapeError, "descriptors1 must have shape"),
        (lambda: ops.nearest_neighbors(a.long(), b.long()), DTypeError, "floating-point"),
        (lambda: ops.nearest_neighbors(a, b.half()), DTypeError, "share one floating-point dtype"),
        (lambda: ops.nearest_neighbors(a, b.to("meta")), DTypeError, "on one device"),
        (lambda: ops.nearest_neighbors(a, b, k=0), OptionError, r"k must be in \[1, 32\], got 0"),
        (lambda: ops.nearest_neighbors(a, b, k=33), OptionError, "got 33"),
        (lambda: ops.nearest_neighbors(a, b, metric="l1"), OptionError, "metric must be"),
        (
            lambda: ops.nearest_neighbors(a, b, lengths0=torch.tensor(3)),
            ShapeError,
            r"lengths0 must have shape \[1\]",
        ),
        (
            lambda: ops.nearest_neighbors(a, b, lengths1=torch.ones(1)),
            DTypeError,
            "lengths1 must be torch.int64",
        ),
        (
            lambda: ops.nearest_neighbors(a, b, valid1=torch.ones(4, dtype=torch.bool)),
            ShapeError,
            r"valid1 must have shape \[5\]",
        ),
        (
            lambda: ops.nearest_neighbors(a, b, valid0=torch.ones(3)),
            DTypeError,
            "valid0 must be torch.bool",
        ),
        (
            lambda: ops.mutual_nearest_neighbors(a, b, ratio=0.0),
            OptionError,
            "ratio must be positive",
        ),
        (
            lambda: ops.cycle_consistency(a, b, torch.rand(4, 2)),
            ShapeError,
            r"points0 must have shape \[3, 2\]",
        ),
        (
            lambda: ops.cycle_consistency(a, b, torch.ones(3, 2).long()),
            DTypeError,
            "points0 must be floating point",
        ),
        (
            lambda: ops.match_logsumexp(a, b, metric="l2"),
            OptionError,
            'metric must be "cosine" or "dot"',
        ),
        (
            lambda: ops.dual_softmax_matches(a, b, inverse_temperature=0),
            OptionError,
            "inverse_temperature must be",
        ),
        (
            lambda: ops.dual_softmax_matches(a, b, inverse_temperature=math.nan),
            OptionError,
            "inverse_temperature",
        ),
        (
            lambda: ops.mutual_nearest_neighbors(a, b).pairs(1),
            OptionError,
            r"i must be in \[0, 1\), got 1",
        ),
        (
            lambda: ops.nearest_neighbors(a.double(), b.double(), backend="native"),
            BackendError,
            "cannot run here",
        ),
        (lambda: ops.nearest_neighbors(a, b, backend="triton"), BackendError, "no triton version"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()


# ------------------------------------------------------------------ 6. registration


@needs_native
def test_registration() -> None:
    a, b = torch.randn(2, 6, 4), torch.randn(2, 7, 4)
    lengths, valid = torch.tensor([3, 6]), torch.rand(2, 7) > 0.2
    sides = (a, b, lengths, None, None, valid)
    library = torch.ops.patchword
    torch.library.opcheck(
        library.match_best.default,
        (*sides, torch.zeros(2, 6), torch.zeros(2, 7), 0, 1.0, True),
    )
    torch.library.opcheck(library.match_topk.default, (*sides, 1, 3))
    torch.library.opcheck(library.match_logsumexp.default, (*sides, 1, 2.0))


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_compile_without_graph_breaks() -> None:
    def run(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        mutual = ops.mutual_nearest_neighbors(a, b, ratio=0.95)
        dual = ops.dual_softmax_matches(a, b)
        near = ops.nearest_neighbors(a, b, k=2, metric="l2")
        return mutual.matches0, mutual.scores1, dual.matches1, near.indices, near.scores

    a, b = torch.randn(30, 16), torch.randn(26, 16)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(a, b), run(a, b), strict=True):
        assert torch.allclose(got, want)


def test_meta_and_fake_tensors() -> None:
    a, b = torch.empty(3, 5, 4, device="meta"), torch.empty(3, 6, 4, device="meta")
    found = ops.mutual_nearest_neighbors(a, b)
    assert found.matches0.shape == (3, 5)
    assert found.scores1.shape == (3, 6)
    assert ops.nearest_neighbors(a, b, k=4).indices.shape == (3, 5, 4)


def test_autocast_keeps_the_stored_type() -> None:
    a, b = torch.randn(9, 8), torch.randn(7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ops.mutual_nearest_neighbors(a, b)
    assert torch.equal(found.scores0, ops.mutual_nearest_neighbors(a, b).scores0)


# ------------------------------------------------------------------ 7. edges


def check_edges(tolerance: float) -> None:
    a, b = torch.randn(20, 9), torch.randn(40, 9)
    a[3, 2], b[5, 0], b[0] = math.nan, math.nan, math.nan
    for metric in METRICS:
        found = ops.mutual_nearest_neighbors(a, b, metric=metric)
        assert int(found.matches0[3]) == -1
        assert int(found.matches1[5]) == -1
        clean = ops.mutual_nearest_neighbors(
            a, b, metric=metric, valid0=~a.isnan().any(1), valid1=~b.isnan().any(1)
        )
        assert torch.equal(found.matches0, clean.matches0)
        near = ops.nearest_neighbors(a, b, metric=metric)
        assert int(near.indices[3]) == -1
        assert float(near.scores[3]) == -math.inf
    rows, columns = ops.match_logsumexp(a, b)
    assert bool(rows.isnan().all())
    assert bool(columns.isnan().all())
    rows, columns = ops.match_logsumexp(a[:3], b[6:], inverse_temperature=2.0)
    assert not bool(rows.isnan().any())
    # Magnitudes whose squares leave float32.
    for factor in (1e-30, 1e30):
        big = torch.randn(12, 9) * factor
        found = ops.nearest_neighbors(big, b[6:])
        want = ops.nearest_neighbors(big.double(), b[6:].double())
        assert torch.equal(found.indices, want.indices)
        assert_within(found.scores, want.scores, tolerance, f"cosine at {factor}")
    zero = torch.zeros(4, 9)
    found = ops.nearest_neighbors(zero, b[6:])
    assert found.indices.tolist() == [0] * 4
    assert found.scores.tolist() == [0.0] * 4
    signed = ops.nearest_neighbors(
        torch.tensor([[1.0]]), torch.tensor([[-0.0], [0.0]]), metric="dot"
    )
    assert signed.indices.tolist() == [0]


@needs_native
def test_edges(cpu_level: str) -> None:
    check_edges(2e-6)


@needs_native
def test_minus_infinity_is_a_score(cpu_level: str) -> None:
    a = torch.full((7, 2), 3e38)
    b = torch.full((40, 2), -3e38)
    b[0] = math.nan
    found = ops.nearest_neighbors(a, b, metric="dot")
    assert found.indices.tolist() == [1] * 7
    assert bool((found.scores == -math.inf).all())
    found = ops.nearest_neighbors(a, b, metric="dot", k=3)
    assert found.indices.tolist() == [[1, 2, 3]] * 7
    mutual = ops.mutual_nearest_neighbors(a, b, metric="dot")
    assert mutual.matches0.tolist() == [1] + [-1] * 6
    want = ops.mutual_nearest_neighbors(a, b, metric="dot", backend="reference")
    assert torch.equal(mutual.matches1, want.matches1)


@needs_native
def test_sums_of_extreme_scores(cpu_level: str) -> None:
    a, b = torch.tensor([[1.0], [-1.0], [0.5]]), torch.tensor([[3e4], [-3e4], [math.inf]])
    rows, columns = ops.match_logsumexp(a, b, metric="dot")
    scores = a.double() @ b.double().T
    assert_log_sum_exp(rows, scores.logsumexp(1), "rows", norm_product=3e4)
    assert_log_sum_exp(columns, scores.logsumexp(0), "columns", norm_product=3e4)


@pytest.mark.slow
@needs_native
def test_more_elements_than_32_bits_count() -> None:
    # One row of memory, seen as 2^22 rows of 1024: offsets and products pass 2^31.
    row = torch.randn(1024)
    many = row.expand(2**22, 1024)
    found = ops.nearest_neighbors(row[None], many, metric="dot")
    assert found.indices.tolist() == [0]
    # A pair stride of 2^31 elements: only the first and the last rows are ever touched.
    memory = torch.empty(2**31 + 64, dtype=torch.float16)
    memory[:32] = torch.randn(32)
    memory[2**31 : 2**31 + 32] = torch.randn(32)
    far = memory.as_strided((2, 4, 8), (2**31, 8, 1))
    near = far.contiguous()
    found = ops.mutual_nearest_neighbors(far, near)
    assert torch.equal(found.matches0, torch.arange(4).expand(2, 4))


# ------------------------------------------------------------------ CUDA sources


SIMT_SHAPES = [(1, 1, 1, 1), (2, 5, 130, 33), (1, 129, 7, 0), (1, 131, 140, 40)]


def cuda_checks(
    shapes: list[tuple[int, int, int, int]], dtype: torch.dtype, device: str = "cpu"
) -> None:
    for shape in shapes:
        a, b = make(shape, dtype, device)
        what = f"cuda {dtype} {shape}"
        check_mutual(a, b, "cosine", what)
        check_neighbors(a, b, "l2", what, 2)
        check_logsumexp(a, b, "dot", what)


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_kernels_on_the_cpu_layer(dtype: torch.dtype) -> None:
    cuda_checks(SIMT_SHAPES, dtype)
    check_exact((2, 40, 70, 3), dtype, "dot", (1, 3))
    check_exact((1, 13, 150, 5), dtype, "l2", (2,))
    check_ragged(dtype, None)


@pytest.mark.usefixtures("simt")
def test_cuda_edges_on_the_cpu_layer() -> None:
    check_edges(2e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_device(dtype: torch.dtype) -> None:
    cuda_checks([*SHAPES, LARGE, (2, 2000, 3000, 300)], dtype, "cuda")
    check_exact((2, 400, 700, 5), dtype, "dot", (1, 8), "cuda")


@pytest.mark.cuda
def test_cuda_top_k_has_a_limit() -> None:
    a, b = make((1, 9, 40, 8), torch.float32, "cuda")
    with pytest.raises(BackendError, match="k = 9 exceeds 8 on CUDA"):
        ops.nearest_neighbors(a, b, k=9, backend="native")
