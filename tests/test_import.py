# SPDX-License-Identifier: Apache-2.0
"""Importing the package is quick, silent and without side effects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import patchword

FORBIDDEN = ("torchvision", "triton", "cv2", "matplotlib")
# Everything that `import patchword` and a look at its public modules may bring in.
MODULES = (
    "patchword",
    "patchword.errors",
    "patchword.ops",
    "patchword.data",
    "patchword.viz",
    "patchword.inference.gallery",
    "patchword.inference.locating",
)


def python(code: str) -> subprocess.CompletedProcess[str]:
    path = str(Path(patchword.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", MODULES)
def test_no_side_effects(module: str) -> None:
    done = python(f"""
import logging, random, socket, sys
import numpy, torch
loaded = set(sys.modules)

def no_socket(*a, **k):
    raise AssertionError("a socket was opened")

socket.socket = socket.create_connection = no_socket
states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
threads = torch.get_num_threads()
import {module}
after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
assert states == after, "a global generator was used"
assert torch.get_num_threads() == threads
new = {{name.split(".")[0] for name in set(sys.modules) - loaded}}
assert not new & set({FORBIDDEN!r}), new
handlers = logging.getLogger("patchword").handlers + logging.getLogger().handlers
assert all(isinstance(h, logging.NullHandler) for h in handlers), handlers
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_command_line_parses_without_torch() -> None:
    done = python("""
import sys
from patchword.cli.main import main
code = main(["match", "--help"])
heavy = {"torch", "cv2", "matplotlib", "rich"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_import_needs_less_than_a_second_of_cpu_beyond_torch() -> None:
    # CPU seconds of the process, which other processes on the machine do not change.
    code = """
import time, torch, numpy
start = time.process_time()
import patchword, patchword.ops, patchword.data
print(time.process_time() - start)
"""
    assert float(python(code).stdout) < 1.0


def test_module_runs_as_a_program() -> None:
    path = str(Path(patchword.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "patchword", "--version"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"patchword {patchword.__version__}\n"
