# SPDX-License-Identifier: Apache-2.0
"""The SIMT layer under sanitizers, under nvcc, and as its guide shows it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Build = Callable[..., Path]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KERNELS = [HERE / "selftest.cu", HERE / "selftest_faults.cu"]


@pytest.fixture(scope="module")
def sanitized(
    compiler: str, build: Build, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Environment of a process that may load the sanitized library, which it names."""
    runtimes = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        ask = [compiler, f"-print-file-name={name}"]
        found = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(found).is_absolute():
            pytest.skip(f"the compiler has no {name}")
        runtimes.append(found)
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    library = build(tmp_path_factory.mktemp("simt_sanitized"), KERNELS, *flags)
    return {
        **os.environ,
        "PATCHWORD_SIMT_SELFTEST": str(library),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself leaks at exit
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def test_everything_holds_under_sanitizers(sanitized: dict[str, str]) -> None:
    # Only this folder's conftest: the project's imports torch, which the sanitizers do not need.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-c", os.devnull]
    command += [f"--confcutdir={HERE}", "-p", "no:cacheprovider"]
    command += [str(HERE / "test_simt_layer.py"), str(HERE / "test_simt_errors.py")]
    done = subprocess.run(command, env=sanitized, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed, 2 skipped", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) > 100


@pytest.mark.parametrize("kind", [6, 7], ids=["static", "dynamic"])
def test_address_sanitizer_finds_writes_outside_shared_memory(
    sanitized: dict[str, str], kind: int
) -> None:
    script = (
        "import ctypes, os; library = ctypes.CDLL(os.environ['PATCHWORD_SIMT_SELFTEST']);"
        f"library.pw_selftest_broken({kind}, (ctypes.c_float * 64)(), None, None, None)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=sanitized, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "in broken_kernel" in done.stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("kernels", ["selftest.cu", "selftest_faults.cu", "selftest_wgmma.cu"])
def test_nvcc_compiles_the_same_source(tmp_path: Path, kernels: str, architecture: str) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    command = [nvcc, "-std=c++20", f"-arch={architecture}", f"-I{ROOT}", "-Werror=all-warnings"]
    command += ["-c", str(HERE / kernels), "-o", str(tmp_path / "selftest.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", [[], ["-DPATCHWORD_SIMT_UCONTEXT"]], ids=["asm", "ucontext"])
def test_the_example_of_the_guide_works(
    build: Build, tmp_path: Path, rng: np.random.Generator, flags: list[str]
) -> None:
    text = (ROOT / "kernels/common/SIMT.md").read_text()
    (example,) = re.findall(r"```cpp\n(.*?)```", text, re.DOTALL)
    source = tmp_path / "row_sum_cuda.cu"
    source.write_text(example)
    library = ctypes.CDLL(str(build(tmp_path, [source], *flags)))
    rows = rng.standard_normal((5, 300)).astype(np.float16)
    sums = np.zeros(5, np.float32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (rows, sums)]
    size = [ctypes.c_int64(extent) for extent in rows.shape]
    assert library.pw_cuda_row_sum(pointers[0], *size, pointers[1], None, None, None) == 0
    np.testing.assert_allclose(sums, rows.sum(1, dtype=np.float64), rtol=0, atol=1e-4)
