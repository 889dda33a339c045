# SPDX-License-Identifier: Apache-2.0
"""Where a measurement comes from: commit, machine, settings and versions."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python", "opencv-python-headless"),
    "faiss": ("faiss-cpu", "faiss-gpu-cu12", "faiss-gpu"),
    "triton": ("triton",),
}


def _cpuinfo(field: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{field}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def cpu_flags() -> set[str]:
    """Return the CPU's feature flags as Linux names them."""
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _patchword() -> dict[str, Any]:
    """Return the library's own version and, where the compiled core is present, its CPU level."""
    try:
        import patchword
    except ImportError as error:
        return {"version": None, "core": f"not importable: {error}"}
    facts: dict[str, Any] = {"version": patchword.__version__}
    try:
        from patchword import _C  # type: ignore[attr-defined, unused-ignore]

        facts["core"] = "present"
        for name in ("cpu_level", "build_info"):
            if callable(ask := getattr(_C, name, None)):
                facts[name] = ask()
    except ImportError as error:
        facts["core"] = f"not importable: {error}"
    return facts


def machine_name(device: str = "cpu") -> str:
    """Return a short file-name-safe name of the kind, such as amd-epyc-2c or nvidia-h200."""
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_properties(0).name
        return "-".join(re.findall(r"[a-z0-9]+", name.lower())[:4])
    model = _cpuinfo("model name") or platform.machine()
    words = re.sub(r"\(.*?\)|@.*|\bCPU\b|\bProcessor\b", " ", model).lower()
    return "-".join(re.findall(r"[a-z0-9]+", words)[:4]) + f"-{os.cpu_count()}c"


def collect(device: str) -> dict[str, Any]:
    """Return the provenance block of a result file."""
    import torch

    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    # A copy of a clean tree without its history: whoever copied it says which commit it is.
    if commit is None and (named := os.environ.get("PATCHWORD_COMMIT")):
        commit, status = named, ""
    facts: dict[str, Any] = {
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine_name(device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpuinfo("model name") or platform.machine(),
        "cpu_flags": sorted(cpu_flags()),
        "logical_cpus": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": {key: _version(names) for key, names in PACKAGES.items()},
        "patchword": _patchword(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "environment": {
            key: value
            for key, value in os.environ.items()
            if key.startswith(("PATCHWORD_", "OMP_", "OPENBLAS_", "MKL_"))
        },
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            **_nvidia_smi(),
        }
    return facts


def _nvidia_smi() -> dict[str, str]:
    """Return driver, clocks and power limit as nvidia-smi prints them; empty where it is absent."""
    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = done.stdout.splitlines()
    if not lines:
        return {}
    return dict(zip(fields, (value.strip() for value in lines[0].split(",")), strict=False))
