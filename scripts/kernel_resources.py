#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Print what each CUDA kernel of a library costs: registers, spills, shared memory, instructions.

    python scripts/kernel_resources.py [LIBRARY] [--json]

LIBRARY is python/patchword/libpatchword_cuda.so unless named. Needs cuobjdump of the CUDA toolkit
(PATH or CUDA_HOME) or the copy that comes with triton; no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

DEFAULT = Path(__file__).resolve().parents[1] / "python/patchword/libpatchword_cuda.so"

# What is looked for in the machine code, and the instructions that show it.
TENSOR_CORES = re.compile(r"\b(HMMA|IMMA|HGMMA|IGMMA|QGMMA|UTCHMMA)\b")
WIDE_LOADS = re.compile(
    r"\bLD(G|S|)\.(\w+\.)*128\b|\bLDGSTS\.(\w+\.)*128\b|\bLDSM\.16\.M\w+\.4\b|\bUTMALDG\b"
)


@dataclass(frozen=True)
class Kernel:
    """Resources of one kernel on one architecture."""

    kernel: str
    """Name with template arguments, without namespaces and parameters."""
    arch: str
    registers: int
    stack_bytes: int
    """Spilled registers and arrays that are indexed at run time, per thread."""
    local_bytes: int
    shared_bytes: int
    """Static shared memory; the dynamic one is chosen at launch."""
    tensor_cores: bool
    wide_loads: bool


def find_cuobjdump() -> Path | None:
    """The disassembler: toolkit on PATH, toolkit named by the environment, triton's copy."""
    found = shutil.which("cuobjdump")
    if found:
        return Path(found)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (Path(home) / "bin/cuobjdump").exists():
            return Path(home) / "bin/cuobjdump"
    for place in sorted(Path("/usr/local").glob("cuda*/bin/cuobjdump"), reverse=True):
        return place
    triton = find_spec("triton")
    if triton is not None and triton.origin:
        inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
        if inside.exists():
            return inside
    return None


def _run(tool: Path, option: str, library: Path) -> str:
    # cuobjdump starts its disassembler by name.
    path = os.pathsep.join([str(tool.parent), os.environ.get("PATH", "")])
    result = subprocess.run(
        [tool, option, library],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    if result.returncode != 0:
        last = (result.stderr.strip() or "no message").splitlines()[-1]
        raise SystemExit(f"kernel_resources: {tool.name} cannot read {library}: {last}.")
    return result.stdout


def _plain_names(mangled: list[str]) -> dict[str, str]:
    names = dict(zip(mangled, mangled, strict=True))
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not mangled:
        return names
    text = subprocess.run(
        [tool], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout
    for key, full in zip(mangled, text.splitlines(), strict=True):
        name = re.sub(r"\(anonymous namespace\)::|\bpatchword::(\w+::)*", "", full)
        depth, end = 0, len(name)
        for at, letter in enumerate(name):
            depth += {"<": 1, ">": -1}.get(letter, 0)
            if letter == "(" and depth == 0:
                end = at
                break
        names[key] = name[:end].removeprefix("void ")
    return names


def read(library: Path, tool: Path) -> list[Kernel]:
    """Kernels of ``library``, by name and architecture."""
    costs: dict[tuple[str, str], dict[str, int]] = {}
    arch = name = ""
    for line in _run(tool, "--dump-resource-usage", library).splitlines():
        if match := re.match(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+?):$", line):
            name = match[1]
        elif name and "REG:" in line:
            costs[name, arch] = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}
            name = ""
    tensor: set[tuple[str, str]] = set()
    wide: set[tuple[str, str]] = set()
    for line in _run(tool, "-sass", library).splitlines():
        if match := re.match(r"\s*arch = (sm_\w+)|\s*Function : (\S+)", line):
            arch, name = match[1] or arch, match[2] or name
        elif ";" in line:
            if TENSOR_CORES.search(line):
                tensor.add((name, arch))
            if WIDE_LOADS.search(line):
                wide.add((name, arch))
    names = _plain_names(sorted({key for key, _ in costs}))
    return sorted(
        (
            Kernel(
                kernel=names[key],
                arch=arch,
                registers=cost.get("REG", 0),
                stack_bytes=cost.get("STACK", 0),
                local_bytes=cost.get("LOCAL", 0),
                shared_bytes=cost.get("SHARED", 0),
                tensor_cores=(key, arch) in tensor,
                wide_loads=(key, arch) in wide,
            )
            for (key, arch), cost in costs.items()
        ),
        key=lambda k: (k.kernel, k.arch),
    )


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    arguments = parser.parse_args()
    if not arguments.library.exists():
        print(
            f"kernel_resources: {arguments.library} does not exist. "
            "Build it with scripts/dev_build.sh --cuda.",
            file=sys.stderr,
        )
        return 3
    tool = find_cuobjdump()
    if tool is None:
        print(
            "kernel_resources: cuobjdump was not found. "
            "Install the CUDA toolkit, set CUDA_HOME, or install triton.",
            file=sys.stderr,
        )
        return 3
    kernels = read(arguments.library, tool)
    if arguments.json:
        print(json.dumps([asdict(k) for k in kernels], indent=1))
        return 0
    row = "{:8} {:>5} {:>6} {:>6} {:>7} {:>7} {:>6}  {}"
    print(row.format("arch", "regs", "stack", "local", "shared", "tensor", "wide", "kernel"))
    for k in kernels:
        flags = ["yes" if flag else "-" for flag in (k.tensor_cores, k.wide_loads)]
        costs = (k.registers, k.stack_bytes, k.local_bytes, k.shared_bytes)
        print(row.format(k.arch, *costs, *flags, k.kernel))
    return 0


if __name__ == "__main__":
    sys.exit(main())
