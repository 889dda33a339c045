# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel once more on the CPU, under AddressSanitizer and UBSan, in reverse order.

Reading past an array, shared or global, is then an error, and so is a result that depends on the
order in which the threads of a block run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchword import _library

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def _runtime(compiler: str, name: str) -> str:
    command = [compiler, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"the compiler has no {name}")
    return path


def _build(compiler: str, folder: Path) -> Path:
    flags = ["-std=c++20", "-Og", "-g1", "-fPIC", "-ffp-contract=fast", f"-I{ROOT}"]
    flags += ["-DPATCHWORD_SIMT_HOST=1", "-Wno-psabi", *SANITIZE]
    sources = [*sorted(ROOT.glob("kernels/*/*.cu")), ROOT / "kernels/common/simt_host.cpp"]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        command = [compiler, *flags, "-c", "-x", "c++", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "libpatchword_simt.so"
    subprocess.run([compiler, *SANITIZE, "-shared", "-o", str(library), *objects], check=True)
    return library


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_kernels_are_clean_under_sanitizers(compiler: str, tmp_path: Path) -> None:
    if _library.C is None:
        pytest.skip(f"needs the compiled module: {_library.missing_reason}")
    preload = [_runtime(compiler, "libasan.so"), _runtime(compiler, "libubsan.so")]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preload),
        # torch never frees everything, and its own allocations are none of this test's business.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PATCHWORD_SIMT_LIBRARY": str(_build(compiler, tmp_path)),
        "PATCHWORD_SIMT_ORDER": "reverse",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-m", "simt", "-n", "0"]
    command += ["-p", "no:randomly", "-p", "no:cacheprovider", str(ROOT / "tests" / "ops")]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert " passed" in done.stdout
