# SPDX-License-Identifier: Apache-2.0
"""Run a program whose Triton kernels are interpreted, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Triton 3.6 with NumPy 2.5: `range` over an argument of a kernel fails in every program.
UPSTREAM = "only 0-dimensional arrays can be converted to Python scalars"


def interpret(program: str) -> str:
    """What ``program`` prints; the interpreter must be chosen before triton is imported."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        },
    )
    if UPSTREAM in done.stderr and "interpreter.py" in done.stderr:
        pytest.skip("this version of Triton's interpreter does not work with this NumPy")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()
