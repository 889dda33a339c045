# SPDX-License-Identifier: Apache-2.0
"""Runs the steps of gpu_check.sh under one deadline; every step's result is on disk at once.

Each test file is a process of its own: an illegal access ends the CUDA context of its process
alone, and a kernel that hangs costs only its file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "gpu_check"
STEPS = ("build", "tests", "sanitizer", "benchmarks")
NEEDED = ("torch", "numpy", "pytest", "pybind11", "rich", "tqdm")

# Seconds a step may take, and seconds it must leave to the steps after it.
BUILD, BUILD_LEAVES = 230, 250
TESTS, TESTS_LEAVES = 120, 160
SANITIZER, SANITIZER_LEAVES = 90, 110
ROW = 110
END = 12  # for the summary
AT_ONCE = 5  # test processes that share the GPU
SUITES = ("gpu", "refinement", "sequences", "ops", "attention")

# Warnings of another torch are no failures here, and no option may need a missing plugin.
PYTEST = ["-m", "pytest", "-v", "--tb=short", "--maxfail=40", "-W", "default", "-o", "addopts=-rfE"]
PYTEST += ["-o", "faulthandler_timeout=60", "-p", "no:cacheprovider", "--disable-warnings"]
# The largest inputs take the sanitizer, which slows kernels by 10 to 100, past its time.
SMALL = "not 5000 and not 2400 and not 1031"


class Check:
    """The deadline, the output folder, and what has happened so far."""

    def __init__(self, out: Path, seconds: float) -> None:
        """Empty the work folder and start the clock."""
        self.out, self.deadline = out, time.monotonic() + seconds
        self.lines: list[str] = []
        self.failed = 0
        self._live: set[subprocess.Popen[bytes]] = set()
        shutil.rmtree(WORK, ignore_errors=True)
        for folder in (out, WORK / "tests", WORK / "sanitizer", WORK / "results"):
            folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def say(self, line: str) -> None:
        """Print a line that the summary repeats."""
        print(line, flush=True)
        self.lines.append(line)

    def call(
        self, log: str, command: Sequence[str], limit: float, extra: dict[str, str] | None = None
    ) -> int:
        """Run a command of this Python or the shell; its exit status, 124 when it was stopped."""
        with (WORK / log).open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **(extra or {})},
                start_new_session=True,
            )
            self._live.add(process)
            try:
                return process.wait(max(1.0, limit))
            except subprocess.TimeoutExpired:
                self._kill(process)
                stream.write(f"\nstopped after {limit:.0f} s\n".encode())
                return 124
            finally:
                self._live.discard(process)

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(3)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def kill_all(self) -> None:
        """End whatever still runs."""
        for process in list(self._live):
            self._kill(process)

    def step(self, name: str, command: Sequence[str], limit: float, leaves: float = END) -> int:
        """Run one command as a step, within its limit and what the later steps leave."""
        limit = min(limit, self.left() - leaves)
        if limit < 5:
            self.failed += 1
            self.say(f"== {name}: NO TIME LEFT")
            return 124
        began = time.monotonic()
        status = self.call(f"{name}.log", command, limit)
        took = f"{time.monotonic() - began:.0f} s"
        state = {0: "ok", 124: "STOPPED"}.get(status, f"FAILED (exit {status})")
        self.failed += status != 0
        self.say(f"== {name}: {state}, {took}")
        self.save()
        return status

    def save(self) -> None:
        """Bring the output folder up to date; few files, since some machines hand back few."""
        for path in (WORK / "results").glob("*.json"):
            shutil.copy2(path, self.out / path.name)
        part = self.out / "logs.tar.gz.part"
        with tarfile.open(part, "w:gz") as archive:
            archive.add(WORK, arcname="gpu_check")
        part.replace(self.out / "logs.tar.gz")
        self.write_summary()

    def write_summary(self) -> str:
        """Write and return the summary of what is known."""
        import gpu_summary

        text = gpu_summary.summary(WORK, self.lines)
        (self.out / "summary.txt").write_text(text, encoding="utf-8")
        return text


def environment(check: Check, without_gpu: bool) -> bool:
    """Say what the machine has; False when the check cannot go on."""
    check.call("gpu.txt", ["nvidia-smi"], 30) if shutil.which("nvidia-smi") else None
    program = (
        "import json, sys, torch, importlib.util as u\n"
        f"missing = [n for n in {NEEDED!r} if u.find_spec(n) is None]\n"
        "gpu = torch.cuda.is_available()\n"
        "at = torch.cuda.get_device_properties(0) if gpu else None\n"
        "triton = u.find_spec('triton') and __import__('triton').__version__\n"
        "print(json.dumps({'python': sys.version.split()[0], 'torch': torch.__version__,\n"
        " 'cuda': torch.version.cuda, 'triton': triton, 'missing': missing,\n"
        " 'gpu': at and at.name, 'arch': at and f'{at.major}{at.minor}'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        check.say(f"gpu_check: torch does not import: {(done.stderr.splitlines() or ['?'])[-1]}")
        return False
    facts = json.loads(done.stdout.splitlines()[-1])
    check.say(", ".join(f"{k} {v}" for k, v in facts.items() if v))
    if facts["missing"]:
        check.say(f"gpu_check: not installed: {', '.join(facts['missing'])}; what needs it fails")
    for tool in ("nvcc", "cmake", "ninja"):
        if shutil.which(tool) is None:
            check.say(f"gpu_check: {tool} is not on PATH")
    if facts["gpu"] is None:
        check.say("gpu_check: torch sees no GPU")
        return without_gpu
    # Code of 90a uses instructions that exist on that chip alone.
    arch = "90a" if facts["arch"] == "90" else facts["arch"]
    os.environ.setdefault("PATCHWORD_CUDA_ARCHS", f"{arch}-real")
    return True


def build(check: Check) -> bool:
    """Build in place for this GPU alone."""
    os.environ.setdefault("PATCHWORD_CUDA_ARCHS", "90a-real")
    os.environ.setdefault("JOBS", str(os.cpu_count() or 2))
    os.environ["PYTHON"] = sys.executable
    command = ["scripts/dev_build.sh", "--cuda", "--no-emulated"]
    if check.step("build", command, BUILD, BUILD_LEAVES):
        return False
    program = "from patchword import _library, ops; print(_library.C.build_info())"
    return check.step("import", [sys.executable, "-c", program], 60) == 0


def _files(mark: str) -> list[str]:
    files = sorted((ROOT / "tests" / "ops").glob("test_*.py"))
    return [str(f.relative_to(ROOT)) for f in files if f"mark.{mark}" in f.read_text("utf-8")]


def _job(
    check: Check, folder: str, name: str, selection: list[str], before: list[str], limit: float
) -> str | None:
    """Run one pytest process; what went wrong, or None."""
    report = ["--junitxml", str(WORK / folder / f"{name}.xml")]
    # Tests name no plugin, so a machine's own must not interfere. Products on a GPU may be asked
    # to be deterministic only with this workspace.
    extra = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    extra["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or AT_ONCE) // AT_ONCE))
    if before:  # one allocation per tensor, or writes outside of one would hit its neighbour
        extra["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    command = [*before, sys.executable, *PYTEST, *report, *selection]
    limit = min(limit, check.left() - END)
    if limit < 5:
        return f"{name}: no time left"
    status = check.call(f"{folder}/{name}.log", command, limit, extra)
    if status in (0, 5):  # 5: nothing is selected
        return None
    state = f"stopped after {limit:.0f} s" if status == 124 else f"exit {status}"
    return f"{name}: {state}"


def _pool(
    check: Check, step: str, jobs: list[tuple[str, list[str], list[str]]], at_once: int, room: float
) -> None:
    """Run pytest jobs (name, selection, command before) a few at a time within ``room`` seconds."""
    began = time.monotonic()
    if room < 10:
        check.failed += 1
        check.say(f"== {step}: NO TIME LEFT")
        return

    def one(job: tuple[str, list[str], list[str]]) -> str | None:
        name, selection, before = job
        return _job(check, step, name, selection, before, began + room - time.monotonic())

    with ThreadPoolExecutor(at_once) as pool:
        wrong = [line for line in pool.map(one, jobs) if line]
    check.failed += bool(wrong)
    state = f"{len(wrong)} of {len(jobs)} FAILED" if wrong else f"{len(jobs)} ok"
    check.say(f"== {step}: {state}, {time.monotonic() - began:.0f} s")
    for line in wrong[:20]:
        check.say(f"   {line}")
    check.save()


def tests(check: Check) -> None:
    """Every CUDA and Triton test; the interpreter is for machines without a GPU."""
    library = "python/patchword/libpatchword_cuda.so"
    resources = [sys.executable, "scripts/kernel_resources.py", library, "--json"]
    jobs = [(Path(file).stem, [file, "-m", "cuda"], []) for file in _files("cuda")]
    jobs.append(("test_triton_compiles", ["tests/ops/test_triton_compiles.py"], []))
    with ThreadPoolExecutor(1) as beside:
        beside.submit(check.call, "resources.json", resources, TESTS)
        _pool(check, "tests", jobs, AT_ONCE, min(TESTS, check.left() - TESTS_LEAVES))


def sanitizer(check: Check) -> None:
    """Memcheck and racecheck of our own kernels on the small tests."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        check.say("== sanitizer: compute-sanitizer is not installed, skipped")
        return
    # Our kernels only; torch asks the driver questions whose answer is an error, on purpose.
    options = ["--error-exitcode", "9", "--kernel-name", "kns=patchword", "--print-limit", "20"]
    options += ["--report-api-errors", "no"]
    jobs = []
    for name in ("memcheck", "racecheck"):
        before = [tool, "--tool", name, *options]
        for file in _files("sanitizer"):
            selection = [file, "-m", "cuda and sanitizer", "-k", SMALL]
            jobs.append((f"{name}-{Path(file).stem}", selection, before))
    room = min(SANITIZER, check.left() - SANITIZER_LEAVES)
    _pool(check, "sanitizer", jobs, 2 * AT_ONCE, room)


def benchmarks(check: Check) -> None:
    """The suites in order, each continued after a crash until its rows or the time are used up."""
    for suite in SUITES:
        for attempt in range(8):
            room = check.left() - END
            if room < 25:
                check.say(f"== benchmarks, {suite}: the time is used up")
                return
            command = [sys.executable, "-m", "benchmarks.run", "--device", "cuda", "--suite", suite]
            command += [
                "--folder",
                str(WORK / "results"),
                "--resume",
                "--seconds",
                f"{room - 15:.0f}",
            ]
            command += ["--row-seconds", f"{min(ROW, room):.0f}"]
            status = check.call(f"benchmarks-{suite}-{attempt}.log", command, room)
            found = [json.loads(p.read_text()) for p in _results(suite)]
            check.save()
            if status == 2 or not found:
                check.failed += 1
                log = (WORK / f"benchmarks-{suite}-{attempt}.log").read_text(errors="replace")
                last = (log.strip().splitlines() or ["no output"])[-1]
                check.say(f"== benchmarks, {suite}: FAILED (exit {status}): {last[:300]}")
                return
            if not found[0]["unmeasured"]:
                check.failed += status == 1
                check.say(f"== benchmarks, {suite}: {'void rows' if status == 1 else 'ok'}")
                break


def _results(suite: str) -> list[Path]:
    return sorted((WORK / "results").glob(f"{suite}--*.json"))


def main() -> int:
    """Run the steps; the number of those that failed, 99 at most."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=WORK.parent / "gpu_check_output")
    parser.add_argument("--seconds", type=float, default=570.0, help="ends by itself after this")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument(
        "--without-gpu", action="store_true", help="go on without one: tests skip, a rehearsal"
    )
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    paths = [str(ROOT / "python"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    check = Check(options.out.resolve(), options.seconds)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        if environment(check, options.without_gpu):
            ready = build(check) if "build" in options.steps else True
            for step in (tests, sanitizer, benchmarks):
                if ready and step.__name__ in options.steps:
                    step(check)
        else:
            check.failed += 1
    except KeyboardInterrupt:
        check.failed += 1
        check.say("gpu_check: interrupted")
        check.kill_all()
    check.say(f"{check.failed} step(s) failed, {check.left():.0f} s left")
    check.save()
    print(check.write_summary(), flush=True)
    return min(check.failed, 99)


if __name__ == "__main__":
    sys.exit(main())
