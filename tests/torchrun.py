# SPDX-License-Identifier: Apache-2.0
"""Starts a program as several processes under torchrun, as a user would on one machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# torchrun looks for a free port and binds it a moment later; tests that run beside this one may
# have taken it by then. That is no fault of what is tested.
_NETWORK = (
    "address already in use",
    "eaddrinuse",
    "distnetworkerror",
    "rendezvousconnectionerror",
    "connection refused",
    "connection reset",
)
_ATTEMPTS = 3


def run_processes(*program: object, count: int = 2, timeout: float = 280) -> None:
    """Run a program as ``count`` processes of one thread; a failure shows what they printed.

    Args:
        program: A script, or ``-m`` and a module, and its arguments.
        count: Processes.
        timeout: Seconds.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    for attempt in range(_ATTEMPTS):
        done = subprocess.run(
            [*command, *map(str, program)],
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=timeout,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return
        network = any(word in done.stderr.lower() for word in _NETWORK)
        if not network or attempt + 1 == _ATTEMPTS:
            pytest.fail(f"{program[0]} failed under torchrun:\n{done.stderr[-6000:]}")
