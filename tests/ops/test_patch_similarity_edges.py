# SPDX-License-Identifier: Apache-2.0
"""patch_similarity: ties, NaN, infinities, magnitudes, properties, repeatability, big extents."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from op_checks import DTYPES
from op_checks import native as needs_native
from similarity_checks import ALL, check, random_inputs

from patchword.ops import pack_queries, patch_similarity
from patchword.testing import strategies

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

BACKENDS = [pytest.param("native", marks=needs_native), "reference"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_on_whole_numbers(dtype: torch.dtype, cpu_level: str) -> None:
    """Small integers are exact in every type, so ties and indices must be exact as well."""
    patches = torch.randint(-2, 3, (2, 45, 6)).to(dtype)
    queries = torch.randint(-2, 3, (29, 6)).to(dtype)
    queries[20] = queries[3]
    for background in (None, 4.0):
        options = {"metric": "dot", "background": background, "top_k": 29}
        got = patch_similarity(patches, queries, output=ALL, backend="native", **options)
        want = patch_similarity(
            patches.double(), queries.double(), output=ALL, backend="reference", **options
        )
        assert torch.equal(got["logits"].double(), want["logits"]), cpu_level
        assert torch.equal(got["topk"].indices, want["topk"].indices), cpu_level
        assert torch.equal(got["topk"].values.double(), want["topk"].values), cpu_level
        assert torch.equal(got["argmax"].indices, want["argmax"].indices), cpu_level
        assert torch.equal(got["minmax"].minimum.double(), want["minmax"].minimum), cpu_level


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed(backend: Any) -> None:
    patches = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    found = patch_similarity(patches, queries, bias=torch.tensor([0.0, 1.0]), output=ALL,
                             background=1.5, top_k=3, backend=backend)  # fmt: skip
    assert found["logits"].tolist() == [[[pytest.approx(0.6), 0, 1], [pytest.approx(1.8), 1, 1]]]
    assert found["argmax"].indices.tolist() == [[1, -1, -1]]
    # Equal logits 1 and 1: the lower class first; the third place is empty.
    assert found["topk"].indices.tolist() == [[[1, 0, -1], [1, 0, -1], [0, 1, -1]]]
    assert found["topk"].values[0, 2].tolist() == [1, 1, -math.inf]
    total = math.log(1 + math.exp(1) + math.exp(1.5))
    assert found["logsumexp"][0, 1].item() == pytest.approx(total, abs=1e-6)
    assert found["argmax"].confidence[0, 1].item() == pytest.approx(math.exp(1.5 - total), abs=1e-6)
    assert found["minmax"].maximum.tolist() == [[1, pytest.approx(1.8)]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_takes_part(backend: Any) -> None:
    patches, queries = random_inputs((2, 5, 4, 3), torch.float32)
    mask = torch.tensor([[False] * 3, [True, False, True]])
    found = patch_similarity(
        patches, queries, class_mask=mask, output=ALL, top_k=2, backend=backend
    )
    assert (found["softmax"][0] == 0).all()
    assert (found["sigmoid"][0] == 0).all()
    assert found["logits"][0].isfinite().all()
    assert (found["argmax"].indices[0] == -1).all()
    assert (found["argmax"].confidence[0] == 0).all()
    assert (found["topk"].indices[0] == -1).all()
    assert found["logsumexp"][0].isneginf().all()
    torch.testing.assert_close(found["softmax"][1].sum(0), torch.ones(5))
    empty = patch_similarity(patches, queries[:0], output=ALL, top_k=2, backend=backend)
    assert (empty["argmax"].indices == -1).all()
    assert empty["logsumexp"].isneginf().all()
    none = patch_similarity(patches[:, :0], queries, output="minmax", backend=backend)
    assert none.minimum.isposinf().all()
    assert none.maximum.isneginf().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan(dtype: torch.dtype, backend: Any) -> None:
    patches, queries = random_inputs((1, 20, 9, 7), dtype)
    queries[2] = torch.nan
    patches[0, 4, 3] = torch.nan
    patches[0, 6, 1] = torch.inf
    found = patch_similarity(patches, queries, output=ALL, top_k=7, backend=backend)
    assert found["logits"][0, 2].isnan().all()
    assert found["logits"][0, :, 4].isnan().all()
    assert found["softmax"].isnan().all()
    assert found["logsumexp"].isnan().all()
    assert found["argmax"].confidence.isnan().all()
    assert (found["argmax"].indices[0, 4] == -1).all()
    assert (found["argmax"].indices[0, 6] == -1).all()  # infinity over infinity
    assert not (found["topk"].indices == 2).any()
    assert (found["topk"].indices[0, 0, :6] >= 0).all()
    assert found["minmax"].maximum[0, 0].isfinite()
    # A NaN in a class that does not take part is nobody's business.
    mask = torch.arange(7) != 2
    others = patch_similarity(patches, queries, class_mask=mask, output="softmax", backend=backend)
    assert others[0, :, 0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_logits(dtype: torch.dtype, cpu_level: str) -> None:
    patches = torch.tensor([[[1.0], [-1.0], [0.0]]]).to(dtype)
    bias = torch.tensor([-math.inf, -math.inf])
    found = patch_similarity(patches, torch.ones(2, 1).to(dtype), bias=bias, output=ALL)
    assert found["logsumexp"].isneginf().all()
    assert found["softmax"].isnan().all()  # as torch.softmax
    assert (found["argmax"].indices == 0).all()
    assert (found["sigmoid"] == 0).all()
    bias = torch.tensor([0.0, math.inf])
    found = patch_similarity(patches, torch.ones(2, 1).to(dtype), bias=bias, output=ALL)
    assert found["logsumexp"].isposinf().all()
    assert (found["argmax"].indices == 1).all()
    assert (found["sigmoid"][:, 1] == 1).all()


def test_magnitudes(cpu_level: str) -> None:
    """Cosines of vectors whose squares overflow or vanish in float32."""
    patches, queries = random_inputs((1, 37, 21, 13), torch.float32)
    patches[0, ::3] *= 1e30
    patches[0, 1::3] *= 1e-25
    queries[::2] *= 1e-22
    queries[1::4] *= 1e25
    check(patches, queries, cpu_level, eps=1e-35)
    check(patches, queries, cpu_level)  # the usual eps clamps the small ones
    check(patches.bfloat16(), queries.bfloat16(), f"{cpu_level} bfloat16", eps=1e-35)
    check(patches, pack_queries(queries, eps=1e-35), f"{cpu_level} packed", eps=1e-35)
    half = torch.randn(1, 9, 600).half() * 60  # the dot product overflows float16
    check(half, torch.randn(3, 600).half() * 60, f"{cpu_level} float16")


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeatable(dtype: torch.dtype) -> None:
    patches, queries = random_inputs((3, 210, 96, 50), dtype)
    torch.set_num_threads(1)
    first = patch_similarity(patches, queries, output=ALL, scale=5.0)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        again = patch_similarity(patches, queries, output=ALL, scale=5.0)
        for name in ALL:
            pair = (first[name], again[name])
            both = zip(*((p,) if isinstance(p, torch.Tensor) else p for p in pair), strict=True)
            assert all(torch.equal(a, b) for a, b in both), name
    # One pass for all outputs gives the same bits as a pass for each.
    for name in ("logits", "softmax", "sigmoid", "logsumexp"):
        assert torch.equal(
            patch_similarity(patches, queries, output=name, scale=5.0),  # type: ignore[arg-type]
            first[name],
        )


@needs_native
@hypothesis.given(
    count=strategies.sizes(0, 40),
    dim=strategies.sizes(0, 40),
    classes=strategies.sizes(0, 30),
    dtype=strategies.dtypes(),
    seed=strategies.seeds(),
    last=st.booleans(),
)
def test_properties(
    count: int, dim: int, classes: int, dtype: torch.dtype, seed: int, last: bool
) -> None:
    torch.manual_seed(seed)
    patches, queries = random_inputs((2, count, dim, classes), dtype)
    found = check(patches, queries, f"{dtype}", channels_last=last, scale=4.0)
    bound = 4.0 * (1 + 1e-5 + (0 if dtype == torch.float32 else torch.finfo(dtype).eps))
    assert (found["logits"].abs() <= bound).all()
    # Positive scaling by powers of two changes nothing, permuting patches permutes the maps.
    doubled = patch_similarity(patches * 2, queries * 4, channels_last=last, scale=4.0)
    assert torch.equal(doubled, found["logits"])
    order = torch.randperm(count)
    shuffled = patch_similarity(patches[:, order], queries, channels_last=last, scale=4.0)
    dimension = 1 if last else 2
    assert torch.equal(shuffled, found["logits"].index_select(dimension, order))


@needs_native
@hypothesis.given(dim=strategies.sizes(1, 40), dtype=strategies.dtypes(), seed=strategies.seeds())
def test_self_similarity_is_one(dim: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    patches = torch.randn(1, 19, dim).to(dtype)
    patches[patches.norm(dim=-1) == 0] = 1
    found = patch_similarity(patches, patches[0], output="logits").float()
    torch.testing.assert_close(
        found[0].diagonal(), torch.ones(19), atol=2e-6 + torch.finfo(dtype).eps, rtol=0
    )


@needs_native
@pytest.mark.slow
def test_extents_beyond_32_bits() -> None:
    """An output of over 2^31 elements (5 GB) from one patch that a stride of 0 repeats."""
    count = 2**27 + 3
    patch, queries = torch.randn(1, 1, 4).half(), torch.randn(17, 4).half()
    found = patch_similarity(patch.expand(1, count, 4), queries, backend="native")
    assert found.numel() > 2**31
    want = patch_similarity(patch, queries, backend="native")
    for c in range(17):
        assert (found[0, c] == want[0, c, 0]).all(), c
