# SPDX-License-Identifier: Apache-2.0
"""Peak extra memory of one call, native allocations included, measured in a fresh process.

A template process imports the libraries once and forks a child per candidate. The child makes a
small call (so that code, thread stacks and library state exist), lets the allocator hand back
what it can, resets the kernel's high-water mark of the resident set and makes the real call.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common import NotAvailable, Run, count_bytes, set_threads

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def read_status(field: str) -> int:
    """Return a field of /proc/self/status, such as VmRSS or VmHWM, in bytes."""
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise NotAvailable(f"/proc/self/status has no {field}")


def available_bytes() -> int:
    """Return MemAvailable of this machine in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise NotAvailable("/proc/meminfo has no MemAvailable")


def peak_of_call(run: Run) -> tuple[int, int]:
    """Return (peak extra bytes during the call, bytes of its result).

    Raises:
        NotAvailable: the system does not let a process reset its high-water mark.
    """
    gc.collect()
    with suppress(AttributeError):  # musl has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError as error:
        raise NotAvailable("cannot reset the peak in /proc/self/clear_refs") from error
    before = read_status("VmRSS")
    result = run()
    return max(0, read_status("VmHWM") - before), count_bytes(result)


def _without_gradients() -> AbstractContextManager[Any]:
    torch = sys.modules.get("torch")
    return torch.inference_mode() if torch else nullcontext()


def _child(request: tuple[Any, ...]) -> tuple[str, Any]:
    build, small, full, threads = request
    try:
        limit = read_status("VmSize") + int(0.8 * available_bytes())
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # fail before the machine swaps
        set_threads(threads)
        with _without_gradients():
            if small is not None:
                build(small)()
                run = build(full)
            else:
                run = build(full)
                run()
            return "ok", peak_of_call(run)
    except NotAvailable as missing:
        return "missing", str(missing)
    except MemoryError:
        return "missing", "out of memory"
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        if "DefaultCPUAllocator" in message:  # torch's form of MemoryError
            return "missing", "out of memory"
        if type(error).__name__ == "BackendError":
            return "missing", message
        return "error", f"raised {type(error).__name__}: {message}"


class MemoryTemplate:
    """The process that forks a measuring child per candidate."""

    def __init__(self, threads: int) -> None:
        """Start the template process for candidates that use ``threads`` threads."""
        self._threads = threads
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}
        environment["OMP_NUM_THREADS"] = str(threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.memory"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=Path(__file__).parents[1],
        )

    def measure(
        self, build: Callable[[Any], Run], small: dict[str, Any] | None, full: dict[str, Any]
    ) -> tuple[int, int]:
        """Return (peak extra bytes, bytes of the result) of ``build(full)()``.

        Args:
            build: top-level function or partial of one that returns the call.
            small: inputs of the small warm-up call; None warms up with the full inputs, for
                compiled candidates, whose code depends on the shapes.
            full: inputs of the measured call.

        Raises:
            NotAvailable: the candidate cannot run or was killed; the message says why.
            RuntimeError: the candidate raised an error.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise NotAvailable("the template process has no pipes")
        pickle.dump((build, small, full, self._threads), stdin)
        stdin.flush()
        status, value = pickle.load(stdout)
        if status == "error":
            raise RuntimeError(value)
        if status != "ok":
            raise NotAvailable(value)
        peak, kept = value
        return int(peak), int(kept)

    def close(self) -> None:
        """End the template process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        self._process.wait(timeout=10)


def serve() -> None:
    """Fork a child per request until the pipe closes."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for name in ("torch", "cv2", "faiss"):
        with suppress(ImportError):
            import_module(name)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        read_end, write_end = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(read_end)
            with os.fdopen(write_end, "wb") as stream:
                pickle.dump(_child(request), stream)
            os._exit(0)
        os.close(write_end)
        del request
        with os.fdopen(read_end, "rb") as stream:
            answer = stream.read()
        _, status = os.waitpid(pid, 0)
        if not answer:
            answer = pickle.dumps(("missing", f"the measuring process ended with {status}"))
        replies.write(answer)
        replies.flush()


if __name__ == "__main__":
    serve()
