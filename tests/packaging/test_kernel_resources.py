# SPDX-License-Identifier: Apache-2.0
"""No CUDA kernel spills unless allowed_spills.json says which, how much and why."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from patchword import _library

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/kernel_resources.py"
# Entries: {"kernel": regex over the whole name, "bytes": most stack per thread, "reason": text}.
ALLOWED = Path(__file__).with_name("allowed_spills.json")

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="scripts/ is not beside the tests")


@pytest.fixture(scope="module")
def script():
    spec = util.spec_from_file_location("kernel_resources", SCRIPT)
    module = util.module_from_spec(spec)
    sys.modules["kernel_resources"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernels(script):
    library = _library.cuda_library_path()
    if library is None:
        pytest.skip("libpatchword_cuda.so is not part of this build")
    tool = script.find_cuobjdump()
    if tool is None:
        pytest.skip("cuobjdump is neither on PATH, nor under CUDA_HOME, nor with triton")
    return script.read(library, tool)


def test_no_unexpected_spills(kernels):
    assert kernels, "no kernel was found in the library"
    allowed = json.loads(ALLOWED.read_text())
    wrong = [
        f"{k.kernel} on {k.arch}: {k.stack_bytes} bytes of stack, {k.local_bytes} local"
        for k in kernels
        if k.stack_bytes + k.local_bytes
        > max((a["bytes"] for a in allowed if re.fullmatch(a["kernel"], k.kernel)), default=0)
    ]
    assert wrong == []


def test_allowed_spills_are_explained():
    for entry in json.loads(ALLOWED.read_text()):
        assert set(entry) == {"kernel", "bytes", "reason"}
        assert len(entry["reason"]) > 20


def test_registers_leave_room_for_two_blocks(kernels):
    assert all(k.registers <= 255 for k in kernels)
    named = {k.kernel for k in kernels}
    assert any(name.startswith("sample_rows<") for name in named), sorted(named)


def test_wide_loads_where_channels_are_contiguous(kernels):
    wide = {k.kernel: k.wide_loads for k in kernels}
    assert wide["sample_rows<float, 4>"]
    assert not wide["sample_rows<float, 1>"]


def test_a_missing_library_gives_one_sentence(tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "absent.so"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "does not exist. Build it with" in result.stderr


def test_instruction_patterns(script):
    assert script.TENSOR_CORES.search("HMMA.16816.F32 R4, R8, R12, R4 ;")
    assert script.TENSOR_CORES.search("HGMMA.64x128x16.F32 R24, gdesc[UR4] ;")
    assert not script.TENSOR_CORES.search("FFMA R4, R8, R12, R4 ;")
    for wide in (
        "LDG.E.128 R4, [R2.64] ;",
        "LDG.E.128.CONSTANT R4, [R2.64] ;",
        "LDS.128 R4, [R2] ;",
        "LDGSTS.E.BYPASS.128 [R3], [R4.64] ;",
    ):
        assert script.WIDE_LOADS.search(wide), wide
    for narrow in ("LDG.E R4, [R2.64] ;", "LDG.E.64 R4, [R2.64] ;", "STG.E.128 [R2.64], R4 ;"):
        assert not script.WIDE_LOADS.search(narrow), narrow
