# SPDX-License-Identifier: Apache-2.0
"""Triton kernels compile to machine code for sm_80 and sm_90, by the calls that users make."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A process of its own: Triton is told of a GPU that is not there, and only compiles.
PROGRAM = """
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

torch.cuda.is_available = lambda: True
from patchword.ops.mask_upsample import triton_kernels as upsample
from patchword.ops.mask_upsample.reference import Reading
from patchword.ops.patch_similarity import triton_kernels as similarity


class NoGpu:
    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


made, launch = [], JITFunction.run


def compile_only(self, *arguments, **options):
    made.append(launch(self, *arguments, **{**options, "warmup": True}))


JITFunction.run = compile_only
driver.set_active(NoGpu(int(sys.argv[1])))
f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
everything = {"softmax": True, "cosine": True, "bias": 0.5, "background": 0.1}
nothing = {"softmax": False, "cosine": False, "bias": 0.0, "background": None}
for dtype, options, classes, masked in (
    (f32, everything, 19, True),
    (bf16, everything, 40, True),
    (f16, nothing, 19, False),
):
    patches, queries = torch.randn(2, 40, 70).to(dtype), torch.randn(classes, 70).to(dtype)
    mask = torch.ones(2, classes, dtype=torch.bool) if masked else None
    similarity.patch_similarity_triton(
        patches, queries, scale=3.0, class_mask=mask, channels_last=masked, eps=1e-12, **options
    )
for dtype, mode, align, size, masked in (
    (f32, "bicubic", False, (7, 9), True),
    (bf16, "bilinear", True, (3, 9), False),
):
    region = torch.ones(1, *size, dtype=torch.bool) if masked else None
    classes = torch.ones(5, dtype=torch.bool) if masked else None
    reading = Reading(size, mode, align, classes, region)
    upsample.labels(torch.randn(1, 5, 3, 4).to(dtype), reading, torch.uint8, ignore_index=255)
for kernel in made:
    assert kernel.asm["cubin"][:4] == b"\\x7fELF"
    print(kernel.name, "mma" if "mma.sync" in kernel.asm["ptx"] else "-")
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(capability: int) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(capability)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Half types go through the tensor cores; float32 is multiplied as it is, without TF32.
    maps = ["_similarity_kernel -", "_similarity_kernel mma", "_similarity_kernel mma"]
    assert done.stdout.splitlines() == [*maps, "decide -", "decide -"]
