# SPDX-License-Identifier: Apache-2.0
"""The result file: one record per row and thread count, with ratios, targets and losses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Summary
from benchmarks.measure import Candidate
from benchmarks.provenance import ROOT
from benchmarks.registry import EACH_ALONE, Row, Target

SCHEMA_VERSION = 1
RESULTS = ROOT / "benchmarks" / "results"
USABLE = ("ok", "loose")
OUTPUT = "the output"
"""What a memory limit is a multiple of, where its record names nothing else."""

Record = dict[str, Any]


def _summary(summary: Summary | None) -> Record | None:
    if summary is None:
        return None
    return {
        "samples": summary.samples,
        "median": summary.median,
        "q1": summary.q1,
        "q3": summary.q3,
        "min": summary.minimum,
    }


def candidate_record(candidate: Candidate, row: Row, probe: Record) -> Record:
    """Return the JSON record of one candidate; rates appear only beside a time."""
    verdict, summary = candidate.verdict, candidate.summary
    record: Record = {
        "name": candidate.name,
        "role": candidate.role,
        "comparable": candidate.part != "other",
        "status": candidate.status,
        "reason": candidate.reason,
        "note": candidate.note,
        "seconds": _summary(summary),
        "seconds_warm": _summary(candidate.warm),
        "calls_per_sample": candidate.loops,
        "enqueue_seconds": candidate.enqueue,
        "error": None if verdict is None else _finite(verdict.error),
        "tolerance": None if verdict is None else verdict.tolerance,
        "wrong_elements": None if verdict is None else verdict.mismatches,
        "near_ties": None if verdict is None else verdict.ties,
        "peak_bytes": candidate.memory[0] if candidate.memory else None,
        "result_bytes": candidate.memory[1] if candidate.memory else None,
        "launches": candidate.launches,
        "compile_seconds": None,
        "gbs": None,
        "gflops": None,
        "percent_of_ceiling": None,
    }
    if summary is None:
        return record
    if candidate.compiled and candidate.first_call is not None:
        record["compile_seconds"] = max(0.0, candidate.first_call - summary.median)
    shares = []
    if row.moved_bytes:
        record["gbs"] = row.moved_bytes * 1e-9 / summary.median
        shares.append(record["gbs"] / probe["copy_gbs"])
    if row.flops:
        record["gflops"] = row.flops * 1e-9 / summary.median
        shares.append(record["gflops"] / _ceiling(row, probe))
    record["percent_of_ceiling"] = 100 * max(shares) if shares else None
    return record


def _ceiling(row: Row, probe: Record) -> float:
    """GFLOP/s that products of the row's type reach, where that type was probed (on CUDA)."""
    name = "bfloat16" if row.dtype == "float16" else row.dtype
    found: float = probe.get("gflops", {}).get(f"torch {name}", probe["ceiling_gflops"])
    return found


def _finite(value: float) -> float | None:
    """JSON has no infinity; a wholly wrong result has no error to state."""
    return value if math.isfinite(value) else None


def ratios(kind: str, candidates: Sequence[Record]) -> dict[str, float]:
    """Return seconds of each peer divided by ours; for sharing rows one sum over both."""
    ours = candidates[0]
    if ours["status"] != "ok" or ours["seconds"] is None:
        return {}
    timed = {
        record["name"]: record["seconds"]["median"]
        for record in candidates
        if record["role"] == "peer" and record["status"] in USABLE and record["seconds"]
    }
    if kind == "sharing":
        peers = [record for record in candidates if record["role"] == "peer"]
        if len(timed) < len(peers):
            return {}
        timed = {EACH_ALONE: sum(timed.values())}
    return {name: seconds / ours["seconds"]["median"] for name, seconds in timed.items()}


def judge_target(target: Target, found: dict[str, float]) -> Record:
    """Return the target with the ratio reached against the best of its peers."""
    against = {n: r for n, r in found.items() if not target.against or n in target.against}
    best = min(against, key=lambda name: against[name]) if against else None
    reached = None if best is None else against[best]
    return {
        "against": list(target.against),
        "ratio": target.ratio,
        "best_peer": best,
        "reached": reached,
        "met": None if reached is None else reached >= target.ratio,
    }


def row_record(
    row: Row, candidates: Sequence[Candidate], threads: int, device: str, probe: Record
) -> Record:
    """Return the JSON record of one row at one thread count."""
    records = [candidate_record(candidate, row, probe) for candidate in candidates]
    found = ratios(row.kind, records)
    record: Record = {
        "id": row.id,
        "op": row.op,
        "kind": row.kind,
        "title": row.title,
        "shape": row.shape,
        "dtype": row.dtype,
        "layout": row.layout,
        "device": device,
        "threads": threads,
        "clock": "events" if device == "cuda" else "cpu" if threads == 1 else "wall",
        "flops": row.flops,
        "moved_bytes": row.moved_bytes,
        "formula": row.formula,
        "note": row.note,
        "void": records[0]["status"] == "void",
        "candidates": records,
        "ratios": found,
        "targets": [judge_target(target, found) for target in row.targets_on(device)],
        "memory_limit": None,
    }
    if row.memory_limit is not None:
        reached = _memory_share(row, records)
        record["memory_limit"] = {
            "ratio": row.memory_limit,
            "of": f"that of {row.memory_against}" if row.memory_against else OUTPUT,
            "reached": reached,
            "met": None if reached is None else reached < row.memory_limit,
        }
    return record


def _memory_share(row: Row, records: Sequence[Record]) -> float | None:
    """Return our peak as a multiple of what the row's memory limit is about."""
    peak, kept = records[0]["peak_bytes"], records[0]["result_bytes"]
    if not (peak and kept):
        return None
    if not row.memory_against:
        return float(peak / kept)
    peer = next(r for r in records if r["name"] == row.memory_against)
    if not (peer["peak_bytes"] and peer["result_bytes"]):
        return None
    return float((peak - kept) / (peer["peak_bytes"] - peer["result_bytes"]))


def losses(rows: Sequence[Record]) -> list[Record]:
    """Return every missed target and every peer that is faster than ours, as data for the docs.

    Left out are peers that compute something else (a plain addition beside a call) and, where its
    target is met, the sharing row, whose ratio is 1 at best.
    """
    found: list[Record] = []
    for row in rows:
        place = {key: row[key] for key in ("id", "title", "shape", "dtype", "threads", "device")}
        if row["void"]:
            found.append({**place, "peer": "", "why": "our result failed its correctness gate"})
        for target in row["targets"]:
            if target["met"] is False:
                why = f"{target['reached']:.2f}x, target {target['ratio']:g}x"
                found.append({**place, "peer": target["best_peer"], "why": why})
        limit = row["memory_limit"]
        if limit and limit["met"] is False:
            of = limit.get("of", OUTPUT)
            why = f"{limit['reached']:.2f}x {of}, limit {limit['ratio']:g}x"
            found.append({**place, "peer": "", "why": why})
        skipped = {target["best_peer"] for target in row["targets"] if target["met"] is False}
        skipped |= {c["name"] for c in row["candidates"] if not c["comparable"]} | {EACH_ALONE}
        for peer, ratio in row["ratios"].items():
            if ratio < 1 and peer not in skipped:
                found.append({**place, "peer": peer, "why": f"{ratio:.2f}x: the peer is faster"})
    return found


def default_path(provenance: Record, device: str, complete: bool, suite: str = "ops") -> Path:
    """Return where a run is stored; partial and quick runs go to an ignored folder."""
    version = provenance["patchword"]["version"] or "unreleased"
    folder = RESULTS / version if complete else RESULTS / "scratch"
    return folder / f"{suite}--{provenance['machine']}--{device}.json"


def save(result: Record, path: Path) -> None:
    """Write the result file in one step: whoever reads meanwhile finds the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f"{path.name}.part")
    whole.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    whole.replace(path)


def is_unfinished(result: Record) -> bool:
    """Whether the run that wrote the file was stopped, or still runs."""
    return bool(result.get("unmeasured"))


def load(path: Path) -> Record:
    """Read and validate a result file.

    Raises:
        ValueError: the file breaks the schema; the message lists every fault.
    """
    result: Record = json.loads(path.read_text(encoding="utf-8"))
    if faults := validate(result):
        raise ValueError(f"load: {path} must follow the result schema: {'; '.join(faults)}.")
    return result


def committed() -> list[Path]:
    """Return the committed result files, newest version last."""
    return sorted(p for p in RESULTS.glob("*/*.json") if p.parent.name != "scratch")


def validate(result: Record) -> list[str]:
    """Return the faults of a result: missing fields, times of void rows, wrong statistics."""
    faults = [
        f"{key} is missing"
        for key in ("schema", "suite", "quick", "complete", "provenance", "probes", "rows")
        if key not in result
    ]
    if faults:
        return faults
    if result["schema"] != SCHEMA_VERSION:
        faults.append(f"schema must be {SCHEMA_VERSION}, got {result['schema']}")
    needed = ("commit", "dirty", "date", "cpu", "cpu_flags", "versions", "load_average")
    faults += [f"provenance has no {key}" for key in needed if key not in result["provenance"]]
    seen: set[tuple[str, int]] = set()
    for row in result["rows"]:
        place = f"{row.get('id')} at {row.get('threads')} threads"
        if (key := (row["id"], row["threads"])) in seen:
            faults.append(f"{place} appears twice")
        seen.add(key)
        if not row["candidates"] or row["candidates"][0]["role"] != "ours":
            faults.append(f"{place}: the first candidate must be ours")
        for candidate in row["candidates"]:
            faults += [f"{place}, {candidate['name']}: {f}" for f in _candidate_faults(candidate)]
        if row["void"] and any(candidate["seconds"] for candidate in row["candidates"]):
            faults.append(f"{place}: a void row must hold no time")
        if row["ratios"] != ratios(row["kind"], row["candidates"]):
            faults.append(f"{place}: ratios must follow from the medians")
    if result.get("losses") != losses(result["rows"]):
        faults.append("losses must follow from the rows")
    return faults


def commit_faults(result: Record) -> list[str]:
    """Return what keeps a valid result out of the repository."""
    faults = []
    if is_unfinished(result):
        faults.append(f"the run was stopped: {len(result['unmeasured'])} rows are not measured")
    if result["quick"] or not result["complete"]:
        faults.append("only complete runs are committed")
    if result["provenance"]["dirty"] is not False:
        faults.append("the tree must be clean, so that the commit tells what ran")
    return faults


def _candidate_faults(candidate: Record) -> list[str]:
    faults, seconds = [], candidate["seconds"]
    if candidate["status"] not in (*USABLE, "void", "not available"):
        faults.append(f"unknown status {candidate['status']!r}")
    if candidate["status"] not in USABLE:
        if seconds:
            faults.append("must hold no time")
        if not candidate["reason"]:
            faults.append("must give a reason")
    if seconds and not (
        0 < seconds["min"] <= seconds["q1"] <= seconds["median"] <= seconds["q3"]
        and seconds["samples"] >= 1
    ):
        faults.append("statistics must be ordered and positive")
    return faults
