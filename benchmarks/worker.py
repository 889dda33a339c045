# SPDX-License-Identifier: Apache-2.0
"""A persistent helper process for libraries whose BLAS is configured before it is loaded.

OpenBLAS reads ``OPENBLAS_CORETYPE`` and ``OPENBLAS_NUM_THREADS`` once, so NumPy and FAISS run
here, one process per setting, and take their samples in turn with the other candidates.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from benchmarks.common import NotAvailable, Run, Sample, set_threads, time_call
from benchmarks.provenance import cpu_flags

SKYLAKEX = "SkylakeX"
SKYLAKEX_FLAGS = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def _send(stream: IO[bytes], message: Any) -> None:
    pickle.dump(message, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


class BlasWorker:
    """Client side: loads candidates into the helper process and asks it for samples."""

    def __init__(self, threads: int, core_type: str | None = None) -> None:
        """Start the process.

        Raises:
            NotAvailable: the CPU lacks what ``core_type`` needs, or the process dies at once.
        """
        if core_type == SKYLAKEX and not cpu_flags() >= SKYLAKEX_FLAGS:
            raise NotAvailable("CPU has no AVX-512")
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}
        environment["OMP_NUM_THREADS"] = str(threads)
        if core_type:
            environment["OPENBLAS_CORETYPE"] = core_type
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        self._ask("threads", threads)

    def _ask(self, *request: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise NotAvailable("the helper process has no pipes")
        try:
            _send(stdin, request)
            status, value = pickle.load(stdout)
        except (EOFError, BrokenPipeError) as error:
            code = self._process.wait()
            raise NotAvailable(f"the helper process ended with status {code}") from error
        if status == "missing":
            raise NotAvailable(value)
        if status == "error":
            raise RuntimeError(value)
        return value

    def load(self, name: str, build: Callable[[Any], Run], inputs: dict[str, Any]) -> None:
        """Build the candidate ``build(inputs)`` in the helper under ``name``."""
        self._ask("load", name, build, inputs)

    def unload(self) -> None:
        """Forget every candidate and its inputs."""
        self._ask("unload")

    def output(self, name: str) -> Any:
        """Call a candidate once and return what it returned."""
        return self._ask("output", name)

    def measure(self, name: str, loops: int, warm: bool) -> Sample:
        """Time a candidate in the helper process."""
        sample: Sample = self._ask("measure", name, loops, warm)
        return sample

    def close(self) -> None:
        """End the helper process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        self._process.wait(timeout=10)


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer requests until the pipe closes."""
    runs: dict[str, Run] = {}
    threads = 1
    while True:
        try:
            kind, *arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            value: Any = None
            if kind == "threads":
                threads = arguments[0]
            elif kind == "load":
                name, build, inputs = arguments
                runs[name] = build(inputs)
                set_threads(threads)
            elif kind == "unload":
                runs.clear()
            elif kind == "output":
                value = runs[arguments[0]]()
            else:
                name, loops, warm = arguments
                value = time_call(runs[name], loops, warm)
            _send(replies, ("ok", value))
        except NotAvailable as missing:
            _send(replies, ("missing", str(missing)))
        except Exception:
            _send(replies, ("error", traceback.format_exc()))


if __name__ == "__main__":
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print must not break the protocol
    serve(sys.stdin.buffer, pipe)
