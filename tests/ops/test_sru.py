# SPDX-License-Identifier: Apache-2.0
"""sru: hand-computed steps, then the seven standard tests against the reference in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from op_checks import BACKENDS, DTYPES, FAR, assert_graph_replays, assert_repeats, far_apart, native
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, sru
from patchword.testing import assert_gradient, assert_within, expanded, layouts, rounding
from patchword.testing import strategies as s

# L, B, d: empty, one, primes, vector widths and runs of units +- 1.
SHAPES = [
    (0, 2, 4),
    (3, 0, 4),
    (3, 2, 0),
    (1, 1, 2),
    (5, 3, 6),
    (3, 2, 34),
    (7, 2, 64),
    (2, 3, 510),
    (4, 1, 514),
]
VARIANTS = list(
    itertools.product(
        (3, 4),
        ("tanh", "identity"),
        ("activation", "difference"),
        (False, True),
        (False, True),
    )
)


def make(shape, count=3, *, full=True, dtype=torch.float32) -> dict[str, Any]:
    """Every input of a call: all of them, or those that must be given."""
    steps, batch, units = shape
    inputs = {
        "gates": torch.randn(steps, batch, count, units).to(dtype),
        "bias": torch.randn(2 * units) * 0.5,
        "weight": torch.randn(2 * units) * 0.5,
    }
    if count == 3:
        inputs["highway"] = torch.randn(steps, batch, units).to(dtype)
    if full:
        inputs["initial"] = torch.randn(batch, units)
        inputs["mask"] = (torch.rand(batch, units) > 0.3).float() / 0.7
        inputs["lengths"] = torch.randint(-1, steps + 3, (batch,))
    return inputs


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def tolerance(dtype: torch.dtype, want: Tensor) -> Tensor:
    return 1e-5 + rounding(dtype, want.abs() + 1e-5)


def check(inputs: dict[str, Any], what: str, **options: Any) -> None:
    out, state = sru(**inputs, **options, backend="native")
    want, want_state = sru(**double(inputs), **options, backend="reference")
    assert out.dtype == inputs["gates"].dtype
    assert state.dtype == torch.float32
    assert_within(out, want, tolerance(out.dtype, want), f"{what}: h")
    assert_within(state, want_state, 1e-5, f"{what}: c")


def leaves_of(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point() and name != "mask"
        else value
        for name, value in inputs.items()
    }


def check_gradients(inputs: dict[str, Any], what: str, **options: Any) -> None:
    names = [n for n, v in leaves_of(inputs).items() if getattr(v, "requires_grad", False)]
    results = []
    out_grad = state_grad = None
    for backend, given in (("reference", double(inputs)), ("native", inputs)):
        leaves = leaves_of(given)
        out, state = sru(**leaves, **options, backend=backend)
        if out_grad is None:
            dtype = inputs["gates"].dtype
            out_grad = torch.randn(out.shape, device=out.device).to(dtype)
            state_grad = torch.randn(state.shape, device=out.device)
        grads = torch.autograd.grad(
            (out, state),
            [leaves[n] for n in names],
            (out_grad.to(out.dtype), state_grad.to(state.dtype)),
        )
        results.append(grads)
    for name, want, got in zip(names, *results, strict=True):
        dtype = inputs["gates"].dtype
        assert got.dtype == inputs[name].dtype
        assert_gradient(got, want, f"{what}: {name}", dtype=dtype)


def options_of(variant) -> tuple[int, dict[str, Any]]:
    count, activation, dropout, bidirectional, last_only = variant
    return count, {
        "activation": activation,
        "dropout": dropout,
        "bidirectional": bidirectional,
        "last_only": last_only,
        "scale_x": 1.25,
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_steps_by_hand(backend):
    gates = torch.tensor([[0.5, 0.2, -0.3], [-0.4, 0.6, 0.8]]).reshape(2, 1, 3, 1)
    leaves = {
        "gates": gates,
        "bias": torch.tensor([0.1, 0.05]),
        "weight": torch.tensor([0.3, -0.2]),
        "highway": torch.tensor([1.0, -0.5]).reshape(2, 1, 1),
        "initial": torch.tensor([[0.4]]),
    }
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    out, state = sru(**leaves, backend=backend)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.75464151, -0.03436347]))
    torch.testing.assert_close(state, torch.tensor([[0.18503199]]))
    grads = torch.autograd.grad(out[1].sum(), list(leaves.values()))
    wanted = (
        [[0.18421758, -0.01111722, 0.0], [0.19983285, 0.11690861, 0.14816419]],
        [0.10579139, 0.14816419],
        [0.04695218, 0.06514063],
        [0.0, 0.31819709],
        [0.27703691],
    )
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got.flatten(), torch.tensor(want).flatten())


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_placements_by_hand(backend):
    inputs = {
        "gates": torch.tensor([0.5, 0.2, -0.3]).reshape(1, 1, 3, 1),
        "bias": torch.tensor([0.1, 0.05]),
        "weight": torch.zeros(2),
        "highway": torch.ones(1, 1, 1),
        "initial": torch.tensor([[0.4]]),
        "backend": backend,
    }
    mask = torch.full((1, 1), 4 / 3)
    assert sru(**inputs)[0].item() == pytest.approx(0.74420629, abs=1e-6)
    assert sru(**inputs, mask=mask)[0].item() == pytest.approx(0.80488288, abs=1e-6)
    later = sru(**inputs, mask=mask, dropout="difference")[0].item()
    assert later == pytest.approx(0.65894171, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_layers_by_hand(backend):
    first = torch.tensor([[1, 0.5, -0.5, 2, -1, 0, 1, 0.5]])
    second = torch.tensor([[1, 0, 0.5, 0, 1, 0], [0.5, 0.5, 0, -1, 0, 1]])
    x = torch.tensor([1.0, -0.5]).reshape(2, 1, 1)
    none = torch.zeros(4)
    interleaved = (x @ first).view(2, 1, 2, 4).transpose(2, 3)
    h, c = sru(interleaved, torch.tensor([0, 0.1, 0.2, 0]), none, backend=backend)
    torch.testing.assert_close(
        h[:, 0], torch.tensor([[1.30232820, -0.18883782], [-0.45975363, -0.16009438]])
    )
    torch.testing.assert_close(c, torch.tensor([[-0.11579207, -0.01186563]]))
    interleaved = (h @ second).view(2, 1, 2, 3).transpose(2, 3)
    h, c = sru(interleaved, none, none, highway=h, backend=backend)
    torch.testing.assert_close(
        h[:, 0], torch.tensor([[0.81424132, -0.08503325], [-0.24605530, -0.03433128]])
    )
    torch.testing.assert_close(c, torch.tensor([[0.02287627, 0.11375517]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(cpu_level, dtype, shape):
    for variant in VARIANTS if shape[2] <= 6 and dtype == torch.float32 else VARIANTS[::5]:
        count, options = options_of(variant)
        check(make(shape, count, dtype=dtype), f"{cpu_level} {variant}", **options)
    check(make(shape, full=False, dtype=dtype), f"{cpu_level} plain")


@native
def test_a_hundred_steps():
    inputs = make((100, 3, 48), full=False)
    check(inputs, "100 steps")
    # Ten times the values, ten times the error.
    large = {**inputs, "gates": inputs["gates"] * 10}
    out, _ = sru(**large, backend="native")
    want, _ = sru(**double(large), backend="reference")
    assert_within(out, want, 1e-4, "100 steps of large gates")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 3, 6), (3, 2, 34), (2, 2, 514)], ids=str)
def test_gradients(cpu_level, dtype, shape):
    for variant in VARIANTS if shape[2] <= 6 and dtype == torch.float32 else VARIANTS[::7]:
        count, options = options_of(variant)
        check_gradients(make(shape, count, dtype=dtype), f"{cpu_level} {variant}", **options)


@native
def test_gradients_of_empty_calls():
    for shape in ((0, 2, 4), (3, 0, 4), (3, 2, 0)):
        leaves = leaves_of(make(shape))
        out, state = sru(**leaves, backend="native")
        (out.sum() + state.sum()).backward()
        initial = leaves.pop("initial")
        assert torch.equal(initial.grad, torch.ones_like(initial))
        for value in leaves.values():
            if getattr(value, "requires_grad", False):
                assert torch.equal(value.grad, torch.zeros_like(value))


def test_gradcheck():
    for variant in VARIANTS:
        count, options = options_of(variant)
        leaves = leaves_of(double(make((3, 2, 4), count)))
        names = [n for n, v in leaves.items() if getattr(v, "requires_grad", False)]

        def run(*values, names=names, leaves=leaves, options=options):
            return sru(**{**leaves, **dict(zip(names, values, strict=True))}, **options)

        torch.autograd.gradcheck(run, [leaves[n] for n in names], fast_mode=True)


@native
def test_layouts():
    inputs = make((3, 2, 34))
    for (name, gates), (other, highway) in zip(
        layouts(inputs["gates"]), itertools.cycle(layouts(inputs["highway"]))
    ):
        view = {**inputs, "gates": gates, "highway": highway}
        check(view, f"gates {name}, highway {other}")
        check_gradients(view, f"gates {name}, highway {other}")
    for dim in range(4):
        check({**inputs, "gates": expanded(inputs["gates"], dim)}, f"expanded along {dim}")
    for name in ("bias", "weight"):
        check({**inputs, name: torch.randn(136)[::2]}, f"{name} sliced")
    interleaved = torch.randn(3, 2, 34, 3).transpose(2, 3)
    out, _ = sru(**{**inputs, "gates": interleaved.requires_grad_()}, backend="native")
    (grad,) = torch.autograd.grad(out.sum(), interleaved)
    assert grad.stride() == interleaved.stride()


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(1, 9), s.sizes(1, 5), s.sizes(1, 40), s.seeds())
    def run(steps: int, batch: int, units: int, seed: int) -> None:
        torch.manual_seed(seed)
        inputs = make((steps, batch, units), full=False)
        out, state = sru(**inputs)
        # What comes later changes nothing earlier, and a length is a shorter call.
        part = {**inputs, "gates": inputs["gates"][:1], "highway": inputs["highway"][:1]}
        head, early = sru(**part)
        assert torch.equal(head, out[:1])
        short, frozen = sru(**inputs, lengths=torch.ones(batch, dtype=torch.long))
        assert torch.equal(short[:1], head)
        assert torch.equal(frozen, early)
        assert not bool(short[1:].any())
        # The last output is the last row; two calls in a row are one call.
        last, same = sru(**inputs, last_only=True)
        assert_within(last, out[-1].double(), 1e-6, "last output")
        assert_within(same, state.double(), 1e-6, "state")
        rest = {**inputs, "gates": inputs["gates"][1:], "highway": inputs["highway"][1:]}
        tail, final = sru(**rest, initial=early)
        assert torch.equal(tail, out[1:])
        assert torch.equal(final, state)
        # The state is an average of the candidates.
        top = inputs["gates"][:, :, 0].abs().amax()
        assert float(state.abs().max()) <= float(top) * (1 + 1e-5)

    run()


def test_errors():
    inputs = make((3, 2, 4))
    cases = [
        (
            ShapeError,
            r"gates must have shape \[L, B, 3 or 4, d\]",
            {"gates": torch.rand(3, 2, 5, 4)},
        ),
        (ShapeError, r"bias must have shape \[8\], got \[4\]", {"bias": torch.rand(4)}),
        (ShapeError, r"weight must have shape \[8\]", {"weight": torch.rand(8, 1)}),
        (ShapeError, "highway must be given with 3 gates", {"highway": None}),
        (ShapeError, "highway must be absent with 4", {"gates": torch.rand(3, 2, 4, 4)}),
        (ShapeError, r"highway must have shape \[3, 2, 4\]", {"highway": torch.rand(3, 2, 5)}),
        (ShapeError, r"initial must have shape \[2, 4\]", {"initial": torch.rand(4)}),
        (ShapeError, r"mask must have shape \[2, 4\]", {"mask": torch.rand(3, 2, 4)}),
        (ShapeError, r"lengths must have shape \[2\]", {"lengths": torch.tensor([1])}),
        (DTypeError, "gates must be floating point", {"gates": torch.ones(3, 2, 3, 4).long()}),
        (DTypeError, "lengths must be integers", {"lengths": torch.ones(2)}),
        (DTypeError, "bias must be floating point", {"bias": torch.ones(8).long()}),
        (DTypeError, "mask must be on cpu", {"mask": torch.ones(2, 4, device="meta")}),
        (OptionError, "activation must be .* got 'relu'", {"activation": "relu"}),
        (OptionError, "dropout must be .* got 'both'", {"dropout": "both"}),
    ]
    for error, text, change in cases:
        with pytest.raises(error, match=f"^sru: {text}"):
            sru(**{**inputs, **change})
    with pytest.raises(OptionError, match="even number of units, got 3"):
        sru(**make((2, 1, 3)), bidirectional=True)
    if _library.C is not None:
        with pytest.raises(BackendError, match="float64 is not"):
            sru(**double(inputs), backend="native")


def tensors_of(inputs: dict[str, Any]) -> tuple[Tensor | None, ...]:
    names = ("gates", "highway", "bias", "weight", "initial", "mask", "lengths")
    return tuple(inputs.get(name) for name in names)


@native
def test_registration():
    inputs = make((3, 2, 20))
    options = (1.0, 0, 0, True, False)
    torch.library.opcheck(
        torch.ops.patchword.sru_forward.default, (*tensors_of(inputs), *options, True)
    )
    states = torch.ops.patchword.sru_forward(*tensors_of(inputs), *options, True)[2]
    torch.library.opcheck(
        torch.ops.patchword.sru_backward.default,
        (torch.randn(3, 2, 20), torch.randn(2, 20), states, *tensors_of(inputs), *options),
    )
    meta, _ = sru(**{n: v.to("meta") for n, v in inputs.items()})
    assert meta.is_meta
    assert meta.shape == (3, 2, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sru(**inputs)[0].dtype == torch.float32
    assert explain("sru", inputs["gates"])["native"] is None


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_into_one_graph():
    inputs = leaves_of(make((3, 2, 20)))
    names = [n for n, v in inputs.items() if getattr(v, "requires_grad", False)]

    def loss(**given):
        out, state = sru(**given, bidirectional=True)
        return out.square().sum() + state.sum()

    leaves = [inputs[n] for n in names]
    run = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(run(**inputs), leaves)
    for a, b in zip(got, torch.autograd.grad(loss(**inputs), leaves), strict=True):
        assert_gradient(a, b.double(), "compiled")


@native
def test_edges(cpu_level):
    inputs = make((4, 2, 20), full=False)
    gates = inputs["gates"]
    gates[1, 0, 0, 3] = torch.nan
    gates[1, 0, 1, 4] = torch.inf
    gates[2, 0, 2, 5] = -torch.inf
    gates[:, 1, 1:] = torch.randn(4, 2, 20) * 1e4
    out, state = sru(**inputs, backend="native")
    want, want_state = sru(**double(inputs), backend="reference")
    assert_within(out, want, 1e-5, f"{cpu_level}: h")
    assert_within(state, want_state, 1e-5, f"{cpu_level}: c")
    assert bool(out[1:, 0, 3].isnan().all())
    assert int(out.isnan().sum()) == 3
    small = {**inputs, "gates": torch.randn(4, 2, 3, 20) * 1e-4, "highway": torch.zeros(4, 2, 20)}
    out, _ = sru(**small, backend="native")
    want, _ = sru(**double(small), backend="reference")
    assert_within(out, want, 1e-6 * want.abs().max(), "tiny states keep their relative precision")


@native
def test_repeats_bit_for_bit(cpu_level):
    inputs = make((6, 7, 520))

    def run():
        leaves = leaves_of(inputs)
        out, state = sru(**leaves, bidirectional=True)
        wanted = [v for v in leaves.values() if getattr(v, "requires_grad", False)]
        return out, state, *torch.autograd.grad(out.sum() + state.sum(), wanted)

    assert_repeats(run)


@native
def test_offsets_beyond_32_bits():
    view = far_apart((3, 1, 4, 8), (FAR, 0, 8, 1))
    view.copy_(torch.randn(3, 1, 4, 8))
    inputs = make((3, 1, 8), 4, dtype=torch.bfloat16)
    want, _ = sru(**{**inputs, "gates": view.clone()}, backend="native")
    got, _ = sru(**{**inputs, "gates": view}, backend="native")
    assert torch.equal(got, want)


def run_on_cuda_kernels(shape, dtype, device: str) -> None:
    for variant in VARIANTS[::5]:
        count, options = options_of(variant)
        inputs = {n: v.to(device) for n, v in make(shape, count, dtype=dtype).items()}
        check(inputs, f"{variant}", **options)
        if 0 not in shape:
            check_gradients(inputs, f"{variant}", **options)
    plain = {n: v.to(device) for n, v in make(shape, full=False, dtype=dtype).items()}
    check(plain, "plain")


CUDA_SHAPES = [(3, 2, 0), (0, 2, 4), (1, 1, 2), (3, 2, 34), (2, 3, 130)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CUDA_SHAPES, ids=str)
def test_cuda_kernels_on_the_cpu(simt, dtype, shape):
    run_on_cuda_kernels(shape, dtype, "cpu")


def test_cuda_kernels_on_the_cpu_packs_of_units(simt):
    inputs = make((2, 8, 4096))
    check(inputs, "packs", bidirectional=True)
    check_gradients(inputs, "packs")


@pytest.mark.cuda
@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*CUDA_SHAPES, (20, 128, 2400)], ids=str)
def test_cuda(dtype, shape):
    run_on_cuda_kernels(shape, dtype, "cuda")


@pytest.mark.cuda
def test_cuda_graph():
    inputs = {n: v.cuda() for n, v in make((5, 3, 64)).items()}
    assert_graph_replays(lambda: sru(**inputs)[0])
