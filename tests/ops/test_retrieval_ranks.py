# SPDX-License-Identifier: Apache-2.0
"""retrieval_ranks and score_ranks: exact counts against the reference, ties, NaN, both ways."""

from __future__ import annotations

import pytest
import torch
from op_checks import BACKENDS, DTYPES, FAR, assert_repeats, far_apart, native
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, retrieval_ranks, score_ranks
from patchword.ops.retrieval_ranks.reference import TIES, inverse_truth
from patchword.testing import expanded, layouts
from patchword.testing import strategies as s

# N, M, D, P: empty, one, primes, tiles +- 1, more than a block of rows, columns and depths.
SHAPES = [
    (0, 3, 4, 1),
    (3, 0, 4, 1),
    (3, 5, 0, 1),
    (4, 5, 3, 0),
    (1, 1, 1, 1),
    (7, 11, 5, 2),
    (13, 33, 31, 3),
    (24, 15, 64, 1),
    (97, 31, 9, 1),
    (5, 530, 17, 2),
    (6, 17, 515, 5),
]


def integers(shape, dtype=torch.float32, highest: int = 2):
    """Small whole numbers: every product is exact, and ties are everywhere."""
    rows, columns, dim, truths = shape
    queries = torch.randint(-highest, highest + 1, (rows, dim)).to(dtype)
    gallery = torch.randint(-highest, highest + 1, (columns, dim)).to(dtype)
    return queries, gallery, torch.randint(-1, columns + 1, (rows, truths))


def sorted_ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """The legacy rule as it was written: a reversed stable ascending sort."""
    order = scores.argsort(dim=1, stable=True).flip(1)
    place = order.argsort(1)
    return place.gather(1, truth).amin(1)


def check_exact(queries, gallery, truth, what: str, rules=tuple(TIES)) -> None:
    for ties in rules:
        got = retrieval_ranks(queries, gallery, truth, ties=ties, both=True, backend="native")
        double = (queries.double(), gallery.double(), truth)
        want = retrieval_ranks(*double, ties=ties, both=True, backend="reference")
        assert torch.equal(got.ranks0, want.ranks0), f"{what} {ties}: queries"
        assert torch.equal(got.ranks1, want.ranks1), f"{what} {ties}: gallery"
    alone = retrieval_ranks(queries, gallery, truth, ties=ties, backend="native")
    assert torch.equal(alone.ranks0, want.ranks0), f"{what} {ties}: one way"
    assert alone.ranks1 is None


def check_near(queries, gallery, truth, what: str, mode: str = "float32") -> None:
    """Every candidate that is counted wrongly must be a near-tie of the true one."""
    scores = queries.double() @ gallery.double().T
    got = retrieval_ranks(queries, gallery, truth, both=True, backend="native")
    tolerance = {"float32": 2e-6, "half": 4e-6}[mode]
    tau = 2 * tolerance * queries.double().norm(dim=1)[:, None] * gallery.double().norm(dim=1)
    for ranks, table, slack, items in (
        (got.ranks0, scores, tau, truth if truth.ndim == 2 else truth[:, None]),
        (got.ranks1, scores.T, tau.T, inverse_truth(truth.reshape(len(queries), -1), len(gallery))),
    ):
        own = torch.where(items >= 0, table.gather(1, items.clamp(0)), -torch.inf)
        best = own.amax(1, keepdim=True)
        least = (table > best + 2 * slack).sum(1)
        most = (table >= best - 2 * slack).sum(1) - 1
        named = (items >= 0).any(1)
        right = torch.where(named, (ranks >= least) & (ranks <= most), ranks == -1)
        assert bool(right.all()), f"{what}: {int((~right).sum())} ranks are wrong"


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_by_hand(backend):
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3, 0.4, 0.95, 0.5, 0.6, 0.05, 0.0],
            [0.2, 0.96, 0.1, 0.0, 0.3, 0.8, 0.7, 0.1, 0.2, 0.4],
        ]
    )
    captions = torch.arange(10).reshape(2, 5)
    assert score_ranks(scores, captions, backend=backend).tolist() == [1, 1]
    images = score_ranks(scores.T, torch.arange(10) // 5, backend=backend)
    assert float((images < 1).float().mean()) == pytest.approx(0.7)
    row = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0]])
    truth = torch.tensor([2])
    wanted = {"optimistic": 0, "pessimistic": 2, "legacy": 1}
    for ties, rank in wanted.items():
        assert score_ranks(row, truth, ties=ties, backend=backend).item() == rank
        got = retrieval_ranks(torch.ones(1, 1), row.T, truth, ties=ties, backend=backend)
        assert got.ranks0.item() == rank


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 3])
def test_legacy_rule_is_a_reversed_stable_sort(backend, count):
    scores = torch.randint(0, 4, (40, 23)).float()
    truth = torch.randint(0, 23, (40, count))
    want = sorted_ranks(scores, truth)
    assert torch.equal(score_ranks(scores, truth, ties="legacy", backend=backend), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_on_integers(cpu_level, dtype, shape):
    queries, gallery, truth = integers(shape, dtype)
    check_exact(queries, gallery, truth, f"{cpu_level}")
    scores = (queries.float() @ gallery.float().T).to(dtype)
    for ties in TIES:
        got = score_ranks(scores, truth, ties=ties, backend="native")
        assert torch.equal(got, score_ranks(scores.double(), truth, ties=ties)), ties


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(cpu_level, dtype):
    queries, gallery = torch.randn(101, 300).to(dtype), torch.randn(67, 300).to(dtype)
    truth = torch.randint(0, 67, (101, 3))
    check_near(queries, gallery, truth, cpu_level, "float32" if dtype.itemsize == 4 else "half")


@native
def test_an_item_never_outranks_itself():
    # With optimistic ties a true item that is its own only candidate has rank 0 whatever rounding
    # does: its score is the one that the sweep meets.
    queries = torch.randn(200, 777)
    gallery = torch.randn(1, 777).expand(300, 777)
    truth = torch.randint(0, 300, (200,))
    got = retrieval_ranks(queries, gallery, truth, ties="optimistic", both=True, backend="native")
    assert not bool(got.ranks0.any())
    worst = retrieval_ranks(queries, gallery, truth, backend="native").ranks0
    assert bool((worst == 299).all())


@native
def test_layouts():
    queries, gallery, truth = integers((14, 35, 20, 2))
    for name, view in layouts(queries):
        check_exact(view, gallery, truth, f"queries {name}")
    for name, view in layouts(gallery):
        check_exact(queries, view, truth, f"gallery {name}")
    for dim in (0, 1):
        check_exact(expanded(queries, dim), gallery, truth, f"queries expanded along {dim}")
        check_exact(queries, expanded(gallery, dim), truth, f"gallery expanded along {dim}")
    scores = queries @ gallery.T
    want = score_ranks(scores, truth, backend="reference")
    for name, view in layouts(scores):
        assert torch.equal(score_ranks(view, truth, backend="native"), want), name
    for name, view in layouts(truth):
        check_exact(queries, gallery, view, f"truth {name}")
    check_exact(queries, gallery, truth.int(), "int32 truth")


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(1, 33), s.sizes(1, 40), s.sizes(1, 20), s.seeds())
    def run(rows: int, columns: int, dim: int, seed: int) -> None:
        torch.manual_seed(seed)
        queries, gallery, _ = integers((rows, columns, dim, 1))
        truth = torch.randint(0, columns, (rows,))
        by = {t: retrieval_ranks(queries, gallery, truth, ties=t, both=True) for t in TIES}
        for side in (0, 1):
            low, mid, high = (by[t][side] for t in ("optimistic", "legacy", "pessimistic"))
            assert bool(((low <= mid) & (mid <= high)).all())
        assert bool((by["pessimistic"].ranks0 < columns).all())
        # Order of the gallery matters to the legacy rule alone; positive factors never.
        order = torch.randperm(columns)
        moved = retrieval_ranks(queries * 2, gallery[order], order.argsort()[truth])
        assert torch.equal(moved.ranks0, by["pessimistic"].ranks0)
        # One more true item can only help.
        more = torch.stack((truth, torch.randint(0, columns, (rows,))), 1)
        for ties in TIES:
            assert bool(
                (retrieval_ranks(queries, gallery, more, ties=ties)[0] <= by[ties][0]).all()
            )
        scores = queries @ gallery.T
        assert torch.equal(score_ranks(scores, truth), by["pessimistic"].ranks0)

    run()


def test_errors():
    queries, gallery, truth = integers((4, 5, 3, 1))
    cases = [
        (ShapeError, r"queries must have shape \[N, D\]", (queries[0], gallery, truth)),
        (ShapeError, r"gallery must have shape \[N, D\]", (queries, gallery[None], truth)),
        (ShapeError, "gallery must have vectors of 3", (queries, gallery[:, :2], truth)),
        (ShapeError, r"truth must have shape \[4\] or \[4, P\]", (queries, gallery, truth[:2])),
        (DTypeError, "queries must be floating", (queries.long(), gallery.long(), truth)),
        (DTypeError, "gallery must be torch.float32", (queries, gallery.half(), truth)),
        (DTypeError, "truth must be integers", (queries, gallery, truth.float())),
        (DTypeError, "truth must be integers", (queries, gallery, truth > 0)),
        (DTypeError, "truth must be on cpu", (queries, gallery, truth.to("meta"))),
    ]
    for error, text, arguments in cases:
        with pytest.raises(error, match=f"^retrieval_ranks: {text}"):
            retrieval_ranks(*arguments)
    with pytest.raises(OptionError, match=r"ties must be .* got 'random'"):
        retrieval_ranks(queries, gallery, truth, ties="random")
    with pytest.raises(ShapeError, match=r"^score_ranks: scores must have shape \[N, M\]"):
        score_ranks(queries[0], truth)
    with pytest.raises(DTypeError, match=r"^score_ranks: scores must be floating"):
        score_ranks(queries.long(), truth)
    with pytest.raises(OptionError, match=r"^score_ranks: ties must be"):
        score_ranks(queries, truth, ties="")
    if _library.C is not None:
        with pytest.raises(BackendError, match="float64 is not"):
            retrieval_ranks(queries.double(), gallery.double(), truth, backend="native")


@native
def test_registration():
    queries, gallery, truth = integers((14, 35, 20, 2))
    for both in (False, True):
        torch.library.opcheck(
            torch.ops.patchword.retrieval_ranks.default, (queries, gallery, truth, 1, both)
        )
    torch.library.opcheck(torch.ops.patchword.score_ranks.default, (queries @ gallery.T, truth, 2))
    meta = retrieval_ranks(queries.to("meta"), gallery.to("meta"), truth.to("meta"), both=True)
    assert [tuple(ranks.shape) for ranks in meta] == [(14,), (35,)]
    assert not retrieval_ranks(queries.requires_grad_(), gallery, truth).ranks0.requires_grad
    assert explain("retrieval_ranks", queries, gallery, truth)["native"] is None


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_into_one_graph():
    queries, gallery, truth = integers((14, 35, 20, 2))
    run = torch.compile(
        lambda q, g, t: (retrieval_ranks(q, g, t, both=True), score_ranks(q @ g.T, t)),
        fullgraph=True,
        backend="aot_eager",
    )
    (ranks0, ranks1), alone = run(queries, gallery, truth)
    want = retrieval_ranks(queries, gallery, truth, both=True)
    assert torch.equal(ranks0, want.ranks0)
    assert torch.equal(ranks1, want.ranks1)
    assert torch.equal(alone, want.ranks0)


@native
def test_edges(cpu_level):
    queries, gallery, truth = integers((20, 40, 10, 2))
    gallery[3, 2] = torch.nan
    gallery[5, 1] = torch.inf
    gallery[6, 1] = -torch.inf
    queries[4, 0] = torch.nan
    queries[5] = 0  # 0 times infinity is NaN as well
    truth[:8, 0] = torch.tensor([3, 5, 6, 3, 3, 5, 7, 8])
    truth[:8, 1] = -1
    check_exact(queries, gallery, truth, cpu_level)
    none = torch.full_like(truth, -1)
    got = retrieval_ranks(queries, gallery, none, both=True)
    assert bool((got.ranks0 == -1).all())
    assert bool((got.ranks1 == -1).all())
    far = torch.tensor([2**40, -(2**40), 40, 39]).repeat(5)
    check_exact(queries, gallery, far, "indices far outside")
    check_exact(queries * -0.0, gallery.nan_to_num(0, 0, 0), truth, "zeros of both signs")
    scores = torch.tensor([[torch.nan, 1.0, torch.nan, 2.0]])
    for ties in TIES:
        assert score_ranks(scores, torch.tensor([0]), ties=ties).item() == 2


@native
def test_repeats_for_every_number_of_threads(cpu_level):
    queries, gallery = torch.randn(400, 40), torch.randn(600, 40)
    truth = torch.randint(0, 600, (400, 2))
    assert_repeats(lambda: retrieval_ranks(queries, gallery, truth, both=True))


@native
def test_offsets_beyond_32_bits():
    view = far_apart((3, 8), (FAR, 1))
    view.copy_(torch.randint(-3, 4, (3, 8)))
    others = torch.randint(-3, 4, (5, 8)).bfloat16()
    check_exact(view, others, torch.tensor([0, 3, 4]), "far queries")
    check_exact(others, view, torch.tensor([0, 1, 2, 2, 1]), "far gallery")


CUDA_SHAPES = [(1, 1, 1, 1), (7, 11, 5, 2), (5, 130, 40, 1), (130, 9, 33, 2), (3, 5, 0, 1)]


def run_on_cuda_kernels(shape, dtype, device: str) -> None:
    queries, gallery, truth = (t.to(device) for t in integers(shape, dtype))
    # Several tiles are slow on the CPU: there one rule is enough.
    rules = tuple(TIES) if device == "cuda" or max(shape) < 128 else ("legacy",)
    check_exact(queries, gallery, truth, "cuda kernels", rules)
    scores = (queries.float() @ gallery.float().T).to(dtype)
    for ties in TIES:
        got = score_ranks(scores, truth, ties=ties, backend="native")
        assert torch.equal(got, score_ranks(scores.double(), truth, ties=ties)), ties


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CUDA_SHAPES, ids=str)
def test_cuda_kernels_on_the_cpu(simt, dtype, shape):
    run_on_cuda_kernels(shape, dtype, "cpu")


def test_cuda_kernels_on_the_cpu_edges(simt):
    queries, gallery, truth = integers((20, 40, 10, 2))
    gallery[3, 2] = torch.nan
    queries[4, 0] = torch.nan
    truth[:4, 0], truth[:4, 1] = torch.tensor([3, 5, 6, 3]), -1
    check_exact(queries, gallery, truth, "not-a-number scores")
    check_near(torch.randn(9, 70), torch.randn(21, 70), torch.randint(0, 21, (9, 2)), "random")


@pytest.mark.cuda
@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*CUDA_SHAPES, (1000, 5000, 64, 1)], ids=str)
def test_cuda(dtype, shape):
    run_on_cuda_kernels(shape, dtype, "cuda")
