# SPDX-License-Identifier: Apache-2.0
"""patch_similarity: the CUDA kernels on the CPU execution layer, and on a GPU if any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from op_checks import DTYPES
from similarity_checks import ALL, check, random_inputs

from patchword.ops import pack_queries, patch_similarity
from patchword.testing import expanded, layouts

# Around the 64-patch tile, the 8-query fragments, the 64-byte slices of depth; empty; two blocks.
SMALL = (
    (1, 1, 1, 1),
    (2, 0, 4, 5),
    (1, 3, 0, 5),
    (1, 3, 4, 0),
    (1, 7, 13, 9),
    (2, 33, 40, 17),
    (1, 65, 33, 8),
    (1, 64, 64, 31),
    (1, 5, 300, 3),  # beyond the depth at which sums restart
)


@pytest.fixture(
    params=["simt", pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.sanitizer])],
)
def device(request: pytest.FixtureRequest) -> str:
    """Where the CUDA kernels run: the CPU execution layer, or a GPU."""
    if request.param == "simt":
        request.getfixturevalue("simt")
        return "cpu"
    return "cuda"


def _run(device: str, patches: Any, queries: Any, what: str, **options: Any) -> dict[str, Any]:
    moved = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    return check(patches.to(device), queries.to(device), what, **moved)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_matches_reference(device: str, shape: Any, dtype: torch.dtype) -> None:
    patches, queries = random_inputs(shape, dtype, batched=shape[3] % 2 == 0)
    _run(device, patches, queries, f"{dtype}", scale=8.0, top_k=3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options(device: str, dtype: torch.dtype) -> None:
    patches, queries = random_inputs((2, 9, 20, 11), dtype)
    mask = torch.rand(2, 11) > 0.4
    mask[0] = False
    for options in (
        {"metric": "dot", "channels_last": True},
        {"class_mask": mask, "background": 0.1, "bias": torch.randn(11)},
        {"class_mask": mask, "top_k": 32, "scale": torch.tensor(3.0)},
        {"groups": torch.tensor([3, 0, 0, 3, 1, 9, 1, 3, 0, 1, -1]), "num_groups": 4},
        {"groups": torch.arange(11) // 3, "group_reduce": "mean", "class_mask": mask},
    ):
        _run(device, patches, queries, f"{dtype} {sorted(options)}", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_classes(device: str, dtype: torch.dtype) -> None:
    """More than one class tile: statistics kept between tiles, the softmax in a second sweep."""
    patches, queries = random_inputs((1, 3, 17, 530), dtype)
    mask = torch.rand(530) > 0.1
    _run(device, patches, queries, f"{dtype}", scale=20.0, class_mask=mask, top_k=9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(device: str, dtype: torch.dtype) -> None:
    patches, queries = random_inputs((2, 5, 24, 6), dtype, batched=True)
    for name, view in layouts(patches):
        check(view.to(device), queries.to(device), f"patches {name}")
    for name, view in layouts(queries):
        check(patches.to(device), view.to(device), f"queries {name}")
    _run(device, expanded(patches), expanded(queries), "expanded")
    _run(device, patches, queries.float(), "mixed types")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_on_whole_numbers(device: str, dtype: torch.dtype) -> None:
    patches = torch.randint(-2, 3, (2, 13, 6)).to(dtype)
    queries = torch.randint(-2, 3, (29, 6)).to(dtype)
    options = {"metric": "dot", "background": 3.0, "top_k": 29}
    got = patch_similarity(
        patches.to(device), queries.to(device), output=ALL, backend="native", **options
    )
    want = patch_similarity(
        patches.double(), queries.double(), output=ALL, backend="reference", **options
    )
    assert torch.equal(got["logits"].cpu().double(), want["logits"])
    assert torch.equal(got["topk"].indices.cpu(), want["topk"].indices)
    assert torch.equal(got["argmax"].indices.cpu(), want["argmax"].indices)
    assert torch.equal(got["minmax"].maximum.cpu().double(), want["minmax"].maximum)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity(device: str, dtype: torch.dtype) -> None:
    patches, queries = random_inputs((1, 6, 9, 7), dtype)
    queries[2] = torch.nan
    patches[0, 4, 3] = torch.inf
    bias = torch.zeros(7)
    found = patch_similarity(
        patches.to(device), queries.to(device), output=ALL, top_k=7, bias=bias.to(device)
    )
    assert found["softmax"].isnan().all()
    assert found["logsumexp"].isnan().all()
    assert found["argmax"].confidence.isnan().all()
    assert int(found["argmax"].indices[0, 4]) == -1
    assert not (found["topk"].indices == 2).any()
    assert (found["topk"].indices[0, 0, :6] >= 0).all()
    assert found["minmax"].maximum[0, 0].isfinite()
    mask = torch.arange(7) != 2
    others = patch_similarity(
        patches[:, :4].to(device), queries.to(device), class_mask=mask.to(device), output="softmax"
    )
    assert others.isfinite().all()
    lost = patch_similarity(
        patches[:, :4].to(device), queries[:1].to(device), bias=bias[:1].to(device) - torch.inf,
        output=("logsumexp", "softmax", "argmax"),
    )  # fmt: skip
    assert lost["logsumexp"].isneginf().all()
    assert lost["softmax"].isnan().all()
    assert (lost["argmax"].indices == 0).all()


def test_accumulation(device: str) -> None:
    """Long sums of one sign, where truncation inside tensor cores would show."""
    for dtype in DTYPES:
        patches = (torch.rand(1, 2, 1500) + 0.1).to(dtype)
        _run(device, patches, patches[0].clone(), f"{dtype} long")


def test_packed_handle_is_ignored(simt: Path) -> None:
    patches, queries = random_inputs((1, 4, 9, 3), torch.float32)
    check(patches, pack_queries(queries), "packed")


@pytest.mark.cuda
def test_graph_capture() -> None:
    patches, queries = (t.cuda() for t in random_inputs((2, 100, 64, 12), torch.float16))
    want = patch_similarity(patches, queries, output=ALL)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = patch_similarity(patches, queries, output=ALL)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got["softmax"], want["softmax"])
    assert torch.equal(got["topk"].indices, want["topk"].indices)
