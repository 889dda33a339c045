# SPDX-License-Identifier: Apache-2.0
"""Small attention calls that take over the plan of one like them, and nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_checks import DTYPES, make
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import attention, use_backend
from patchword.ops.attention import planned, routes
from patchword.testing import assert_attention, assert_gradient, layouts

native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")
SHAPE = (2, 3, 5, 7, 8)


@pytest.fixture(autouse=True)
def _no_plans() -> None:
    _library.settings_changed()


def reference(*tensors: Tensor, **options: Any) -> Tensor:
    out = attention(*(t.detach().double() for t in tensors), backend="reference", **options)
    assert isinstance(out, Tensor)
    return out


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_repeated_call_gets_its_own_result(dtype, monkeypatch):
    calls = [make(SHAPE, dtype) for _ in range(3)]
    want = [attention(*tensors, return_lse=True)[0] for tensors in calls]  # never planned
    got = [attention(*calls[0], backend="native")]
    monkeypatch.setattr(planned, "_find", None)  # the others find a plan, or fail
    got += [attention(*tensors, backend="native") for tensors in calls[1:]]
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeated_gradients(cpu_level, dtype):
    for _ in range(3):
        tensors = [t.requires_grad_() for t in make(SHAPE, dtype)]
        seed = torch.randn(2, 3, 5, 8).to(dtype)
        out = attention(*tensors, scale=0.3, backend="native")
        assert type(out.grad_fn).__name__ == "_PlannedBackward"
        got = torch.autograd.grad(out, tensors, seed)
        # The way of all calls, which log-sum-exps take.
        general = attention(*tensors, scale=0.3, return_lse=True, backend="native")[0]
        for a, b in zip(got, torch.autograd.grad(general, tensors, seed), strict=True):
            assert torch.equal(a, b)
        wide = [t.detach().double().requires_grad_() for t in tensors]
        exact = attention(*wide, scale=0.3, backend="reference")
        want = torch.autograd.grad(exact, wide, seed.double())
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_gradient(a, b, f"{cpu_level}, input {i}")


@native
def test_each_layout_has_a_plan_of_its_own():
    q, k, v = make((2, 3, 9, 9, 20))
    views = [[t for _, t in layouts(rows)] for rows in (q, k, v)]
    want = reference(q, k, v)
    for _ in range(2):
        for tensors in zip(*views, strict=True):
            assert_attention(attention(*tensors, backend="native"), want, str(tensors[0].stride()))
            inputs = [t.detach().requires_grad_() for t in tensors]
            out = attention(*inputs, backend="native")
            grads = torch.autograd.grad(out, inputs, torch.ones(()).expand(out.shape))
            for mine, base in zip(grads, inputs, strict=True):
                assert mine.shape == base.shape
                assert mine.isfinite().all()


@native
@pytest.mark.parametrize("place", range(3))
def test_one_input_of_another_layout(place):
    tensors = make(SHAPE)
    want = attention(*tensors, backend="native")
    other = list(tensors)
    other[place] = other[place].transpose(1, 2).contiguous().transpose(1, 2)
    for _ in range(2):
        assert torch.equal(attention(*other, backend="native"), want)
        assert torch.equal(attention(*tensors, backend="native"), want)


@native
def test_calls_with_and_without_gradients_take_turns():
    tensors = [t.requires_grad_() for t in make(SHAPE)]
    for _ in range(2):
        with torch.no_grad():
            alone = attention(*tensors, backend="native")
        out = attention(*tensors, backend="native")
        assert torch.equal(alone, out)
        assert not alone.requires_grad
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), tensors))


@native
def test_bad_calls_between_good_ones_of_the_same_shapes():
    q, k, v = make(SHAPE)
    want = attention(q, k, v, backend="native")

    def check(error: type[Exception], text: str, call: Callable[[], Any]) -> None:
        for _ in range(2):
            torch.testing.assert_close(attention(q, k, v), want)
            assert torch.equal(attention(q, k, v, backend="native"), want)
            with pytest.raises(error, match=text):
                call()

    double, whole, far = k.double(), q.long(), v.to("meta")
    check(DTypeError, "attention: k must be torch.float32, got", lambda: attention(q, double, v))
    check(DTypeError, "k must be torch.float64, got", lambda: attention(q.double(), k, v))
    check(DTypeError, "v must be torch.float32, got", lambda: attention(q, k, v.double()))
    check(DTypeError, "attention: q must be floating", lambda: attention(whole, whole, whole))
    check(DTypeError, "attention: v must be on cpu, got meta", lambda: attention(q, k, far))
    check(ShapeError, "attention: v must have shape", lambda: attention(q, k, v[:, :, :4]))
    check(ShapeError, "attention: k must have batch", lambda: attention(q, k[:1], v[:1]))
    check(ShapeError, "v must have shape", lambda: attention(q, k[:, :, :4], v))
    check(ShapeError, "k must have batch", lambda: attention(q[:1], k, v))
    check(OptionError, "must be finite, got nan", lambda: attention(q, k, v, scale=float("nan")))
    check(OptionError, "must be finite, got inf", lambda: attention(q, k, v, scale=float("inf")))
    check(OptionError, "backend must be one of", lambda: attention(q, k, v, backend="fast"))
    mask = torch.ones(2, 7)
    check(DTypeError, "key_mask must be bool", lambda: attention(q, k, v, key_mask=mask))
    check(
        BackendError,
        "dtype float64 is not",
        lambda: attention(q.double(), double, v.double(), backend="native"),
    )


def test_a_scale_that_changes_in_place_is_read_each_time():
    q, k, v = make(SHAPE)
    scale = torch.tensor(0.1)
    for value in (0.1, 2.0, 0.1):
        scale.fill_(value)
        assert_attention(attention(q, k, v, scale=scale), reference(q, k, v, scale=value), "scale")
    for value in (-0.5, 0.0, 1, 0.7):
        assert_attention(attention(q, k, v, scale=value), reference(q, k, v, scale=value), "scale")


@native
def test_a_change_of_settings_takes_effect_at_once(tmp_path: Path, monkeypatch):
    taken: list[str] = []
    torchs = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments: Any, **options: Any) -> Tensor:
        taken.append("torch")
        return torchs(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    launch = planned._launch

    def ours(*arguments: Any) -> Tensor:
        taken.append("ours")
        return launch(*arguments)

    monkeypatch.setattr(planned, "_launch", ours)
    entry = {
        "match": {"device": "cpu"},
        "grid": {name: [4] for name in routes.AXES},
        "provenance": {name: "a test" for name in routes.PROVENANCE},
    }
    table = routes._Reader(tmp_path).entry({**entry, "routes": [{"route": "sdpa"}]})
    q, k, v = make(SHAPE)

    def call() -> list[str]:
        taken.clear()
        attention(q, k, v)
        return list(taken)

    with routes.use_route("native"):
        assert call() == call() == ["ours"]
        with routes.use_route("sdpa"):
            assert call() == call() == ["torch"]
            with use_backend("reference"):
                assert call() == []
            assert call() == ["torch"]
        assert call() == ["ours"]
        with use_backend("reference"):
            assert call() == []
        with use_backend("native"), routes.use_route("sdpa"):
            assert call() == ["ours"]
        assert attention(q, k, v, backend="reference").shape == q.shape
        assert call() == ["ours"]
    monkeypatch.setattr(routes, "read_table", lambda path: () if path == "none" else (table,))
    with routes.use_table("none"):
        assert call() == ["ours"]
        with routes.use_table("torch"):
            assert call() == ["torch"]
        assert call() == ["ours"]


def test_other_levels_have_other_routes(monkeypatch):
    if _library.C is None or _library.C.cpu_level() == "generic":
        pytest.skip("needs a second level of the CPU kernels")
    q, k, v = make(SHAPE)
    found: list[str] = []
    find = planned._find

    def note(*arguments: Any) -> Any:
        found.append(_library.C.cpu_level())
        return find(*arguments)

    monkeypatch.setattr(planned, "_find", note)
    here = _library.C.cpu_level()
    attention(q, k, v)
    with _library.cpu_level("generic"):
        attention(q, k, v)
    attention(q, k, v)
    assert found == [here, "generic", here]


@native
def test_the_number_of_plans_is_bounded(monkeypatch):
    monkeypatch.setattr(planned, "_MOST_PLANS", 4)
    for count in range(1, 12):
        q = torch.randn(1, 1, count, 4)
        assert_attention(attention(q, q, q), reference(q, q, q), str(count))
        assert len(_library.plans) <= 4


# torch maps its attention over a batch one by one, and says so.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_modes_and_transforms_still_see_the_call():
    q, k, v = make(SHAPE)
    want = attention(q, k, v)
    seen: list[str] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append("function")
            return function(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Operators():
        torch.testing.assert_close(attention(q, k, v), want)
    assert any("attention" in name for name in seen)
    seen.clear()
    with Functions():
        attention(q, k, v)
    assert seen
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k, v).dtype == torch.bfloat16
    stacked = torch.stack([q, q])
    with routes.use_route("sdpa"):
        attention(q, k, v)
        mapped = torch.func.vmap(lambda rows: attention(rows, k, v))(stacked)
    torch.testing.assert_close(mapped, torch.stack([want, want]))


@native
def test_hooks_see_what_is_saved_and_may_move_it():
    tensors = [t.requires_grad_() for t in make(SHAPE)]
    views = [t.mT.contiguous().mT for t in tensors[:1]] + tensors[1:]
    seed = torch.randn(2, 3, 5, 8)
    want = torch.autograd.grad(attention(*tensors, backend="native"), tensors, seed)
    packed: list[torch.Size] = []

    def pack(rows: Tensor) -> Tensor:
        packed.append(rows.shape)
        return rows.detach().transpose(1, 2).contiguous()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda rows: rows.transpose(1, 2)):
        out = attention(*tensors, backend="native")
    for a, b in zip(torch.autograd.grad(out, tensors, seed), want, strict=True):
        assert torch.equal(a, b)
    assert len(packed) == 4
    again = torch.autograd.grad(attention(*views, backend="native"), tensors, seed)
    for a, b in zip(again, want, strict=True):
        torch.testing.assert_close(a, b)


@native
def test_changed_inputs_and_second_gradients_are_refused():
    q, k, v = (t.requires_grad_() for t in make(SHAPE))
    out = attention(q, k, v, backend="native")
    with torch.no_grad():
        k.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    out = attention(q, k, v, backend="native")
    (first,) = torch.autograd.grad(out, (q,), torch.ones(out.shape), create_graph=True)
    with pytest.raises(UserWarning, match="patchword::attention_backward: an autograd kernel was"):
        torch.autograd.grad(first.sum(), (q,))


@native
def test_gradients_of_some_inputs_only():
    q, k, v = make(SHAPE)
    seed = torch.randn(2, 3, 5, 8)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    want = torch.autograd.grad(attention(*leaves, backend="native"), leaves, seed)
    for place in range(3):
        inputs = [q, k, v]
        inputs[place] = inputs[place].clone().requires_grad_()
        attention(*inputs, backend="native").backward(seed)
        assert torch.equal(inputs[place].grad, want[place])
    same = q.clone().requires_grad_()
    other = q.clone().requires_grad_()
    alone = attention(same, same, same, backend="native")
    (got,) = torch.autograd.grad(alone, same, seed)
    general = attention(other, other, other, return_lse=True, backend="native")[0]
    torch.testing.assert_close(got, torch.autograd.grad(general, other, seed)[0])
