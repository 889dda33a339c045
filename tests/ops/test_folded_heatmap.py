# SPDX-License-Identifier: Apache-2.0
"""fold_units and folded_heatmap: the standard tests against the reference in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from op_checks import BACKENDS, DTYPES, FAR, assert_repeats, far_apart, native
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import FoldedHeatmap, explain, fold_units, folded_heatmap
from patchword.testing import assert_within, dot_tolerance, expanded, layouts
from patchword.testing import strategies as s

# T, E, D, top: one, primes, vector widths and blocks of columns +- 1.
FOLDS = [
    (0, 5, 7, 2),
    (2, 5, 0, 2),
    (1, 1, 1, 1),
    (3, 7, 5, 7),
    (2, 33, 31, 3),
    (5, 64, 64, 20),
    (1, 100, 130, 99),
    (2, 40, 261, 11),
]
# B, D, h, w, T: tiles of texts and cells +- 1.
MAPS = [
    (0, 3, 2, 2, 2),
    (2, 3, 2, 2, 0),
    (1, 0, 2, 3, 2),
    (1, 1, 1, 1, 1),
    (2, 5, 3, 4, 3),
    (1, 17, 13, 13, 5),
    (1, 64, 1, 16, 6),
    (2, 40, 33, 1, 7),
    (1, 33, 4, 8, 12),
    (3, 20, 7, 7, 13),
]


def folded_bound(text: Tensor, projection: Tensor, top: int) -> Tensor:
    """Dot tolerance times the norms of the chosen weights and of every column."""
    chosen = text.double().abs().nan_to_num(0.0).sort(-1).values[:, -top:].norm(dim=-1)
    return dot_tolerance() * chosen[:, None] * projection.double().norm(dim=0) + 1e-30


def check_fold(text: Tensor, projection: Tensor, top: int, what: str) -> None:
    got = fold_units(text, projection, top, backend="native")
    want = fold_units(text.double(), projection.double(), top, backend="reference")
    assert got.dtype == torch.float32
    assert_within(got, want, folded_bound(text, projection, top), what)


def check_heat(maps: Tensor, folded: Tensor, what: str, **options) -> FoldedHeatmap:
    """Heat within the dot tolerance; place and mask exact for that heat."""
    got = folded_heatmap(maps, folded, backend="native", **options)
    wide = folded_heatmap(maps.double(), folded.double(), backend="reference", **options)
    lengths = folded.double().norm(dim=-1)[..., None, None]
    bound = dot_tolerance("half") * lengths * maps.double().norm(dim=1, keepdim=True) + 1e-30
    assert_within(got.heat, wide.heat, bound.expand_as(wide.heat), what)
    # Judged from the heat that came out: one map channel, texts that are multiples of it.
    heat = got.heat.flatten(0, 1)[:, None]
    own = folded_heatmap(heat, torch.ones(1, 1), backend="reference", **options)
    assert torch.equal(got.location.flatten(0, 1), own.location[:, 0]), f"{what} location"
    if options.get("threshold") is None:
        assert got.mask is None
        return got
    differs = got.mask.flatten(0, 1) != own.mask[:, 0]
    assert not bool(differs.any()), f"{what} mask"
    return got


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    text = torch.tensor([[0.1, -0.9, 0.3, 0.2]])
    projection = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 2]])
    folded = fold_units(text, projection, 2, backend=backend)
    assert_within(folded, torch.tensor([[0.0, 0.3, 0.3, 0.4]]), 1e-7, "the -0.9 is not chosen")
    maps = torch.arange(16.0).reshape(1, 4, 2, 2)
    heat, location, mask = folded_heatmap(maps, text, projection, 2, threshold=0.5, backend=backend)
    assert_within(heat, torch.tensor([[[[8.4, 9.4], [10.4, 11.4]]]]), 1e-5, "heat")
    assert location.tolist() == [[[1, 1]]]
    assert mask.tolist() == [[[[False, False], [True, True]]]]
    # Without the minimum added back everything lies above half the range.
    whole = folded_heatmap(maps, folded, threshold=0.5, above="zero", backend=backend)
    assert bool(whole.mask.all())
    # Too few positive entries: negative ones enter by their magnitude.
    three = fold_units(torch.tensor([[-0.5, 0.25, -2.0]]), torch.eye(3), 2, backend=backend)
    assert three.tolist() == [[0.5, 0.25, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties(backend):
    maps = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])[None, None]
    one = torch.ones(1, 1)
    assert folded_heatmap(maps, one, backend=backend).location.tolist() == [[[1, 0]]]
    first = folded_heatmap(maps, one, ties="column", backend=backend)
    assert first.location.tolist() == [[[0, 1]]]
    # Equal units: the lowest index.
    text = torch.tensor([[1.0, 2.0, 1.0, 1.0]])
    assert fold_units(text, torch.eye(4), 2, backend=backend).tolist() == [[1.0, 2.0, 0.0, 0.0]]


@pytest.mark.parametrize("shape", FOLDS, ids=str)
def test_fold_matches_reference(cpu_level, shape):
    texts, units, channels, top = shape
    for dtype in DTYPES:
        text = torch.randn(texts, units).to(dtype)
        projection = torch.randn(units, channels).to(dtype)
        check_fold(text, projection, top, f"{cpu_level} {dtype}")


@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_heat_matches_reference(cpu_level, shape):
    batch, channels, height, width, texts = shape
    for dtype in DTYPES:
        maps = torch.randn(batch, channels, height, width).to(dtype)
        last = maps.contiguous(memory_format=torch.channels_last)
        shared, own = torch.randn(texts, channels), torch.randn(batch, texts, channels)
        for folded, view in itertools.product((shared, own), (maps, last)):
            what = f"{cpu_level} {dtype} {list(folded.shape)}"
            check_heat(view, folded, what)
            check_heat(view, folded, what, threshold=0.45, ties="column")
            check_heat(view, folded, what, threshold=0.45, above="zero")


@native
def test_matches_reference_large():
    maps = torch.randn(2, 600, 13, 13)
    text, projection = torch.randn(9, 500), torch.randn(500, 600) / 25
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check_fold(text, projection, 180, f"{threads} threads")
        check_heat(maps, fold_units(text, projection), f"{threads} threads", threshold=0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_folding_first_changes_nothing(backend):
    maps = torch.randn(2, 12, 5, 5)
    text, projection = torch.randn(3, 20), torch.randn(20, 12)
    direct = folded_heatmap(maps, text, projection, 6, threshold=0.3, backend=backend)
    folded = fold_units(text, projection, 6, backend=backend)
    for a, b in zip(
        direct, folded_heatmap(maps, folded, threshold=0.3, backend=backend), strict=True
    ):
        assert torch.equal(a, b)
    # The unfolded form: every unit's own map, then the weighted sum of the chosen ones.
    units = torch.einsum("ud,bdhw->buhw", projection.double(), maps.double())
    for t in range(3):
        chosen = text[t].topk(6).indices
        want = (text[t, chosen].double().abs()[None, :, None, None] * units[:, chosen]).sum(1)
        assert_within(direct.heat[:, t], want, 1e-4, "unfolded")
    own = folded_heatmap(maps, text.expand(2, 3, 20), projection, 6, backend=backend)
    # Plain torch may add up another batch of texts in another order.
    assert_within(own.heat, direct.heat, 0.0 if backend == "native" else 1e-4, "texts per image")


@native
def test_layouts():
    maps, folded = torch.randn(2, 5, 3, 7), torch.randn(2, 4, 5)
    for (name, view), (other, vectors) in itertools.product(layouts(maps), layouts(folded)):
        check_heat(view, vectors, f"maps {name}, texts {other}", threshold=0.5)
    for dim in range(4):
        check_heat(expanded(maps, dim), folded, f"expanded along {dim}")
    text, projection = torch.randn(3, 6), torch.randn(6, 10)
    for (name, view), (other, rows) in itertools.product(layouts(text), layouts(projection)):
        check_fold(view, rows, 4, f"text {name}, projection {other}")
    check_fold(text, projection[:, 2:7], 4, "columns of a wider matrix")
    check_fold(expanded(text), expanded(projection), 4, "expanded")


@native
def test_whole_numbers_are_exact(cpu_level):
    maps = torch.randint(-3, 4, (2, 30, 6, 7)).float()
    text = torch.randint(-3, 4, (5, 21)).float()
    projection = torch.randint(-3, 4, (21, 30)).float()
    for top, ties in itertools.product((1, 8, 21), ("row", "column")):
        options = {"threshold": 0.5, "ties": ties}
        got = folded_heatmap(maps, text, projection, top, backend="native", **options)
        want = folded_heatmap(
            maps.double(), text.double(), projection.double(), top, backend="reference", **options
        )
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a.double(), b.double()), f"{top} {ties}"


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(1, 20), s.sizes(1, 33), s.sizes(1, 9), s.sizes(1, 9), s.seeds())
    def run(units: int, channels: int, height: int, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        maps = torch.randn(1, channels, height, width, generator=generator)
        text = torch.randn(2, units, generator=generator)
        projection = torch.randn(units, channels, generator=generator)
        heat, location, mask = folded_heatmap(
            maps, text, projection, 1 + seed % units, threshold=0.5
        )
        column, row = location[0].unbind(-1)
        best = heat[0, torch.arange(2), row, column]
        assert torch.equal(best, heat[0].amax((1, 2)))
        if height * width > 1:
            assert bool(mask[0, torch.arange(2), row, column].all())
        # Scaling by a power of two scales the heat and moves nothing else.
        again = folded_heatmap(maps * 4, text, projection, 1 + seed % units, threshold=0.5)
        assert torch.equal(again.heat, heat * 4)
        assert torch.equal(again.location, location)
        assert torch.equal(again.mask, mask)

    run()


def test_errors():
    maps, text, projection = torch.randn(2, 5, 3, 3), torch.randn(4, 6), torch.randn(6, 5)
    with pytest.raises(ShapeError, match=r"fold_units: text must have shape \[T, E\], got \[6\]"):
        fold_units(text[0], projection)
    with pytest.raises(ShapeError, match=r"fold_units: projection must have shape \[6, D\]"):
        fold_units(text, projection.T)
    for top in (0, 7):
        with pytest.raises(OptionError, match=r"top_units must be from 1 to the 6 units of text"):
            fold_units(text, projection, top)
    with pytest.raises(DTypeError, match="fold_units: text must be floating point"):
        fold_units(text.long(), projection, 3)
    with pytest.raises(DTypeError, match="projection must be on cpu, got meta"):
        fold_units(text, projection.to("meta"), 3)
    with pytest.raises(OptionError, match=r"projection must not require a gradient.*no_grad"):
        fold_units(text, projection.clone().requires_grad_(), 3)
    with pytest.raises(ShapeError, match=r"maps must have shape \[B, D, h, w\], got \[5, 3, 3\]"):
        folded_heatmap(maps[0], text, projection, 3)
    with pytest.raises(ShapeError, match="maps must have at least one cell"):
        folded_heatmap(maps[:, :, :0], text, projection, 3)
    with pytest.raises(ShapeError, match=r"text must have shape \[T, E\] or \[2, T, E\]"):
        folded_heatmap(maps, text.expand(3, 4, 6), projection, 3)
    with pytest.raises(ShapeError, match=r"projection must have the 5 channels of maps .* got 4"):
        folded_heatmap(maps, text, projection[:, :4], 3)
    with pytest.raises(ShapeError, match=r"text must have the 5 channels of maps .* got 6"):
        folded_heatmap(maps, text)
    with pytest.raises(OptionError, match="threshold must be finite, got nan"):
        folded_heatmap(maps, text, projection, 3, threshold=math.nan)
    with pytest.raises(OptionError, match='above must be "minimum" or "zero", got \'mean\''):
        folded_heatmap(maps, text, projection, 3, above="mean")
    with pytest.raises(OptionError, match='ties must be "row" or "column", got \'last\''):
        folded_heatmap(maps, text, projection, 3, ties="last")
    with pytest.raises(OptionError, match="maps must not require a gradient"):
        folded_heatmap(maps.clone().requires_grad_(), text, projection, 3)
    with pytest.raises(BackendError, match="folded_heatmap has no triton version"):
        folded_heatmap(maps, text, projection, 3, backend="triton")
    if _library.C is not None:
        with pytest.raises(BackendError, match="float64 is not float32/float16/bfloat16"):
            folded_heatmap(maps.double(), text, projection, 3, backend="native")
        with pytest.raises(BackendError, match="float64 is not float32/float16/bfloat16"):
            fold_units(text, projection.double(), 3, backend="native")


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_registration():
    maps, text, projection = torch.randn(2, 5, 3, 4), torch.randn(3, 6), torch.randn(6, 5)
    ops = torch.ops.patchword
    torch.library.opcheck(ops.fold_units.default, (text, projection, 3))
    folded = torch.randn(1, 3, 5)
    for with_mask in (False, True):
        options = (0.5, with_mask, True, False)
        torch.library.opcheck(ops.folded_heatmap.default, (maps, folded, *options))
    meta = folded_heatmap(maps.to("meta"), text.to("meta"), projection.to("meta"), 3)
    assert meta.heat.shape == (2, 3, 3, 4)
    assert explain("fold_units", text, projection)["native"] is None
    assert explain("folded_heatmap", maps, text, projection)["native"] is None
    run = torch.compile(
        lambda m, t, p: folded_heatmap(m, t, p, 3, threshold=0.5),
        fullgraph=True,
        backend="aot_eager",
    )
    want = folded_heatmap(maps, text, projection, 3, threshold=0.5)
    for a, b in zip(run(maps, text, projection), want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_edges(backend):
    one = torch.ones(1, 1)
    maps = torch.randn(1, 1, 4, 5)
    maps[0, 0, 0, 1], maps[0, 0, 2, 3] = math.nan, 50.0
    result = folded_heatmap(maps, one, threshold=0.9, backend=backend)
    assert result.location.tolist() == [[[3, 2]]]
    assert int(result.mask.sum()) == 1
    for ties in ("row", "column"):
        gone = folded_heatmap(
            torch.full((1, 1, 2, 3), math.nan), one, threshold=0.5, ties=ties, backend=backend
        )
        assert gone.location.tolist() == [[[-1, -1]]]
        assert not bool(gone.mask.any())
        low = torch.full((1, 1, 2, 3), -math.inf)
        low[0, 0, 0, 0] = math.nan
        place = folded_heatmap(low, one, ties=ties, backend=backend).location.tolist()
        assert place == ([[[1, 0]]] if ties == "row" else [[[0, 1]]])
    flat = folded_heatmap(torch.ones(1, 1, 2, 2), one, threshold=0.5, backend=backend)
    assert flat.location.tolist() == [[[0, 0]]]
    assert not bool(flat.mask.any())
    # NaN units come last; rows of units that are not chosen are not read.
    text = torch.tensor([[math.nan, 1.0, -3.0, 2.0]])
    projection = torch.eye(4)
    projection[2] = math.nan
    assert fold_units(text, projection, 2, backend=backend).tolist() == [[0.0, 1.0, 0.0, 2.0]]
    infinite = torch.tensor([[-math.inf, 1.0, math.nan, 2.0]])
    three = fold_units(infinite, torch.tensor([[1.0], [1.0], [1.0], [1.0]]), 3, backend=backend)
    assert three.tolist() == [[math.inf]]


@native
def test_repeats_bit_for_bit(cpu_level):
    maps, text = torch.randn(3, 40, 13, 13), torch.randn(7, 90)
    projection = torch.randn(90, 40)
    assert_repeats(lambda: folded_heatmap(maps, text, projection, 30, threshold=0.4))


@native
def test_offsets_beyond_32_bits():
    view = far_apart((1, 3, 3, 4), (0, FAR, 4, 1))
    values = torch.randn(1, 3, 3, 4).bfloat16()
    view.copy_(values)
    folded = torch.randn(2, 3)
    got = folded_heatmap(view, folded, backend="native")
    assert torch.equal(got.heat, folded_heatmap(values, folded, backend="native").heat)


def run_on_cuda_kernels(device: str) -> None:
    for texts, units, channels, top in FOLDS:
        text = torch.randn(texts, units, device=device)
        check_fold(text, torch.randn(units, channels, device=device), top, f"{units} units")
    ties = torch.tensor([[1.0, 2.0, 1.0, math.nan, 1.0] * 14], device=device)
    want = fold_units(ties, torch.eye(70, device=device), 20, backend="reference")
    assert torch.equal(fold_units(ties, torch.eye(70, device=device), 20, backend="native"), want)


def run_heat_on_cuda_kernels(device: str) -> None:
    for batch, channels, height, width, texts in MAPS:
        maps = torch.randn(batch, channels, height, width, device=device)
        for folded in (
            torch.randn(texts, channels, device=device),
            torch.randn(batch, texts, channels, device=device),
        ):
            check_heat(maps, folded, f"{list(maps.shape)}", threshold=0.4, ties="column")
        last = maps.contiguous(memory_format=torch.channels_last).bfloat16()
        check_heat(last, folded, f"{list(maps.shape)} channels-last")


def test_cuda_kernels_on_the_cpu(simt):
    run_on_cuda_kernels("cpu")


def test_cuda_heat_kernels_on_the_cpu(simt):
    run_heat_on_cuda_kernels("cpu")
    test_edges("native")


@pytest.mark.cuda
@pytest.mark.sanitizer
def test_cuda():
    run_on_cuda_kernels("cuda")
    run_heat_on_cuda_kernels("cuda")
