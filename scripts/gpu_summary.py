# SPDX-License-Identifier: Apache-2.0
"""Condenses what gpu_check.py left on disk into a page of text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

MOST = 11_000
"""Characters of a summary; what shows the end of a log cuts off what comes before."""
MOST_FAILURES = 30


def summary(work: Path, steps: Sequence[str]) -> str:
    """Return steps, spilling kernels, failed tests, sanitizer findings and benchmark ratios."""
    parts = [
        ["", "=" * 30 + " summary", *steps],
        [*build_lines(work)],
        [*resource_lines(work / "resources.json")],
        [*test_lines(work / "tests", "tests")],
        [*test_lines(work / "sanitizer", "sanitizer"), *sanitizer_lines(work / "sanitizer")],
        *([*benchmark_lines(path)] for path in sorted((work / "results").glob("*.json"))),
    ]
    text = "\n".join(line[:220] for part in parts for line in part) + "\n"
    if len(text) > MOST:
        text = text[:MOST].rsplit("\n", 1)[0] + "\n... cut off here; the logs have the rest\n"
    return text


def build_lines(work: Path) -> Iterator[str]:
    """Yield the first errors of the build log with what follows them."""
    log = work / "build.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    wrong = re.compile(r"\berror\b|^FAILED|fatal|spill", re.IGNORECASE)
    shown = [i for i, line in enumerate(lines) if wrong.search(line)][:8]
    for place in sorted({j for i in shown for j in range(i, i + 3)}):
        if place < len(lines) and lines[place].strip():
            yield f"build: {lines[place].strip()}"


def resource_lines(path: Path) -> Iterator[str]:
    """Yield the number of kernels, and those that spill or hold arrays in local memory."""
    try:
        kernels = json.loads(path.read_text())
    except (OSError, ValueError):
        return
    spilled = [k for k in kernels if k["stack_bytes"] + k["local_bytes"]]
    most = max((k["registers"] for k in kernels), default=0)
    tensor = sum(k["tensor_cores"] for k in kernels)
    yield (
        f"resources: {len(kernels)} kernels, at most {most} registers, {tensor} with tensor cores, "
        f"{len(spilled)} with stack"
    )
    worst = sorted(spilled, key=lambda k: -k["stack_bytes"] - k["local_bytes"])
    for k in worst[:8]:
        yield f"   {k['stack_bytes']} B stack, {k['local_bytes']} B local: {k['kernel'][:120]}"


def test_lines(folder: Path, title: str) -> Iterator[str]:
    """Yield totals over all reports, one line per failure, and files without a report."""
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    wrong: list[str] = []
    for log in sorted(folder.glob("*.log")):
        report = log.with_suffix(".xml")
        try:
            suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
        except (OSError, ElementTree.ParseError, StopIteration):
            wrong.append(f"{log.stem}: no report; at the end of its log: {_last(log)}")
            continue
        for key in totals:
            totals[key] += int(suite.get(key, 0))
        for case in suite.iter("testcase"):
            for fault in (*case.iter("failure"), *case.iter("error")):
                first = (fault.get("message") or fault.text or "").strip().splitlines()
                name = f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}"
                wrong.append(f"{log.stem.split('-')[0]} {name[:90]}: {(first or ['?'])[0][:110]}")
    if totals["tests"] or wrong:
        counts = ", ".join(f"{value} {key}" for key, value in totals.items())
        yield f"{title}: {counts}"
    yield from (f"   {line}" for line in wrong[:MOST_FAILURES])
    if len(wrong) > MOST_FAILURES:
        yield f"   ... and {len(wrong) - MOST_FAILURES} more"


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(line.strip()[:90] for line in lines[-3:]) or "it is empty"


def sanitizer_lines(folder: Path) -> Iterator[str]:
    """Yield what compute-sanitizer reported, each kind of error once per file."""
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        said = [line.removeprefix("=========").strip() for line in lines if "=========" in line]
        ended = [line for line in said if line.startswith(("ERROR SUMMARY", "RACECHECK SUMMARY"))]
        faults = [
            line
            for line in said
            if re.search(r"Invalid|Race reported|hazard|Error:|Program hit|Misaligned", line)
        ]
        if faults or not any(re.search(r"\b0 (errors|hazards)", line) for line in ended):
            yield f"   {log.stem}: {(ended or ['did not end'])[-1]}"
            yield from (f"      {line[:150]}" for line in dict.fromkeys(faults[:3]))


def benchmark_lines(path: Path) -> Iterator[str]:
    """Yield one line per row: our time, every target, the best peer, or why there is no time."""
    result = json.loads(path.read_text())
    missing = result.get("unmeasured") or []
    yield f"benchmarks, suite {result['suite']}: {len(result['rows'])} rows, {len(missing)} missing"
    for probe in result["probes"]:
        rates = ", ".join(f"{name} {value:.0f}" for name, value in probe["gflops"].items())
        yield f"   probes: copy {probe['copy_gbs']:.0f} GB/s; GFLOP/s {rates}"
    for row in result["rows"]:
        yield f"   {row['id'].removeprefix('gpu.')}: {row_text(row)}"
    if missing:
        yield f"   missing: {', '.join(name.split(',')[0] for name in missing)}"


def row_text(row: dict[str, Any]) -> str:
    """Return our time, targets and the best peer of a row in one line."""
    ours = row["candidates"][0]
    if not ours["seconds"]:
        return f"{ours['status'].upper()}: {ours['reason'][:130]}"
    cells = [f"{ours['seconds']['median'] * 1e6:.1f} us"]
    if ours["percent_of_ceiling"]:
        cells.append(f"{ours['percent_of_ceiling']:.0f} %")
    for target in row["targets"]:
        if target["reached"] is None:
            cells.append(f"{target['ratio']:g}x not measured")
        else:
            state = "met" if target["met"] else "MISSED"
            cells.append(
                f"{target['reached']:.2f}x of {target['ratio']:g}x {state} ({target['best_peer']})"
            )
    if not row["targets"] and row["ratios"]:
        best = min(row["ratios"], key=lambda name: row["ratios"][name])
        cells.append(f"{row['ratios'][best]:.2f}x {best}")
    return ", ".join(cells)
