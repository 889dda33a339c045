# SPDX-License-Identifier: Apache-2.0
"""Options, markers and fixtures of all tests: CPU levels, the CPU execution layer, seeds."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from patchword import _library

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the property tests then skip by importorskip
    pass
else:
    # The same examples on every run and machine; no deadline, since machines are shared.
    settings.register_profile(
        "patchword",
        derandomize=True,
        deadline=None,
        max_examples=25,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "patchword"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run tests marked slow")


def pytest_itemcollected(item: pytest.Item) -> None:
    # Not with the order of the tests, which is settled when -m has chosen among them.
    if "slow" in item.keywords and not item.config.getoption("--runslow"):
        item.add_marker(pytest.mark.skip(reason="slow: run with --runslow"))
    if "cuda" in item.keywords and not torch.cuda.is_available():
        item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU that torch can use"))
    # By fixture, or by the parameter that makes a test ask for it.
    if "simt" in getattr(item, "fixturenames", ()) or "simt" in item.name:
        item.add_marker(pytest.mark.simt)


@pytest.hookimpl(trylast=True)  # after the order has been shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest begin first, so that no worker is left alone with one at the end.
    items.sort(key=lambda item: "long" not in item.keywords)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """The same random numbers for a test in whatever order and process it runs."""
    seed = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for code that still draws from the global state


@pytest.fixture(autouse=True)
def _thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cpu_levels() -> list[str]:
    """CPU levels that this build has and this processor can run, the weakest first."""
    if _library.C is None:
        return []
    names = ("generic", "avx2", "avx512_emulated", "avx512", "avx512_bf16")
    before = _library.C.cpu_level()
    usable = [name for name in names if _library.C.force_cpu_level(name) is None]
    _library.C.force_cpu_level(before)
    return usable


needs_native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cpu_level" in metafunc.fixturenames:
        levels = cpu_levels() or [pytest.param("none", marks=needs_native)]
        metafunc.parametrize("cpu_level", levels, indirect=True)


@pytest.fixture
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each CPU level in turn, forced for the test; its name."""
    with _library.cpu_level(request.param):
        yield request.param


def simt_library() -> Path | None:
    """The CUDA kernels built for the CPU execution layer, or None."""
    named = os.environ.get("PATCHWORD_SIMT_LIBRARY")
    if named:
        return Path(named)
    if _library.C is None:
        return None
    beside = Path(_library.C.__file__).with_name("libpatchword_simt.so")
    return beside if beside.exists() else None


@pytest.fixture
def simt() -> Iterator[Path]:
    """Tensors on the CPU go through the CUDA kernels, run by the CPU execution layer."""
    if _library.C is None:
        pytest.skip(_library.missing_reason or "")
    library = simt_library()
    if library is None:
        pytest.skip(
            "libpatchword_simt.so is not built: scripts/dev_build.sh --simt, "
            "or name it in PATCHWORD_SIMT_LIBRARY"
        )
    context: AbstractContextManager[None] = _library.simulate_cuda(library)
    with context:
        yield library
