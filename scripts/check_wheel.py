# SPDX-License-Identifier: Apache-2.0
"""Check the wheels of a folder: size, contents, and what the shared objects link.

Usage: ``python scripts/check_wheel.py dist``
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MAX_MEGABYTES = 60
# Libraries that every Linux with Python has; anything else must not be needed.
ALLOWED = ("libc.", "libm.", "libdl.", "librt.", "libpthread.", "libstdc++.", "libgcc_s.", "ld-")


def needed(library: Path) -> list[str]:
    """Names of the shared libraries that ``library`` asks the loader for."""
    output = subprocess.run(
        ["readelf", "--dynamic", str(library)], check=True, capture_output=True, text=True
    ).stdout
    return [line.split("[")[1].rstrip("]") for line in output.splitlines() if "(NEEDED)" in line]


def problems_of(wheel: Path) -> list[str]:
    """Everything that must not be shipped, one sentence each."""
    problems = []
    megabytes = wheel.stat().st_size / 1e6
    if megabytes > MAX_MEGABYTES:
        problems.append(f"{wheel.name}: must be under {MAX_MEGABYTES} MB, is {megabytes:.1f} MB.")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        for required in ("patchword/__init__.py", "patchword/py.typed"):
            if required not in names:
                problems.append(f"{wheel.name}: {required} is missing.")
        stray = [n for n in names if n.split("/")[0].startswith(("tests", "benchmarks", "csrc"))]
        problems += [f"{wheel.name}: {name} must not be shipped." for name in stray[:5]]
        libraries = [name for name in names if name.endswith(".so")]
        if not any("_C." in name for name in libraries):
            problems.append(f"{wheel.name}: the compiled module _C is missing.")
        for name in libraries:
            links = needed(Path(archive.extract(name, folder)))
            extra = [link for link in links if not link.startswith(ALLOWED)]
            if extra:
                problems.append(f"{wheel.name}: {name} needs {', '.join(extra)}.")
    return problems


def main() -> int:
    """Print each wheel's size and its problems; 1 when there are any."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "dist")
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        print(f"check_wheel: {folder} holds no wheel.")
        return 1
    problems = []
    for wheel in wheels:
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
        problems += problems_of(wheel)
    print("\n".join(problems) if problems else "no problems found")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
