# SPDX-License-Identifier: Apache-2.0
"""Routes of attention: the table, its lookup, and that every route gives the same results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_checks import DTYPES, make

from patchword import _library
from patchword.errors import BackendError, ConfigError, OptionError
from patchword.ops import (
    attention,
    attention_route,
    co_attention,
    dual_attention,
    pair_attention,
    use_backend,
    value_attention,
)
from patchword.ops.attention import routes, torch_sdpa
from patchword.testing import assert_attention, assert_gradient
from patchword.testing import strategies as s

native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")
GRID = {"problems": [1, 64], "queries": [4, 100], "keys": [4, 100], "dim": [8, 64]}
ORIGIN = {"processor": "a test", "torch": "0", "date": "2026-01-01", "command": "none"}


def write(path: Path, *entries: dict[str, Any]) -> Path:
    whole = [{"grid": GRID, "provenance": ORIGIN, "routes": [], **entry} for entry in entries]
    path.write_text(json.dumps({"schema": 1, "devices": whole}), encoding="utf-8")
    return path


@pytest.fixture
def everything_to_torch(tmp_path: Path) -> Iterator[None]:
    """A table that sends every shape on the CPU to torch."""
    path = write(tmp_path / "t.json", {"match": {"device": "cpu"}, "routes": [{"route": "sdpa"}]})
    with routes.use_table(path):
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One ``sdpa`` for each call of torch's attention."""
    taken: list[str] = []
    run = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments: Any, **options: Any) -> Any:
        taken.append("sdpa")
        return run(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return taken


def test_shipped_table_is_valid_and_says_where_it_comes_from():
    entries = routes.read_table(routes.TABLE)
    assert [e for e in entries if e.match == {"device": "cpu"} and not e.measured]
    for entry in entries:
        assert set(entry.match) <= {"device", "cpu_level", "gpu", "capability"}
        if not entry.measured:
            assert len(entry.provenance["not_measured"]) > 10
            continue
        assert all(entry.provenance[name] for name in routes.PROVENANCE)
        assert entry.provenance["command"].startswith("python -m benchmarks.routes --device ")
        # Measured by hand is guessed: the kernels must have been timed on a grid.
        assert entry.provenance["shapes"] >= len(entry.grid[1]) * len(entry.grid[2])
    text = json.loads(routes.TABLE.read_text(encoding="utf-8"))
    for device in text["devices"]:
        for rule in device["routes"]:
            assert "not_measured" in device["provenance"] or rule["gain"] > 1.03


def test_every_shape_gets_the_route_of_the_nearest_point(tmp_path):
    hypothesis = pytest.importorskip("hypothesis")
    rules = [
        {"dtype": "float32", "queries": 4, "keys": 100, "route": "sdpa"},
        {"dtype": ["bfloat16", "float16"], "direction": "training", "route": "sdpa_math"},
        {"dtype": "float32", "form": "dual", "queries": 100, "dim": 64, "route": "sdpa_flash"},
    ]
    path = write(tmp_path / "t.json", {"match": {"device": "cpu"}, "routes": rules})

    def nearest(axis: str, size: int) -> int:
        return min(GRID[axis], key=lambda point: abs(math.log(size / point)))

    sizes = hypothesis.strategies.tuples(*[s.sizes(1, 3000)] * 4)
    forms = hypothesis.strategies.sampled_from(routes.FORMS[:4])

    @hypothesis.given(sizes, s.dtypes(), forms, hypothesis.strategies.booleans())
    @hypothesis.settings(max_examples=60)
    def run(sizes, dtype, form, training):
        got = routes.route(False, -1, dtype, form, training, sizes)
        assert got in routes.ROUTES
        near = {axis: nearest(axis, n) for axis, n in zip(routes.AXES, sizes, strict=True)}
        want = "native"
        if dtype == torch.float32 and near["queries"] == 4 and near["keys"] == 100:
            want = "sdpa"
        elif dtype != torch.float32 and training:
            want = "sdpa_math"
        elif dtype == torch.float32 and form == "dual" and near["queries"] == 100:
            want = "sdpa_flash" if near["dim"] == 64 else "native"
        assert got == want

    with routes.use_table(path):
        run()


def test_a_known_shape_is_looked_up_once(monkeypatch, everything_to_torch):
    shape = (False, -1, torch.float32, "plain", False, (3, 5, 7, 11))
    assert routes.route(*shape) == "sdpa"
    monkeypatch.setattr(routes, "_look_up", None)
    assert routes.route(*shape) == "sdpa"


def test_the_closest_entry_wins_and_unknown_devices_run_natively(tmp_path):
    entries = [
        {"match": {"device": "cuda"}},
        {"match": {"gpu": "A 100"}, "routes": [{"route": "sdpa_cudnn"}]},
        {"match": {"capability": [8, 0]}, "routes": [{"route": "sdpa_flash"}]},
    ]
    with routes.use_table(write(tmp_path / "t.json", *entries)):
        facts = {"device": "cuda", "gpu": "A 100", "capability": [8, 0]}
        for name, value in (("gpu", "A 100"), ("capability", [8, 0]), ("device", "cuda")):
            found = routes.find_entry(facts)
            assert found is not None
            assert found.match == {name: value}
            facts[name] = "something else"
        assert routes.find_entry(facts) is None
        assert routes.route(False, -1, torch.float32, "plain", False, (1, 4, 4, 8)) == "native"
        assert routes.source(False, -1) == "not measured on this device: ours throughout"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routes": [{"route": "warp"}]}, "must name only routes of native, sdpa, .* got 'warp'"),
        ({"routes": [{"route": "sdpa"}] * 2}, "must give every shape one route, got .two for"),
        ({"routes": [{"queries": 5, "route": "sdpa"}]}, "values of queries that exist, got 5"),
        ({"routes": [{"dtype": "int8", "route": "sdpa"}]}, "values of dtype that exist"),
        ({"provenance": {}}, "must say where the routes of .* come from, got 'no processor'"),
        ({"provenance": {**ORIGIN, "date": ""}}, "got 'no date'"),
        ({"grid": {**GRID, "keys": [4, 2]}}, r"list the points of keys .* ascending, got \[4, 2\]"),
        ({"grid": {}}, "list the points of problems"),
        ({"match": None}, 'must give every device a "match"'),
    ],
    ids=str,
)
def test_errors_in_the_table(tmp_path, change, message):
    path = write(tmp_path / "t.json", {"match": {"device": "cpu"}, **change})
    with pytest.raises(ConfigError, match=message) as caught:
        routes.read_table(path)
    assert str(caught.value).startswith(f"attention routes: {path} must ")
    assert "python -m benchmarks.routes" in str(caught.value)


def test_files_that_are_no_table(tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(ConfigError, match="must be a file that can be read, got 'No such file"):
        routes.read_table(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="must be JSON, got"):
        routes.read_table(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match='must hold a list "devices", got'):
        routes.read_table(path)


# On the CPU torch has no cudnn and no efficient kernel: such routes take what there is.
@pytest.mark.parametrize("route", routes.SDPA_ROUTES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_through_every_route(route, dtype):
    q, k, v = make((3, 2, 11, 17, 16), dtype)
    masks = [torch.rand(3, n) > 0.4 for n in (17, 11)]
    masks[0][1] = False
    lengths = torch.tensor([17, 4, 0])
    hidden = (~masks[0])[:, None, :, None]
    poisoned = [torch.where(hidden, torch.nan, t) for t in (k, v)]

    def results() -> list[torch.Tensor]:
        same = (k, v, k)
        return [
            attention(q, k, v),
            attention(q, k, v, scale=0.7),
            attention(q, k, v, key_lengths=lengths),
            attention(q, *poisoned, key_mask=masks[0]),
            value_attention(v),
            *pair_attention(q, q, q, *same, cross=True, key_mask1=masks[0]),
            *co_attention(q, q, q, *same, key_mask0=masks[1]),
            *dual_attention(k, v, k),
        ]

    with routes.use_route(route):
        got = results()
    q, k, v, *poisoned = (t.double() for t in (q, k, v, *poisoned))
    with use_backend("reference"):
        want = results()
    for i, (mine, oracle) in enumerate(zip(got, want, strict=True)):
        assert mine.dtype == dtype
        assert_attention(mine, oracle, f"{route}, result {i}")
    assert (got[3][1] == 0).all()
    assert (got[2][2] == 0).all()


@pytest.mark.parametrize("route", ["sdpa", "sdpa_math"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_through_routes(route, dtype):
    shape = (2, 2, 9, 13, 8)
    mask = torch.rand(2, 13) > 0.4
    mask[1] = False
    tensors = make(shape, dtype)
    seed = torch.randn(2, 2, 9, 8).to(dtype)
    for options in ({}, {"key_mask": mask}):
        inputs = [t.clone().requires_grad_() for t in tensors]
        with routes.use_route(route):
            got = torch.autograd.grad(attention(*inputs, **options), inputs, seed)
        wide = [t.double().requires_grad_() for t in tensors]
        out = attention(*wide, **options, backend="reference")
        want = torch.autograd.grad(out, wide, seed.double())
        for i, (mine, oracle) in enumerate(zip(got, want, strict=True)):
            assert_gradient(mine, oracle, f"{route}, {list(options)}, input {i}")


@native
def test_packed_projections_through_routes():
    packed = torch.randn(2, 17, 3, 4, 24)
    want = attention(*packed.permute(2, 0, 3, 1, 4).unbind(0), backend="native")
    with routes.use_route("sdpa"):
        got = attention(*packed.permute(2, 0, 3, 1, 4).unbind(0))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert got.stride() == want.stride()


def test_torch_is_asked_only_where_it_can_do_the_same(everything_to_torch, calls):
    q, k, v = make((2, 3, 5, 7, 8))
    attention(q, k, v)
    assert calls == ["sdpa"]
    calls.clear()
    attention(q, k, v, return_lse=True)
    attention(q, k, v, scale=-0.5)
    attention(q, k, v, scale=0.0)
    attention(q.mT.contiguous().mT, k, v)
    attention(q, k[:, :, :0], v[:, :, :0])
    packed = torch.randn(6, 2, 8)
    attention(packed, packed, packed, offsets=torch.tensor([0, 2, 6]))
    attention(*(t.double() for t in (q, k, v)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Normalised values stay float32 under autocast.
        value_attention(v, scale=9.0, normalize=True)
    assert calls == []


@native
def test_a_backend_that_is_named_wins(everything_to_torch, calls):
    q, k, v = make((2, 3, 5, 7, 8))
    for backend in ("native", "reference"):
        attention(q, k, v, backend=backend)
        with use_backend(backend):
            attention(q, k, v)
    assert calls == []


def test_wide_heads_take_torch_in_place_of_the_stored_scores(calls):
    q, k, v = make((1, 2, 5, 7, 160))
    assert_attention(
        attention(q, k, v), attention(*(t.double() for t in (q, k, v))), "head size 160"
    )
    assert calls == ["sdpa"]
    assert attention(q, k, v, return_lse=True)[1].shape == (1, 2, 5)
    assert calls == ["sdpa"]


def test_forced_routes_that_cannot_run():
    q, k, v = make((1, 1, 3, 4, 8))
    with routes.use_route("sdpa"):
        with pytest.raises(BackendError, match='route "sdpa" cannot run here: it does not return'):
            attention(q, k, v, return_lse=True)
        with pytest.raises(BackendError, match=r"the scale -1\.0 is not positive"):
            attention(q, k, v, scale=-1.0)
    with pytest.raises(OptionError, match="use_route: name must be one of native, sdpa,"):
        routes.use_route("fast").__enter__()


def test_gradients_on_a_gpu_stay_ours_where_torch_must_be_deterministic():
    from torch._subclasses import FakeTensorMode

    from patchword.ops.attention.streams import EVERY_KEY, make_stream

    with FakeTensorMode():
        rows = torch.empty(1, 2, 4, 8, device="cuda")
    stream = make_stream("attention", ("q", "k", "v"), (rows, rows, rows), 1.0, EVERY_KEY, None)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(False)
        assert torch_sdpa.refuse([stream], False, True) is None
        torch.use_deterministic_algorithms(True)
        assert "deterministic" in str(torch_sdpa.refuse([stream], False, True))
        assert torch_sdpa.refuse([stream], False, False) is None
    finally:
        torch.use_deterministic_algorithms(before)


@native
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_calls_take_the_same_routes(tmp_path):
    rules = [{"queries": 4, "route": "sdpa"}, {"queries": 100, "keys": 4, "route": "sdpa_math"}]
    path = write(tmp_path / "t.json", {"match": {"device": "cpu"}, "routes": rules})

    def function(q, k, v):
        return attention(q, k, v) + attention(q, k, v, return_lse=True)[0]

    names: list[set[str]] = []

    def note(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        names.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    with routes.use_table(path):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend=note, dynamic=True)
        for shape in ((2, 2, 6, 9, 16), (2, 2, 7, 11, 16), (2, 2, 60, 70, 16), (2, 2, 61, 5, 16)):
            tensors = make(shape)
            assert_attention(compiled(*tensors), function(*tensors).double(), str(shape))
    torched = [any("scaled_dot_product" in name for name in found) for found in names]
    assert torched == [True, False, True]  # the second shape falls under the first graph


@native
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_gradients_through_torch(everything_to_torch):
    inputs = [t.requires_grad_() for t in make((1, 2, 5, 7, 8))]

    def function(*t):
        return attention(*t).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(function(*inputs), inputs)
    for a, b in zip(torch.autograd.grad(compiled(*inputs), inputs), want, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_meta_tensors_autocast_and_second_gradients(everything_to_torch, calls):
    out = attention(*make((2, 3, 4, 5, 8), device="meta"))
    assert out.shape == (2, 3, 4, 8)
    q, k, v = make((2, 3, 4, 5, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k.bfloat16(), v).dtype == torch.bfloat16
    assert calls == ["sdpa", "sdpa"]
    inputs = [t.requires_grad_() for t in (q, k, v)]
    first = torch.autograd.grad(attention(*inputs).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=r"not implemented|does not require grad"):
        torch.autograd.grad(first[0].sum(), inputs)


def test_attention_route_says_which_and_why(everything_to_torch):
    q, k, v = make((2, 3, 4, 5, 8))
    for form in ("plain", "pair", "dual", "masked"):
        route = attention_route(q, k, v, form=form)
        assert route.name == "sdpa"
        assert route.source == "measured on a test, torch 0, 2026-01-01"
    with pytest.raises(OptionError, match="form must be one of plain, pair, dual, masked, got 'x'"):
        attention_route(q, k, v, form="x")


@native
def test_the_default_is_native(tmp_path):
    with routes.use_table(write(tmp_path / "t.json", {"match": {"gpu": "none"}})):
        q, k, v = make((2, 3, 4, 5, 8))
        assert attention_route(q, k, v).name == "native"
        assert torch.equal(attention(q, k, v), attention(q, k, v, backend="native"))


def test_constants_are_marked_as_torch_marks_them():
    def marked_by_torch() -> None: ...

    torch.compiler.assume_constant_result(marked_by_torch)
    for function in (routes._edge, routes._at):
        assert vars(marked_by_torch).items() <= vars(function).items()
