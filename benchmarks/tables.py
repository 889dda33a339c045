# SPDX-License-Identifier: Apache-2.0
"""Turns result records into lines of text, shared by the terminal and the docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import result
from benchmarks.scaling import scaling

Record = dict[str, Any]

COLUMNS = (
    "candidate",
    "median",
    "IQR",
    "min",
    "n",
    "ratio",
    "GB/s",
    "GFLOP/s",
    "% of ceiling",
    "error",
    "peak extra",
    "compile",
)


def format_seconds(seconds: float | None) -> str:
    """Return seconds with three significant digits and a fitting unit."""
    if seconds is None:
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            return f"{_three(seconds * factor)} {unit}"
    raise AssertionError("unreachable")


def format_bytes(count: int | None) -> str:
    """Return a byte count in MB or GB (powers of ten)."""
    if count is None:
        return "-"
    return f"{count * 1e-9:.2f} GB" if count >= 1e9 else f"{count * 1e-6:.1f} MB"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _optional(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def candidate_cells(row: Record, candidate: Record) -> list[str]:
    """Return the cells of one candidate in the order of ``COLUMNS``."""
    if candidate["status"] in ("void", "not available"):
        return [candidate["name"], f"{candidate['status']}: {candidate['reason']}"] + ["-"] * 10
    seconds = candidate["seconds"]
    ratio = row["ratios"].get(candidate["name"])
    error = _optional(candidate["error"], "{:.1e}")
    if candidate["near_ties"]:
        error += f", {candidate['near_ties']} near-ties"
    if candidate["status"] == "loose":
        error += " (!)"
    return [
        candidate["name"],
        format_seconds(seconds["median"]) if seconds else "-",
        format_seconds(seconds["q3"] - seconds["q1"]) if seconds else "-",
        format_seconds(seconds["min"]) if seconds else "-",
        str(seconds["samples"]) if seconds else "-",
        "1" if candidate["role"] == "ours" and seconds else _optional(ratio, "{:.2f}x"),
        _optional(candidate["gbs"], "{:.1f}"),
        _optional(candidate["gflops"], "{:.1f}"),
        _optional(candidate["percent_of_ceiling"], "{:.0f}"),
        error,
        format_bytes(candidate["peak_bytes"]),
        _optional(candidate["compile_seconds"], "{:.1f} s"),
    ]


def heading(row: Record) -> str:
    """Return the line above a row's table."""
    unit = "thread" if row["threads"] == 1 else "threads"
    place = f"{row['threads']} {unit}" if row["device"] == "cpu" else row["device"]
    return f"{row['title']}, {row['shape']}, {row['dtype']}, {place}"


def target_lines(row: Record) -> list[str]:
    """Return one line per target: what was asked and what was reached."""
    lines = []
    for target in row["targets"]:
        against = " / ".join(target["against"]) or "the best peer"
        lines.append(_verdict(f"{target['ratio']:g}x {against}", target))
    if limit := row["memory_limit"]:
        of = limit.get("of", result.OUTPUT)
        text = f"peak extra memory under {limit['ratio']:g}x {of}"
        lines.append(_verdict(text, limit))
    return lines


def _verdict(text: str, target: Record) -> str:
    if target["met"] is None:
        return f"target {text}: not measured"
    state = "met" if target["met"] else "MISSED"
    return f"target {text}: {state} ({target['reached']:.2f}x)"


def print_row(row: Record, console: Console) -> None:
    """Print one row as a table with its targets below."""
    table = Table(title=heading(row), title_justify="left", pad_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if index else "left")
    for candidate in row["candidates"]:
        table.add_row(*candidate_cells(row, candidate))
    console.print(table)
    for line in target_lines(row):
        console.print(f"  {line}")


def print_losses(found: Sequence[Record], console: Console) -> None:
    """Print where ours misses a target or a peer is faster."""
    console.print("Where we lose:" if found else "No target missed, no peer faster.")
    for loss in found:
        console.print(
            f"  {loss['id']}, {loss['threads']} thread(s), {loss['peer'] or '-'}: {loss['why']}"
        )


def scaling_cells(rows: Sequence[Record]) -> list[list[str]]:
    """Return one line per long row: gain of ours, what is wanted, the best peer's gain."""
    return [
        [
            f"{gain['title']}, {gain['shape']}, {gain['dtype']}",
            f"{gain['gain']:.2f}x of {gain['threads']}",
            f"{gain['wanted']:.2g}x" + ("" if gain["met"] else ", **missed**"),
            "-" if gain["peer"] is None else f"{gain['peer_gain']:.2f}x {gain['peer']}",
        ]
        for gain in scaling(rows)
    ]


def print_scaling(rows: Sequence[Record], console: Console) -> None:
    """Print what more threads bring."""
    for cells in scaling_cells(rows):
        console.print("  threads: " + "; ".join(cells), markup=False)
