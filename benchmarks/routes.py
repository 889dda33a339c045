# SPDX-License-Identifier: Apache-2.0
"""Measures which kernel runs each shape of attention fastest, and writes the table of routes.

``python -m benchmarks.routes --device cpu`` (or ``cuda``) replaces the entry of this processor's
level, or of this GPU, in ``python/patchword/ops/attention/routes.json``. A shape leaves our kernel
only where another is ahead by more than the noise at every thread count. Stopped runs continue.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import NotAvailable, Run, set_threads, time_call
from benchmarks.cuda_timing import CudaTimer, require_cuda
from benchmarks.provenance import ROOT, collect
from patchword.errors import BackendError
from patchword.inference.atomic import write_text
from patchword.ops import attention, dual_attention, pair_attention
from patchword.ops.attention import routes

NOISE = 1.03
"""A kernel is ahead where both its median and its minimum are, by more than this."""
SAMPLES, SAMPLES_SLOW, SLOW_S = 7, 3, 0.05
SAMPLE_S = {"cpu": 2e-3, "cuda": 5e-4}
HOPELESS = 1.3
LATE_S, COLD = 5e-5, 3.0
"""A warm call that takes so many times as long as ours, and so much longer, ends a candidate's
part before its samples."""

CANDIDATES = {
    "cpu": ("native", "sdpa"),
    "cuda": ("native", "sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math"),
}
GRIDS: dict[str, dict[str, list[int]]] = {
    "cpu": {
        "problems": [8, 120],
        "queries": [1, 4, 10, 64, 256, 1024],
        "keys": [10, 64, 256, 1024],
        "dim": [32, 64, 128],
    },
    "cuda": {
        "problems": [8, 64, 512],
        "queries": [1, 16, 64, 256, 1024, 4096],
        "keys": [16, 64, 256, 1024, 4096],
        "dim": [32, 64, 128],
    },
}
MOST_OPERATIONS = {"cpu": 3e8, "cuda": 2e13}
"""Above it, more problems of the same size take the route of fewer: only the sum grows."""
QUICK_GRID = {"problems": [8], "queries": [10], "keys": [10, 64], "dim": [32]}


@dataclass(frozen=True)
class Shape:
    """A cell of the grid."""

    dtype: str
    form: str
    direction: str
    problems: int
    queries: int
    keys: int
    dim: int

    @property
    def operations(self) -> float:
        """Floating-point operations of the forward pass of one stream."""
        return 4.0 * self.problems * self.queries * self.keys * self.dim


def shapes(device: str, grid: dict[str, list[int]], form: str) -> Iterator[Shape]:
    """Yield the cells of a form that are measured; larger counts of problems inherit."""
    axes = [grid[name] for name in routes.AXES]
    for dtype, direction in itertools.product(routes.DTYPES, routes.DIRECTIONS):
        for sizes in itertools.product(*axes):
            shape = Shape(dtype, form, direction, *sizes)
            if sizes[0] == axes[0][0] or shape.operations <= MOST_OPERATIONS[device]:
                yield shape


def _draw(shape: Shape, device: str) -> list[Tensor]:
    """Queries, keys and values as views whose heads lie side by side, as projections make them."""
    heads = 8
    batch = shape.problems // heads
    generator = torch.Generator().manual_seed(3)
    tensors = []
    for count in (shape.queries, shape.keys, shape.keys):
        rows = torch.randn(batch, count, heads, shape.dim, generator=generator)
        rows = rows.to(device, getattr(torch, shape.dtype)).transpose(1, 2)
        tensors.append(rows.requires_grad_(shape.direction == "training"))
    return tensors


def _call(shape: Shape, device: str) -> Callable[[], Any]:
    """The op on this shape; a pair is two sets of the same sizes."""
    q, k, v = _draw(shape, device)
    if shape.form == "pair":
        return partial(pair_attention, q, k, v, q, k, v, cross=True)
    if shape.form == "dual":
        # Keys and queries are of one number there.
        return partial(dual_attention, k, k, v)
    if shape.form == "masked":
        mask = torch.ones(q.shape[0], shape.keys, dtype=torch.bool, device=device)
        mask[:, shape.keys - shape.keys // 8 :] = False
        return partial(attention, q, k, v, key_mask=mask)
    return partial(attention, q, k, v)


def _train(call: Callable[[], Any]) -> tuple[Tensor, ...]:
    outs = call()
    outs = outs if isinstance(outs, tuple) else (outs,)
    inputs = {id(t): t for t in call.args if isinstance(t, Tensor)}  # type: ignore[attr-defined]
    return torch.autograd.grad(
        outs, list(inputs.values()), [torch.ones_like(out) for out in outs], allow_unused=True
    )


class Stopwatch:
    """Seconds of a call on the device: CPU time on one thread, wall time on more, or events."""

    def __init__(self, device: str, threads: int) -> None:
        """Prepare the timing of a device."""
        self.device, self.threads = device, threads
        self._cuda = CudaTimer() if device == "cuda" else None

    def __call__(self, run: Run, loops: int) -> float:
        """Time ``loops`` calls and return the mean."""
        if self._cuda is not None:
            return self._cuda.warm(run, loops).wall
        return time_call(run, loops).seconds(self.threads)


def _timed(watch: Callable[[Run, int], float], work: Run, name: str, loops: int) -> float:
    """Seconds of a call by a route, which is forced once: a change of routes forgets plans."""
    with routes.use_route(name):
        return watch(work, loops)


def measure(shape: Shape, watch: Stopwatch, names: Sequence[str]) -> dict[str, list[float]]:
    """Take samples of each candidate in turn; those that refuse or lag far behind are left out."""
    call = _call(shape, watch.device)
    work = partial(_train, call) if shape.direction == "training" else call
    runs, loops = {}, {}
    first: dict[str, float] = {}
    for name in names:
        run = partial(_timed, watch, work, name)
        limit = HOPELESS * first["native"] + LATE_S if "native" in first else math.inf
        try:
            # A cold call so late needs no warm one: some kernels take seconds on some types.
            if run(1) > COLD * limit:
                continue
            first[name] = run(1)
        except (BackendError, RuntimeError):
            continue
        if first[name] > limit:
            continue
        runs[name] = run
        loops[name] = max(1, int(SAMPLE_S[watch.device] / max(first[name], 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    if list(runs) == ["native"]:
        return {"native": [first["native"]]}
    slow = min(first.values()) > SLOW_S
    for turn in range(SAMPLES_SLOW if slow else SAMPLES):
        order = list(runs)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            taken[name].append(runs[name](loops[name]))
    return taken


def verdict(taken: dict[str, list[float]]) -> tuple[str, float]:
    """The winner and how many times as fast as ours it is; ours unless beyond the noise."""
    if "native" not in taken:
        return min(taken, key=lambda name: statistics.median(taken[name])), float("inf")
    ours = taken["native"]
    best, gain = "native", 1.0
    for name, samples in taken.items():
        median = statistics.median(ours) / statistics.median(samples)
        if min(median, min(ours) / min(samples)) > NOISE and median > gain:
            best, gain = name, median
    return best, gain


class State:
    """Results so far, one line each; the first says what they belong to."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        """Read what an earlier run on the same machine left.

        Raises:
            ValueError: The file belongs to another machine or version.
        """
        self.path, self.found = path, {}
        head = {name: facts[name] for name in ("processor", "torch")}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")
            return
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != head:
            raise ValueError(f"routes: {path} must be of this machine, got {first}. Delete it.")
        for line in lines:
            record = json.loads(line)
            key = (Shape(**record["shape"]), record["threads"])
            self.found[key] = (record["winner"], record["gain"])

    def add(self, shape: Shape, threads: int, winner: str, gain: float) -> None:
        """Keep a result, on disk at once."""
        self.found[shape, threads] = (winner, gain)
        record = {"shape": asdict(shape), "threads": threads, "winner": winner, "gain": gain}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def decide(
    work: Sequence[Shape], device: str, threads: Sequence[int], state: State, progress: str
) -> dict[Shape, tuple[str, float]]:
    """The shapes that leave ours: later thread counts have to confirm the winner of the first."""
    left: dict[Shape, tuple[str, float]] = {}
    for count in threads:
        set_threads(count)
        watch = Stopwatch(device, count)
        asked = list(work) if count == threads[0] else list(left)
        for shape in tqdm(asked, desc=f"{progress}, {count} thread(s)", file=sys.stderr):
            if (shape, count) not in state.found:
                names = CANDIDATES[device] if count == threads[0] else ("native", left[shape][0])
                state.add(shape, count, *verdict(measure(shape, watch, names)))
            winner, gain = state.found[shape, count]
            if winner == "native":
                left.pop(shape, None)
            else:
                left[shape] = (winner, min(gain, left.get(shape, (winner, gain))[1]))
    return left


def rules(
    left: dict[Shape, tuple[str, float]], device: str, grid: dict[str, list[int]]
) -> list[dict[str, Any]]:
    """Lines of the table, larger unmeasured counts of problems with the largest measured one."""
    lines = []
    for shape, (winner, gain) in left.items():
        line: dict[str, Any] = asdict(shape)
        above = [n for n in grid["problems"] if n > shape.problems]
        if above and shape.operations * above[0] / shape.problems > MOST_OPERATIONS[device]:
            line["problems"] = [shape.problems, *above]
        lines.append(line | {"route": winner, "gain": round(gain, 2)})
    return lines


def merge(path: Path, entry: dict[str, Any]) -> None:
    """Write the table with this device's entry in place of the one before, a rule per line."""
    table = json.loads(path.read_text(encoding="utf-8"))
    others = [device for device in table["devices"] if device["match"] != entry["match"]]
    devices = []
    for device in [entry, *others]:
        head = [
            f'      "{name}": {json.dumps(device[name])}' for name in device if name != "routes"
        ]
        lines = ",\n".join(f"        {json.dumps(rule)}" for rule in device["routes"])
        head.append(f'      "routes": [\n{lines}\n      ]' if lines else '      "routes": []')
        devices.append("    {\n" + ",\n".join(head) + "\n    }")
    text = '{\n  "schema": 1,\n  "devices": [\n' + ",\n".join(devices) + "\n  ]\n}\n"
    write_text(path, text)
    routes.read_table(path)


def _facts(device: str, command: str) -> dict[str, Any]:
    found = collect(device)
    return {
        "processor": found["gpu"]["name"] if device == "cuda" else found["cpu"],
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "commit": found["commit"],
        "load_average": found["load_average"],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routes", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--table", type=Path, default=routes.TABLE, help="the file to change")
    parser.add_argument("--state", type=Path, help="results so far, to continue from")
    parser.add_argument("--quick", action="store_true", help="two cells of the grid: a smoke run")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; the exit code is 2 for bad usage."""
    options = parse(arguments)
    device: str = options.device
    grid = QUICK_GRID if options.quick else GRIDS[device]
    threads = options.threads if device == "cpu" else [1]
    command = f"python -m benchmarks.routes --device {device} --threads " + " ".join(
        map(str, threads)
    )
    try:
        if device == "cuda":
            require_cuda()
        facts = _facts(device, command) | {"threads": threads}
        state = State(options.state or ROOT / "runs" / f"attention_routes_{device}.jsonl", facts)
    except (NotAvailable, ValueError) as error:
        print(f"benchmarks.routes: {error}", file=sys.stderr)
        return 2
    plain = list(shapes(device, grid, "plain"))
    left = decide(plain, device, threads, state, "plain")
    # Masks, pairs and the dual form only add to what torch's kernels do: they are measured where
    # plain sets leave ours.
    others = [
        Shape(**asdict(shape) | {"form": form})
        for shape in left
        for form in ("pair", "dual", "masked")
        if form != "dual" or shape.queries == shape.keys
    ]
    left |= decide(others, device, threads, state, "other forms")
    known = routes.device_facts(device == "cuda", 0 if device == "cuda" else -1)
    match = {"gpu": known["gpu"]} if device == "cuda" else {"cpu_level": known["cpu_level"]}
    facts["shapes"] = len(state.found)
    merge(
        options.table,
        {"match": match, "grid": grid, "provenance": facts, "routes": rules(left, device, grid)},
    )
    print(f"{len(left)} of {len(plain) + len(others)} shapes leave ours; wrote {options.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
