# SPDX-License-Identifier: Apache-2.0
"""Large outputs lie in memory that the system may map by huge pages, small ones are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from patchword import _library

# Prints whether the mapping of a large output is marked for huge pages ("hg").
PROGRAM = """
import torch
from patchword import _library

memory = torch.empty(int({megabytes} * 2**20), dtype=torch.uint8)
place = _library.written(memory) + memory.nbytes // 2
inside = False
for line in open("/proc/self/smaps"):
    first, *rest = line.split()
    if "-" in first and not first.endswith(":"):
        low, high = (int(end, 16) for end in first.split("-"))
        inside = low <= place < high
    elif inside and first == "VmFlags:":
        print("hg" in rest)
"""

pytestmark = pytest.mark.skipif(_library.C is None, reason="needs the compiled module")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists()
    or not Path("/proc/self/smaps").exists(),
    reason="the system has no transparent huge pages",
)
@pytest.mark.parametrize(
    ("megabytes", "setting", "marked"),
    [(64, "1", "True"), (64, "0", "False"), (3.9, "1", "False")],
)
def test_only_large_outputs_are_marked_and_only_when_wanted(
    megabytes: float, setting: str, marked: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(megabytes=megabytes)],
        env={**os.environ, "PATCHWORD_HUGE_PAGES": setting},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [marked]


def test_an_absent_output_has_no_address() -> None:
    assert _library.written(None) == 0
