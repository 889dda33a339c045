# SPDX-License-Identifier: Apache-2.0
"""One line per op: how ours stands against the best peer over the op's list of shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.registry import EACH_ALONE

Record = dict[str, Any]


def best_ratio(row: Record) -> float | None:
    """Return ours against the fastest peer that computes the same, or None without one."""
    other = {c["name"] for c in row["candidates"] if not c["comparable"]} | {EACH_ALONE}
    ratios = [ratio for name, ratio in row["ratios"].items() if name not in other]
    return min(ratios) if ratios else None


def families(rows: Sequence[Record]) -> list[Record]:
    """Return, per op and thread count, the geometric mean over its speed rows and the worst.

    ``targets`` and ``met`` count the speed and memory targets that were measured.
    """
    found = []
    for op, threads in dict.fromkeys((row["op"], row["threads"]) for row in rows):
        members = [row for row in rows if (row["op"], row["threads"]) == (op, threads)]
        speeds = {row["id"]: best_ratio(row) for row in members if row["kind"] == "speed"}
        known = {name: ratio for name, ratio in speeds.items() if ratio is not None}
        if not known:
            continue
        worst = min(known, key=lambda name: known[name])
        limits = [row["memory_limit"] for row in members if row["memory_limit"]]
        judged = [target for row in members for target in row["targets"]] + limits
        judged = [target["met"] for target in judged if target["met"] is not None]
        found.append(
            {
                "op": op,
                "threads": threads,
                "rows": len(known),
                "mean": math.exp(sum(map(math.log, known.values())) / len(known)),
                "worst": known[worst],
                "worst_row": worst,
                "targets": len(judged),
                "met": sum(judged),
            }
        )
    return found
