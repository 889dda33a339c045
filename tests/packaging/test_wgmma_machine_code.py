# SPDX-License-Identifier: Apache-2.0
"""The wgmma kernels as the compiler leaves them: products of warpgroups, in one run, no spills."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "kernels/attention/attention_wgmma_cuda.cu"

pytestmark = pytest.mark.skipif(not SOURCE.exists(), reason="kernels/ is not beside the tests")


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Instructions of each kernel for sm_90a; the compiler must have had nothing to warn of."""
    spec = util.spec_from_file_location("kernel_resources", ROOT / "scripts/kernel_resources.py")
    script = util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    nvcc, tool = shutil.which("nvcc"), script.find_cuobjdump()
    if nvcc is None or tool is None:
        pytest.skip("no nvcc, or no cuobjdump beside it or with triton")
    target = tmp_path_factory.mktemp("wgmma") / "attention_wgmma.cubin"
    command = [nvcc, "-std=c++17", "-arch=sm_90a", f"-I{ROOT}", "--expt-relaxed-constexpr"]
    command += ["-cubin", "-Xptxas=-warn-spills", str(SOURCE), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # ptxas says here when it spills, ignores setmaxnreg, or runs products one after the other.
    assert done.stdout + done.stderr == ""
    kernels: dict[str, list[str]] = {}
    for line in script._run(tool, "-sass", target).splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            instructions = kernels.setdefault(match[1], [])
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(match[1])
    return kernels


def test_every_kernel_multiplies_by_warpgroups(machine_code: dict[str, list[str]]) -> None:
    assert len(machine_code) == 16  # 2 types, 4 widths, 1 or 2 consumers
    for name, instructions in machine_code.items():
        products = [i for i in instructions if "HGMMA" in i]
        depth, consumers = map(int, re.search(r"ELi(\d+)ELi(\d)E", name).groups())
        keys = 64 if depth > 64 and consumers == 1 else 128
        scores = [i for i in products if f"HGMMA.64x{keys}x16.F32" in i and "tnspB" not in i]
        sums = [i for i in products if f"HGMMA.64x{depth}x16.F32" in i and "tnspB" in i]
        assert (len(scores), len(sums)) == (depth // 16, keys // 16), name
        assert len(products) == len(scores) + len(sums), name
        assert not any(re.match(r"(@!?U?P\d )?HMMA", i) for i in instructions), name


def test_products_run_on_without_waiting(machine_code: dict[str, list[str]]) -> None:
    for name, instructions in machine_code.items():
        # One scoreboard and one wait for all products of scores, and for all of sums.
        assert sum("HGMMA" in i and "gsb0" in i for i in instructions) == 2, name
        assert sum("WARPGROUP.DEPBAR" in i for i in instructions) == 2, name


def test_registers_move_to_the_consumers_and_nothing_spills(
    machine_code: dict[str, list[str]],
) -> None:
    for name, instructions in machine_code.items():
        text = "\n".join(instructions)
        assert "USETMAXREG.DEALLOC" in text, name
        assert "USETMAXREG.TRY_ALLOC" in text, name
        assert not re.search(r"\b(LDL|STL)\b", text), name


def test_copies_are_wide_and_fenced(machine_code: dict[str, list[str]]) -> None:
    for name, instructions in machine_code.items():
        copies = [i for i in instructions if "LDGSTS" in i]
        assert copies, name
        assert all(".128" in i for i in copies), name
        assert any("FENCE.VIEW.ASYNC" in i for i in instructions), name
