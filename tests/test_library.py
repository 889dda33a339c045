# SPDX-License-Identifier: Apache-2.0
"""The compiled module keeps to itself: no torch inside, one OpenMP runtime, levels by name."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from patchword import _library

ROOT = Path(__file__).resolve().parents[1]
needs_native = pytest.mark.skipif(_library.C is None, reason=_library.missing_reason or "")


def dynamic_section(path: Path) -> list[str]:
    """DT_NEEDED names of an ELF file, read without binutils."""
    data = path.read_bytes()
    assert data[:5] == b"\x7fELF\x02", f"{path} is no 64-bit ELF file"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    table, entry, count = number(32, 8), number(54, 2), number(56, 2)
    segments = [
        (number(at, 4), number(at + 8, 8), number(at + 16, 8), number(at + 32, 8))
        for at in range(table, table + entry * count, entry)
    ]
    offset, size = next((o, s) for kind, o, _, s in segments if kind == 2)
    tags = [(number(at, 8), number(at + 8, 8)) for at in range(offset, offset + size, 16)]
    address = next(value for tag, value in tags if tag == 5)
    strings = next(
        o + address - v for kind, o, v, s in segments if kind == 1 and v <= address < v + s
    )
    ends = [data.index(b"\0", strings + value) for tag, value in tags if tag == 1]
    starts = [strings + value for tag, value in tags if tag == 1]
    return [data[a:b].decode() for a, b in zip(starts, ends, strict=True)]


@needs_native
def test_the_compiled_module_links_no_torch():
    needed = dynamic_section(Path(_library.C.__file__))
    assert needed, "no dynamic section was read"
    foreign = [name for name in needed if re.search(r"torch|c10|python|cuda|cudnn|cublas", name)]
    assert foreign == []


def test_no_torch_header_in_the_core():
    sources = [
        path
        for folder in ("kernels", "csrc")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".h", ".cpp", ".cu", ".cuh"}
    ]
    if not sources:
        pytest.skip("the tests run without the sources beside them")
    include = re.compile(r'#\s*include\s*[<"](torch|ATen|c10)/')
    assert [str(path) for path in sources if include.search(path.read_text())] == []
    python = re.compile(r'#\s*include\s*[<"](pybind11|Python\.h)')
    core = [path for path in sources if path.is_relative_to(ROOT / "kernels")]
    assert [str(path) for path in core if python.search(path.read_text())] == []


ONE_RUNTIME = """
import re, torch
a = torch.randn(64, 64)
a @ a
from patchword.ops import sample_features
sample_features(torch.randn(8, 64, 32, 32), torch.rand(8, 500, 2) * 32)
with open("/proc/self/maps") as maps:
    files = {line.split()[-1] for line in maps if re.search(r"/lib(gomp|omp|iomp5)[^/]*$", line)}
print(sorted(files))
"""


@needs_native
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc/self/maps is Linux's")
@pytest.mark.parametrize("first", ["", "import cv2\n"])
def test_one_openmp_runtime_in_the_process(first):
    if "cv2" in first:
        pytest.importorskip("cv2")
    package = str(Path(_library.__file__).parents[1])
    code = f"{first}import sys; sys.path.insert(0, {package!r})\n{ONE_RUNTIME}"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    files = eval(result.stdout)
    if torch.backends.openmp.is_available():
        assert len(files) == 1, f"more than one OpenMP runtime, or none: {files}"


@needs_native
def test_levels_are_forced_and_given_back():
    before = _library.C.cpu_level()
    with _library.cpu_level("generic"):
        assert _library.C.cpu_level() == "generic"
    assert _library.C.cpu_level() == before
    wrong = pytest.raises(ValueError, match="cpu_level: sse9 cannot be used: the levels are")
    with wrong, _library.cpu_level("sse9"):
        pass
    assert _library.C.cpu_level() == before


@needs_native
def test_build_info_says_what_was_built():
    info = _library.C.build_info()
    assert info["version"]
    assert info["compiler"]
    assert "generic" in info["cpu_levels"].split(",")
    assert re.match(r"on \(|off \(", info["cuda"])


@needs_native
def test_simulation_ends_with_its_block(simt):
    assert _library.runtime(torch.zeros(1))[0] == _library.CUDA


@needs_native
def test_simulation_of_a_missing_library_is_refused(tmp_path):
    wrong = pytest.raises(RuntimeError, match="cannot be loaded")
    with wrong, _library.simulate_cuda(tmp_path / "absent.so"):
        pass
    assert _library.runtime(torch.zeros(1))[0] == _library.CPU


def test_dispatcher_is_skipped_only_for_plain_tensors():
    plain, leaf = torch.zeros(2), torch.zeros(2, requires_grad=True)
    assert _library.plain_eager(plain, None)
    assert not _library.plain_eager(leaf)
    assert not _library.plain_eager(plain.to("meta"))
    with torch.no_grad():
        assert _library.plain_eager(leaf)

    class Special(torch.Tensor):
        pass

    assert not _library.plain_eager(plain.as_subclass(Special))

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            return function(*arguments, **(options or {}))

    with Mode():
        assert not _library.plain_eager(plain)
    seen = []
    torch.func.vmap(lambda t: seen.append(_library.plain_eager(t)) or t)(plain)
    assert seen == [False]


def test_scratch_is_kept_for_each_thread_while_it_is_small():
    plain, given = torch.zeros(1), []

    def entry(wanted: int, where: tuple[int, ...], *rest: str) -> int:
        *_, address, size = where
        given.append((address, size, rest))
        return 0 if size >= wanted else wanted

    def sizes(wanted: int) -> list[int]:
        given.clear()
        _library.launch(partial(entry, wanted), plain, "rest")
        assert {rest for _, _, rest in given} == {("rest",)}
        assert all((address != 0) == (size != 0) for address, size, _ in given)
        return [size for _, size, _ in given]

    def run() -> list[list[int]]:
        return [sizes(wanted) for wanted in (0, 1000, 500, 2000, 1 << 23, 1500)]

    expected = [[0], [0, 1000], [1000], [1000, 2000], [2000, 1 << 23], [2000]]
    with ThreadPoolExecutor(1) as fresh:  # this thread may hold more from another test
        assert fresh.submit(run).result() == expected
    with ThreadPoolExecutor(1) as other:
        assert other.submit(run).result() == expected
    torch.use_deterministic_algorithms(True)
    try:
        assert sizes(100) == sizes(100) == [0, 100]
    finally:
        torch.use_deterministic_algorithms(False)


@needs_native
def test_kernels_on_the_gpu_get_scratch_of_their_own(simt):
    given = []

    def entry(where: tuple[int, ...]) -> int:
        given.append(where[3:])
        return 0 if where[4] >= 64 else 64

    for _ in range(2):
        _library.launch(entry, torch.zeros(1))
    assert [size for _, size in given] == [0, 64, 0, 64]
