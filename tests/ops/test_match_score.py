# SPDX-License-Identifier: Apache-2.0
"""match_score: the definition cell by cell, the standard tests, hand-computed scores."""

from __future__ import annotations

import math

import pytest
import torch
from op_checks import BACKENDS, DTYPES, FAR, assert_repeats, far_apart, native
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, match_score, sample_features
from patchword.testing import assert_within, dot_tolerance, expanded, layouts
from patchword.testing import strategies as s

# B, Q, D, h, w: empty, one, primes, vector widths and tiles +- 1.
SHAPES = [
    (0, 3, 4, 2, 2),
    (2, 0, 4, 2, 3),
    (1, 3, 0, 2, 2),
    (1, 1, 1, 1, 1),
    (2, 7, 5, 3, 4),
    (1, 31, 17, 1, 9),
    (3, 33, 31, 7, 1),
    (2, 64, 64, 5, 8),
    (5, 97, 129, 6, 7),
]


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Features, places of which some lie outside, weights of which some are 0, masks."""
    batch, queries, channels, height, width = shape
    weights = torch.rand(batch, queries)
    weights[:, ::4] = 0
    return {
        "features0": torch.randn(batch, queries, channels).to(dtype),
        "features1": torch.randn(batch, height * width, channels).to(dtype),
        "points01": torch.rand(batch, queries, 2) * 1.2 - 0.1,
        "weights0": weights,
        "mask1": torch.rand(batch, height, width),
    }


def check(grid: tuple[int, int], what: str, *, rounding: str = "cell", **inputs: Tensor) -> None:
    got = match_score(**inputs, grid=grid, rounding=rounding, backend="native")
    doubles = {**inputs}
    for name in ("features0", "features1"):
        doubles[name] = inputs[name].double()
    want = match_score(**doubles, grid=grid, rounding=rounding, backend="reference")
    assert got.dtype == torch.float32
    # Of every query at most its own error reaches the sum.
    lengths = doubles["features0"].norm(dim=-1).expand(len(want), -1)
    longest = doubles["features1"].norm(dim=-1).amax(-1, keepdim=True) if want.numel() else 0.0
    bound = (inputs["weights0"].double().abs() * lengths * longest).sum(-1) * dot_tolerance()
    assert_within(got, want, bound + want.abs() * 1e-6, what)


def definition(
    features0: Tensor,
    features1: Tensor,
    points01: Tensor,
    weights0: Tensor,
    mask1: Tensor,
    grid: tuple[int, int],
    rounding: str,
) -> Tensor:
    """One look-up per cell, with Python's own numbers."""
    scores = []
    for b in range(features1.shape[0]):
        best: dict[tuple[int, int], float] = {}
        for q in range(features0.shape[1]):
            x, y = (float(value) for value in points01[b, q])
            if rounding == "cell":
                cell = (math.floor(y * grid[0]), math.floor(x * grid[1]))
            else:
                cell = (round(y * (grid[0] - 1)), round(x * (grid[1] - 1)))
            cell = (min(max(cell[0], 0), grid[0] - 1), min(max(cell[1], 0), grid[1] - 1))
            seen = 0.0
            for r in range(grid[0]):
                for c in range(grid[1]):
                    near = max(0.0, 1 - abs(y * grid[0] - 0.5 - r))
                    near *= max(0.0, 1 - abs(x * grid[1] - 0.5 - c))
                    seen += near * float(mask1[b, r, c])
            row = features1[b, cell[0] * grid[1] + cell[1]].double()
            value = float(weights0[b, q]) * seen * float(features0[b, q].double() @ row)
            best[cell] = max(best.get(cell, 0.0), value)
        scores.append(sum(best.values()))
    return torch.tensor(scores)


@pytest.mark.parametrize("rounding", ["cell", "published"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_definition(backend, rounding):
    inputs = make((3, 23, 6, 4, 5))
    got = match_score(**inputs, grid=(4, 5), rounding=rounding, backend=backend)
    want = definition(**inputs, grid=(4, 5), rounding=rounding)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed(backend):
    # Targets (row 0, column 0) twice, (1, 1), (1, 0); similarities .9 .8 -.3 1; weights .5 1 1 .25.
    cells = torch.zeros(1, 4, 4)
    queries = torch.zeros(1, 4, 4)
    for q, (cell, likeness) in enumerate(((0, 0.9), (0, 0.8), (3, -0.3), (2, 1.0))):
        queries[0, q, q] = 1.0
        cells[0, cell, q] = likeness
    points = torch.tensor([[[0.2, 0.2], [0.3, 0.1], [0.9, 0.8], [0.1, 0.9]]])
    weights = torch.tensor([[0.5, 1.0, 1.0, 0.25]])
    for rounding in ("cell", "published"):
        score = match_score(
            queries, cells, points, weights, grid=(2, 2), rounding=rounding, backend=backend
        )
        assert score.item() == pytest.approx(0.8 + 0 + 0.25)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grid", [(30, 30), (20, 25), (1, 7)])
def test_a_picture_against_itself_scores_its_cells(backend, grid):
    count = grid[0] * grid[1]
    features = torch.nn.functional.normalize(torch.rand(1, count, 40), dim=-1)
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    places = torch.stack(((columns + 0.5) / grid[1], (rows + 0.5) / grid[0]), -1).reshape(1, -1, 2)
    for rounding in ("cell", "published"):
        score = match_score(
            features,
            features,
            places,
            torch.ones(count),
            torch.ones(1, *grid),
            grid=grid,
            rounding=rounding,
            backend=backend,
        )
        assert score.item() == pytest.approx(count, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cells_of_both_conventions(backend):
    # On 4 cells: the place that holds .7 is cell 2; rounding .7 * 3 gives 2; .3 is cell 1, and
    # .3 * 3 rounds to 1; .6 is cell 2, .6 * 3 = 1.8 rounds to 2; .5 is cell 2, 1.5 rounds to 2;
    # .8 is cell 3, 2.4 rounds to 2; .17 is cell 0, .51 rounds to 1.
    line = torch.eye(4)[None]
    places = torch.tensor([[[0.8, 0.5], [0.17, 0.5], [7.0, 0.5], [-math.inf, 0.5]]])
    picked = {"cell": (3, 0, 3, 0), "published": (2, 1, 3, 0)}
    for rounding, cells in picked.items():
        for q, cell in enumerate(cells):
            score = match_score(
                line[:, cell : cell + 1],
                line,
                places[:, q : q + 1],
                torch.ones(1),
                grid=(1, 4),
                rounding=rounding,
                backend=backend,
            )
            assert score.item() == 1.0, (rounding, q)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(cpu_level, dtype, shape):
    inputs = make(shape, dtype)
    for rounding in ("cell", "published"):
        check(shape[3:], f"{cpu_level} {rounding}", rounding=rounding, **inputs)
    inputs.pop("mask1")
    check(shape[3:], f"{cpu_level} without mask", **inputs)


@native
def test_matches_reference_large():
    shape = (2, 299, 512, 14, 20)
    inputs = make(shape)
    shared = {**inputs, "features0": inputs["features0"][0], "weights0": inputs["weights0"][0]}
    planes = inputs["features1"].transpose(1, 2).contiguous().transpose(1, 2)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check(shape[3:], f"{threads} threads", **inputs)
        check(shape[3:], f"{threads} threads, one query for all", **shared)
        check(shape[3:], f"{threads} threads, planes", **{**inputs, "features1": planes})


@native
@pytest.mark.parametrize("name", ["features0", "features1", "points01", "weights0", "mask1"])
def test_layouts(name):
    shape = (2, 9, 17, 3, 4)
    inputs = make(shape)
    for layout, view in layouts(inputs[name]):
        check(shape[3:], f"{name} {layout}", **{**inputs, name: view})
    for dim in range(inputs[name].ndim):
        view = expanded(inputs[name], dim)
        check(shape[3:], f"{name} expanded along {dim}", **{**inputs, name: view})


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(1, 40), s.sizes(1, 30), s.sizes(1, 6), s.sizes(1, 6), s.seeds())
    def run(queries: int, channels: int, height: int, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (2, queries, channels, height, width)
        torch.manual_seed(seed)
        inputs = make(shape)
        score = match_score(**inputs, grid=(height, width))
        # The order of the queries does not matter, nor does a query of weight 0.
        order = torch.randperm(queries, generator=generator)
        mixed = {
            name: tensor[:, order] if name in ("features0", "points01", "weights0") else tensor
            for name, tensor in inputs.items()
        }
        assert torch.equal(match_score(**mixed, grid=(height, width)), score)
        # At most one unit-length product per cell.
        inputs["features0"] = torch.nn.functional.normalize(inputs["features0"], dim=-1)
        inputs["features1"] = torch.nn.functional.normalize(inputs["features1"], dim=-1)
        most = min(queries, height * width)
        bounded = match_score(**inputs, grid=(height, width))
        assert bool(((bounded >= 0) & (bounded <= most * (1 + 1e-5))).all())
        # Powers of two in the weights are exact.
        inputs["weights0"] = inputs["weights0"] * 4
        assert torch.equal(match_score(**inputs, grid=(height, width)), bounded * 4)

    run()


def test_gradients_come_from_the_reference():
    inputs = make((1, 5, 4, 2, 3))
    inputs["features0"] = inputs["features0"].abs().requires_grad_()
    inputs["features1"] = inputs["features1"].abs()
    reasons = explain("match_score", *inputs.values())
    assert _library.C is None or reasons["native"] == "it has no gradient"
    match_score(**inputs, grid=(2, 3)).sum().backward()
    assert inputs["features0"].grad.abs().sum() > 0
    doubles = {name: tensor.detach().double() for name, tensor in make((1, 5, 4, 2, 3)).items()}
    torch.autograd.gradcheck(
        lambda a, b, w: match_score(
            a, b, doubles["points01"], w, doubles["mask1"], grid=(2, 3), backend="reference"
        ),
        [doubles[name].requires_grad_() for name in ("features0", "features1", "weights0")],
    )


def test_errors():
    good = make((2, 5, 4, 2, 3))

    def refuse(error: type[Exception], message: str, **wrong: object) -> None:
        with pytest.raises(error, match=message):
            match_score(**{"grid": (2, 3), **good, **wrong})

    refuse(ShapeError, r"features1 must have shape \[B, 8, D\] for grid \(2, 4\)", grid=(2, 4))
    refuse(ShapeError, r"features0 must have shape \[2, Q, 4\]", features0=torch.rand(3, 5, 4))
    refuse(ShapeError, r"points01 must have shape \[2, 5, 2\]", points01=torch.rand(2, 5, 3))
    refuse(ShapeError, r"weights0 must have shape \[2, 5\] or \[5\]", weights0=torch.rand(4))
    refuse(ShapeError, r"mask1 must have shape \[2, 2, 3\]", mask1=torch.rand(2, 3, 2))
    empty = {"features1": torch.rand(2, 0, 4), "mask1": None, "grid": (0, 3)}
    refuse(ShapeError, "at least one cell", **empty)
    refuse(DTypeError, "must have one floating-point type", features1=good["features1"].half())
    refuse(DTypeError, "points01 must be floating point", points01=torch.zeros(2, 5, 2).long())
    refuse(DTypeError, "mask1 must be on cpu like features0", mask1=good["mask1"].to("meta"))
    refuse(OptionError, 'rounding must be "cell" or "published"', rounding="floor")
    refuse(BackendError, "match_score has no triton version", backend="triton")


@native
def test_registration():
    inputs = make((2, 5, 4, 2, 3))
    torch.library.opcheck(
        torch.ops.patchword.match_score_forward.default, (*inputs.values(), 2, 3, 0)
    )
    meta = match_score(**{name: t.to("meta") for name, t in inputs.items()}, grid=(2, 3))
    assert meta.shape == (2,)
    assert meta.is_meta
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check((2, 3), "autocast", **inputs)


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_into_one_graph():
    inputs = make((2, 5, 4, 2, 3))
    run = torch.compile(
        lambda **tensors: match_score(**tensors, grid=(2, 3)) * 2, fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(run(**inputs), match_score(**inputs, grid=(2, 3)) * 2)


@native
def test_edges(cpu_level):
    inputs = make((1, 8, 20, 3, 4))
    inputs["points01"][0, :4] = torch.tensor(
        [[math.nan, 0.5], [0.5, math.nan], [math.inf, 0.2], [3e38, -3e38]]
    )
    inputs["weights0"][:] = 1.0
    check((3, 4), f"{cpu_level} places far away", **inputs)
    without = {**inputs, "mask1": None}
    check((3, 4), f"{cpu_level} places far away, no mask", **without)
    # A product or weight that is no number never wins; one of weight 0 is not even read.
    inputs["features0"][0, 5, 3] = math.nan
    inputs["weights0"][0, 6] = math.nan
    inputs["features0"][0, 7], inputs["weights0"][0, 7] = math.inf, 0.0
    score = match_score(**without, grid=(3, 4), backend="native")
    assert torch.isfinite(score).all()
    want = match_score(**without, grid=(3, 4), backend="reference")
    torch.testing.assert_close(score, want)
    # A mask cell without weight may hold anything.
    centre = {**make((1, 1, 8, 3, 3)), "points01": torch.full((1, 1, 2), 0.5)}
    centre["weights0"][:] = 1.0
    plain = match_score(**centre, grid=(3, 3), backend="native")
    centre["mask1"][0, 0, 0] = math.nan
    assert torch.equal(match_score(**centre, grid=(3, 3), backend="native"), plain)


@native
def test_repeats_bit_for_bit(cpu_level):
    inputs = make((7, 301, 96, 11, 13))
    assert_repeats(lambda: match_score(**inputs, grid=(11, 13)))


@native
def test_offsets_beyond_32_bits():
    cells = 3
    far = far_apart((1, cells, 4), (0, FAR, 1))
    far[0] = torch.randn(cells, 4).bfloat16()
    queries = torch.randn(1, 2, 4).bfloat16()
    points = torch.tensor([[[0.9, 0.5], [0.5, 0.5]]])
    arguments = (points, torch.ones(1, 2))
    got = match_score(queries, far, *arguments, grid=(1, cells), backend="native")
    want = match_score(queries, far.clone(), *arguments, grid=(1, cells), backend="reference")
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_source(simt, dtype):
    for shape in SHAPES[1:7]:
        inputs = make(shape, dtype)
        for rounding in ("cell", "published"):
            check(shape[3:], f"{shape} {rounding}", rounding=rounding, **inputs)
    wide = make((2, 37, 64, 5, 4), dtype)
    check((5, 4), "wide loads", **wide)
    planes = wide["features1"].transpose(1, 2).contiguous().transpose(1, 2)
    check((5, 4), "planes", **{**wide, "features1": planes, "weights0": wide["weights0"][0]})


@pytest.mark.cuda
@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda(dtype):
    for shape in (*SHAPES, (3, 1200, 1024, 30, 40)):
        inputs = make(shape, dtype)
        got = match_score(
            **{name: t.cuda() for name, t in inputs.items()}, grid=shape[3:], backend="native"
        )
        again = match_score(
            **{name: t.cuda() for name, t in inputs.items()}, grid=shape[3:], backend="native"
        )
        assert torch.equal(got, again)
        want = match_score(**inputs, grid=shape[3:], backend="native")
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-4)


def test_the_mask_is_sampled_as_sample_features_does():
    inputs = make((2, 30, 6, 4, 5))
    mask = inputs.pop("mask1")
    seen = sample_features(mask[:, None], inputs["points01"], coordinates="unit")[..., 0]
    folded = {**inputs, "weights0": inputs["weights0"] * seen}
    torch.testing.assert_close(
        match_score(**inputs, mask1=mask, grid=(4, 5)), match_score(**folded, grid=(4, 5))
    )
