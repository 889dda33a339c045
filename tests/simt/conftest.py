# SPDX-License-Identifier: Apache-2.0
"""Compiles the toy kernels of ``selftest*.cu`` for the CPU and calls their entry points.

``PATCHWORD_SIMT_SELFTEST`` names a library to test instead: the sanitized one, in the process that
``test_simt_toolchain.py`` starts for it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
Call = Callable[..., tuple[int, str]]
Build = Callable[..., Path]


@pytest.fixture(scope="session")
def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@pytest.fixture(scope="session")
def build(compiler: str) -> Build:
    """``build(folder, kernels, *flags)`` compiles the engine and kernel files into a library."""

    def run(folder: Path, kernels: Sequence[Path], *flags: str) -> Path:
        target = folder / "libselftest.so"
        engine = ROOT / "kernels" / "common" / "simt_host.cpp"
        command = [compiler, "-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC"]
        command += [f"-I{ROOT}", "-DPATCHWORD_SIMT_HOST", *flags, "-shared", "-o", str(target)]
        command += [str(engine), "-x", "c++", *map(str, kernels)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    return run


def bind(path: Path) -> Call:
    """A function that runs an entry point: ``call("name", *arguments) -> (code, message)``."""
    library = ctypes.CDLL(str(path))

    def call(name: str, *arguments: Any) -> tuple[int, str]:
        message = ctypes.create_string_buffer(1024)
        pointers = [
            a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments
        ]
        entry = getattr(library, f"pw_selftest_{name}")
        code = entry(*pointers, None, message, ctypes.c_size_t(len(message)))
        return code, message.value.decode()

    return call


@pytest.fixture(scope="session")
def call(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """``call("name", *arguments) -> (code, message)`` runs ``pw_selftest_<name>``."""
    given = os.environ.get("PATCHWORD_SIMT_SELFTEST")
    if given:
        return bind(Path(given))
    kernels = [HERE / "selftest.cu", HERE / "selftest_faults.cu"]
    return bind(build(tmp_path_factory.mktemp("simt"), kernels))


@pytest.fixture(scope="session")
def wgmma_call(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """As ``call``, for the entry points of ``selftest_wgmma.cu``."""
    return bind(build(tmp_path_factory.mktemp("wgmma"), [HERE / "selftest_wgmma.cu"]))


@pytest.fixture(params=["forward", "reverse", "random:1", "random:2"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATCHWORD_SIMT_ORDER", request.param)
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
