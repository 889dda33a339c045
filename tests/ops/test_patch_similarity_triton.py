# SPDX-License-Identifier: Apache-2.0
"""patch_similarity: the Triton kernel under its interpreter, in a process of its own."""

from __future__ import annotations

import os

import pytest
import torch
from op_checks import DTYPES
from similarity_checks import check, random_inputs
from triton_interpreter import interpret

from patchword.errors import BackendError
from patchword.ops import patch_similarity

_SCRIPT = """
import torch
from op_checks import DTYPES
from similarity_checks import check, random_inputs

torch.manual_seed(3)
mask = torch.rand(2, 19) > 0.4
mask[0] = False
cases = (
    ((1, 1, 1, 1), {}),
    ((2, 0, 4, 3), {}),
    ((2, 3, 0, 4), {}),
    ((2, 17, 33, 19), {"scale": 9.0, "channels_last": True}),
    ((2, 18, 40, 19), {"metric": "dot", "bias": torch.randn(19)}),
    ((2, 5, 12, 19), {"class_mask": mask, "background": 0.2, "scale": torch.tensor(2.0)}),
    ((2, 5, 12, 19), {"class_mask": mask, "bias": 0.5}),
)
for dtype in DTYPES:
    for shape, options in cases:
        patches, queries = random_inputs(shape, dtype, batched=shape[1] % 2 == 0)
        for output in ("logits", "softmax"):
            what = f"triton {dtype} {shape} {sorted(options)}"
            check(patches, queries, what, outputs=(output,), backend="triton", **options)
    patches, queries = random_inputs((1, 20, 12, 5), dtype)
    patches = patches.transpose(1, 2).contiguous().mT
    check(patches, queries.mT.contiguous().mT, "strided", outputs=("softmax",), backend="triton")
print("right")
"""


def test_matches_reference() -> None:
    assert interpret(_SCRIPT) == "right"


@pytest.mark.cuda
@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_matches_reference_on_gpu(output: str) -> None:
    for dtype in DTYPES:
        patches, queries = random_inputs((2, 200, 130, 37), dtype)
        check(
            patches.cuda(), queries.cuda(), f"triton {dtype}", outputs=(output,), backend="triton"
        )


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")
def test_refuses_cpu_tensors() -> None:
    pytest.importorskip("triton")
    with pytest.raises(BackendError, match='"triton" cannot run here: triton kernels need a CUDA'):
        patch_similarity(torch.zeros(1, 2, 3), torch.zeros(2, 3), backend="triton")
