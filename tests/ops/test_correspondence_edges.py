# SPDX-License-Identifier: Apache-2.0
"""The matchers' properties, definitions, errors, registration, edge values and CUDA sources."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from correspondence_checks import (
    LARGE,
    METRICS,
    SHAPES,
    check_edges,
    check_exact,
    check_logsumexp,
    check_mutual,
    check_neighbors,
    check_ragged,
    make,
    oracle,
)
from op_checks import DTYPES
from op_checks import native as needs_native
from torch import Tensor

from patchword import ops
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.testing import (
    assert_log_sum_exp,
    assert_within,
)

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
    # Rows 2^29 and pairs 2^31 elements apart; of the 9 GB only the rows themselves are touched.
    memory = torch.empty(2**32 + 64, dtype=torch.float16)
    far = memory.as_strided((2, 4, 40), (2**31, 2**29, 1))
    far.copy_(torch.randn(2, 4, 40))
    near = far.contiguous()
    for metric in METRICS:
        found = ops.mutual_nearest_neighbors(far, near, metric=metric)
        want = ops.mutual_nearest_neighbors(near, near, metric=metric)
        assert torch.equal(found.matches0, want.matches0)
        assert torch.equal(found.scores1, want.scores1)
    assert torch.equal(found.matches0, torch.arange(4).expand(2, 4))
    sums = ops.match_logsumexp(near, far)[1]
    assert torch.equal(sums, ops.match_logsumexp(near, near)[1])


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
@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_device_small(dtype: torch.dtype) -> None:
    cuda_checks(SIMT_SHAPES, dtype, "cuda")


@pytest.mark.cuda
def test_cuda_top_k_has_a_limit() -> None:
    a, b = make((1, 9, 40, 8), torch.float32, "cuda")
    with pytest.raises(BackendError, match="k = 9 exceeds 8 on CUDA"):
        ops.nearest_neighbors(a, b, k=9, backend="native")
