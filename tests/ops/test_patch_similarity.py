# SPDX-License-Identifier: Apache-2.0
"""patch_similarity: every backend and CPU level against the float64 reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from op_checks import DTYPES
from op_checks import native as needs_native
from similarity_checks import ALL, SHAPES, check, random_inputs

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, pack_queries, patch_similarity
from patchword.testing import assert_gradient, expanded, layouts

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"metric": "dot"},
    {"scale": 14.0, "channels_last": True},
    {"bias": 0.25, "background": 0.1, "top_k": 3},
)


# ---------------------------------------------------------------- 1: matches the reference


@pytest.mark.parametrize("options", OPTIONS, ids=["cosine", "dot", "last", "background"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape: Any, dtype: torch.dtype, options: Any, cpu_level: str) -> None:
    patches, queries = random_inputs(shape, dtype, batched=shape[3] % 2 == 0)
    check(patches, queries, f"{cpu_level} {dtype}", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_in_its_own_dtype(dtype: torch.dtype) -> None:
    patches, queries = random_inputs((2, 17, 33, 13), dtype)
    check(patches, queries, f"reference {dtype}", backend="reference", scale=3.0)


@pytest.mark.parametrize("group_reduce", ["max", "mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_and_masks(dtype: torch.dtype, group_reduce: str, cpu_level: str) -> None:
    patches, queries = random_inputs((2, 21, 19, 14), dtype)
    # Class 1 has no prompt; prompts of 9 and -1 have no class.
    groups = torch.tensor([2, 0, 0, 2, 3, 9, 3, 2, 0, 3, -1, 2, 0, 4])
    mask = torch.rand(2, 14) > 0.2
    mask[:, 13] = False  # class 4 has excluded prompts alone
    bias = torch.randn(14)
    options = {"groups": groups, "group_reduce": group_reduce, "num_groups": 5, "bias": bias}
    for extra in ({}, {"class_mask": mask}, {"class_mask": mask[0], "background": 0.3}):
        found = check(patches, queries, f"{cpu_level} {dtype}", **options, **extra)
        assert found["logits"].shape == (2, 5, 21)
        assert found["logits"][:, 1].isneginf().all()
        assert (found["softmax"][:, 1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_class_mask(dtype: torch.dtype, cpu_level: str) -> None:
    patches, queries = random_inputs((2, 21, 19, 14), dtype)
    mask = torch.rand(2, 14) > 0.5
    found = check(patches, queries, f"{cpu_level} {dtype}", class_mask=mask, top_k=14)
    assert (found["softmax"][~mask] == 0).all()
    assert (found["sigmoid"][~mask] == 0).all()
    check(patches, queries, f"{cpu_level} {dtype}", class_mask=mask[0], channels_last=True)


@needs_native
def test_mixed_dtypes() -> None:
    for dtype in DTYPES:
        patches, queries = random_inputs((1, 9, 31, 5), dtype)
        for other in DTYPES:
            check(patches, queries.to(other), f"{dtype} {other}", scale=torch.tensor(2.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_queries(dtype: torch.dtype, cpu_level: str) -> None:
    for batched in (False, True):
        patches, queries = random_inputs((2, 21, 37, 14), dtype, batched)
        handle = pack_queries(queries)
        plain = patch_similarity(patches, queries, output=ALL)
        found = check(patches, handle, f"{cpu_level} packed")
        assert torch.equal(found["logits"], plain["logits"])
        # Patches that the packed form does not fit: another type, another layout.
        check(patches.float(), handle, f"{cpu_level} packed, float32 patches")
        check(patches.transpose(1, 2).contiguous().mT, handle, f"{cpu_level} packed, strided")
        # A changed query and another level are noticed.
        queries.mul_(-1)
        assert torch.equal(patch_similarity(patches, handle), patch_similarity(patches, queries))
        with _library.cpu_level("generic"):
            check(patches, handle, "packed for another level")


# ---------------------------------------------------------------- 2: gradients

GRADIENT_OUTPUTS = ("logits", "softmax", "sigmoid", "logsumexp")


def _weighted(found: dict[str, Any], weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum((found[name].double() * weights[name]).sum() for name in weights)  # type: ignore[return-value]


@pytest.mark.parametrize("name", GRADIENT_OUTPUTS)
def test_gradcheck_reference(name: Any) -> None:
    patches = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    queries = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True, True], [False] * 5])
    cases: tuple[dict[str, Any], ...] = (
        {"class_mask": mask},
        {"class_mask": mask, "background": 0.2},
        {"groups": torch.tensor([0, 1, 1, 0, 2])},
    )
    for options in cases:

        def run(p: Any, q: Any, s: Any, b: Any, options: Any = options) -> Any:
            out = patch_similarity(
                p, q, scale=s, bias=b, output=name, backend="reference", **options
            )
            return torch.where(out.isfinite(), out, 0.0)

        torch.autograd.gradcheck(run, (patches, queries, scale, bias))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("names", [*[(n,) for n in GRADIENT_OUTPUTS], GRADIENT_OUTPUTS], ids=str)
def test_gradients(names: tuple[str, ...], batched: bool, dtype: torch.dtype) -> None:
    patches, queries = random_inputs((2, 9, 12, 7), dtype, batched)
    patches[0, 3] = 0  # the gradient through a clamped norm
    mask = torch.rand(2, 7) > 0.3
    mask[:, 0] = True
    groups = torch.tensor([0, 1, 1, 0, 2, 2, 1])
    cases: tuple[dict[str, Any], ...] = (
        {"class_mask": mask},
        {"metric": "dot", "channels_last": True},
        {"background": 0.2},
        {"groups": groups, "num_groups": 3},
        {"groups": groups, "group_reduce": "mean", "num_groups": 3},
    )
    for options in cases:
        results = []
        weights: dict[str, torch.Tensor] = {}
        for compute in (dtype, torch.float64):
            inputs = [t.to(compute).requires_grad_() for t in (patches, queries)]
            inputs += [torch.tensor(1.5, requires_grad=True), torch.zeros(7, requires_grad=True)]
            found = patch_similarity(
                inputs[0], inputs[1], scale=inputs[2], bias=inputs[3], output=names, eps=0.5,
                backend="reference" if compute == torch.float64 else "native", **options,
            )  # fmt: skip
            if not weights:
                # Numbers of the type, since torch hands gradients on in it.
                weights = {n: torch.randn(found[n].shape).to(dtype).double() for n in names}
            found = torch.autograd.grad(_weighted(found, weights), inputs)
            # The scale alone is one sum of many signs; with the bias it makes one vector.
            results.append((*found[:2], torch.cat([found[2][None], found[3]])))
        for actual, oracle, what in zip(
            *results, ("patches", "queries", "scale, bias"), strict=True
        ):
            assert_gradient(actual, oracle, f"{names} {what} {sorted(options)}", dtype=dtype)


@needs_native
def test_indices_have_no_gradient() -> None:
    patches, queries = random_inputs((1, 4, 5, 3), torch.float32)
    found = patch_similarity(patches.requires_grad_(), queries, output=ALL)
    assert found["logits"].requires_grad
    assert not found["topk"].values.requires_grad
    assert not found["argmax"].confidence.requires_grad
    assert not found["minmax"].maximum.requires_grad


# ---------------------------------------------------------------- 3: layouts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype: torch.dtype, cpu_level: str) -> None:
    patches, queries = random_inputs((2, 18, 21, 9), dtype, batched=True)
    for name, view in layouts(patches):
        check(view, queries, f"{cpu_level} patches {name}")
    for name, view in layouts(queries):
        check(patches, view, f"{cpu_level} queries {name}")
    check(expanded(patches), expanded(queries), f"{cpu_level} expanded")
    check(expanded(patches, 1), expanded(queries[0], 1), f"{cpu_level} expanded")
    mask = (torch.rand(9, 2) > 0.4).T
    check(patches, queries, f"{cpu_level} mask", class_mask=mask, bias=torch.randn(18)[::2])


@needs_native
def test_grid_and_channels_last() -> None:
    patches, queries = random_inputs((2, 6, 5, 4), torch.float32)
    first = patch_similarity(patches, queries, grid=(2, 3))
    last = patch_similarity(patches, queries, grid=(2, 3), channels_last=True)
    assert first.shape == (2, 4, 2, 3)
    assert last.shape == (2, 2, 3, 4)
    assert torch.equal(first, last.permute(0, 3, 1, 2))
    assert torch.equal(first.flatten(2), patch_similarity(patches, queries))


# ---------------------------------------------------------------- 6: registration


def _arguments(outputs: int, **changes: Any) -> tuple[Any, ...]:
    patches, queries = random_inputs((2, 5, 6, 4), torch.float32)
    values = {
        "patches": patches, "queries": queries, "packed": None, "packed_level": "",
        "packed_version": -1, "scale": torch.tensor(2.0), "scale_value": 1.0,
        "bias": torch.randn(4), "bias_value": 0.0, "class_mask": torch.rand(4) > 0.5,
        "group_order": None, "group_offsets": None, "num_classes": 4, "group_mean": False,
        "outputs": outputs, "top_k": 2, "background": 0.1, "channels_last": False, "cosine": True,
        "eps": 1e-12,
    }  # fmt: skip
    values.update(changes)
    return tuple(values.values())


@needs_native
def test_registration() -> None:
    op = torch.ops.patchword.patch_similarity_forward.default
    for outputs in (1, 2, 127):
        torch.library.opcheck(op, _arguments(outputs))
    backward = torch.ops.patchword.patch_similarity_backward.default
    patches, queries = random_inputs((2, 5, 6, 4), torch.float32)
    gradient = torch.randn(2, 4, 5)
    arguments = (
        patches, queries, torch.tensor(2.0), 1.0, torch.randn(4), 0.0, None, None, None, 4, False,
        None, False, True, 1e-12, [gradient, None, None, None], None, None, [True] * 4,
    )  # fmt: skip
    torch.library.opcheck(backward, arguments)


@needs_native
# torch.compile makes an instance itself while it traces the gradient.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile() -> None:
    patches, queries = random_inputs((2, 9, 12, 7), torch.float32)
    handle = pack_queries(queries)

    def run(p: Any, q: Any) -> Any:
        found = patch_similarity(p, q, scale=3.0, output=("softmax", "argmax"))
        packed = patch_similarity(p, handle, scale=3.0)
        return found["softmax"] * 2, found["argmax"].indices, packed

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(patches, queries), run(patches, queries), strict=True):
        assert torch.equal(got, want)
    inputs = [patches.requires_grad_(), queries.requires_grad_()]
    got = torch.autograd.grad(compiled(*inputs)[0].square().sum(), inputs)
    want = torch.autograd.grad(run(*inputs)[0].square().sum(), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@needs_native
def test_meta_and_autocast() -> None:
    patches, queries = random_inputs((2, 9, 12, 7), torch.bfloat16)
    found = patch_similarity(patches.to("meta"), queries.to("meta"), output=ALL, top_k=3)
    assert found["logits"].shape == (2, 7, 9)
    assert found["topk"].indices.shape == (2, 9, 3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = patch_similarity(patches, queries.float())
    assert torch.equal(inside, patch_similarity(patches, queries.float()))


# ---------------------------------------------------------------- 5: errors


def _call(**changes: Any) -> Any:
    arguments: dict[str, Any] = {"patches": torch.zeros(2, 6, 4), "queries": torch.zeros(3, 4)}
    arguments.update(changes)
    return patch_similarity(arguments.pop("patches"), arguments.pop("queries"), **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"patches": torch.zeros(6, 4)}, ShapeError, r"got \[6, 4\]\. Add a batch dimension"),
        (
            {"queries": torch.zeros(4)},
            ShapeError,
            r"queries must have shape \[C, D\] or \[B, C, D\]",
        ),
        ({"queries": torch.zeros(3, 5)}, ShapeError, "must share D, got 4 and 5"),
        ({"queries": torch.zeros(3, 3, 4)}, ShapeError, "must share B, got 2 and 3"),
        ({"queries": torch.zeros(3, 4).long()}, DTypeError, "queries must be floating point"),
        ({"queries": torch.zeros(3, 4, device="meta")}, DTypeError, "queries must be on cpu"),
        ({"metric": "l2"}, OptionError, 'metric must be "cosine" or "dot"'),
        ({"scale": torch.ones(2)}, ShapeError, r"scale must be a number or a 0-d tensor"),
        ({"bias": torch.ones(2)}, ShapeError, r"bias must be a number or have shape \[3\]"),
        ({"class_mask": torch.ones(3)}, DTypeError, "class_mask must be bool"),
        ({"class_mask": torch.ones(2).bool()}, ShapeError, r"class_mask must have shape \[3\] or"),
        ({"groups": torch.ones(3)}, DTypeError, "groups must be int64"),
        ({"groups": torch.ones(2).long()}, ShapeError, r"groups must have shape \[3\]"),
        (
            {"groups": torch.zeros(3).long(), "num_groups": -1},
            OptionError,
            "num_groups must not be",
        ),
        ({"group_reduce": "sum"}, OptionError, 'group_reduce must be "max" or "mean"'),
        ({"output": "labels"}, OptionError, "output must be one of logits, softmax"),
        ({"output": ()}, OptionError, "must name at least one output"),
        ({"top_k": 0}, OptionError, "top_k must be at least 1, got 0"),
        ({"background": math.inf}, OptionError, "background must be finite"),
        ({"grid": (2, 2)}, ShapeError, r"grid must cover the 6 patches, got \(2, 2\)"),
        ({"eps": 0.0}, OptionError, "eps must be positive, got 0.0"),
        ({"backend": "cublas"}, OptionError, "backend must be one of"),
    ],
)
def test_errors(changes: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^patch_similarity: .*{text}"):
        _call(**changes)


def test_pack_errors() -> None:
    with pytest.raises(ShapeError, match=r"^pack_queries: queries must have shape"):
        pack_queries(torch.zeros(3))
    with pytest.raises(DTypeError, match=r"^pack_queries: queries must be floating point"):
        pack_queries(torch.zeros(3, 4).int())
    with pytest.raises(OptionError, match=r'^pack_queries: metric must be "cosine" or "dot"'):
        pack_queries(torch.zeros(3, 4), metric="l1")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="must be those of the packed queries, 'dot'"):
        _call(queries=pack_queries(torch.zeros(3, 4), metric="dot"))


@needs_native
def test_refusals() -> None:
    with pytest.raises(BackendError, match="top_k 33 exceeds 32"):
        _call(output="topk", top_k=33, backend="native")
    assert _call(output="topk", top_k=33).indices.shape == (2, 6, 33)
    with pytest.raises(BackendError, match="dtype float64 is not float32/float16/bfloat16"):
        _call(patches=torch.zeros(2, 6, 4).double(), backend="native")
    assert explain("patch_similarity", torch.zeros(1, 1, 1), torch.zeros(1, 1))["native"] is None
