# SPDX-License-Identifier: Apache-2.0
"""Draws the ratios of one result file as horizontal bars on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FASTER, SLOWER, TARGET = "#0072b2", "#d55e00", "#222222"


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG: one bar per peer and row, a line at 1 and a mark at each target."""
    rows = [row for row in result["rows"] if row["kind"] == "speed"]
    threads = sorted({row["threads"] for row in rows}) or [1]
    height = 1.5 + 0.2 * max(
        (
            sum(1.3 + max(1, len(row["ratios"])) for row in rows if row["threads"] == count)
            for count in threads
        ),
        default=0.0,
    )
    figure = Figure(figsize=(7.5 * len(threads), height), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, count in zip(
        figure.subplots(1, len(threads), squeeze=False)[0], threads, strict=True
    ):
        _panel(axes, [row for row in rows if row["threads"] == count])
        unit = "thread" if count == 1 else "threads"
        axes.set_title(f"{count} {unit}" if result["device"] == "cpu" else result["device"])
    facts = result["provenance"]
    place = facts.get("gpu", {}).get("name") or facts["cpu"]
    figure.suptitle(
        f"Time of each peer divided by patchword's (right of the line: patchword is faster)\n"
        f"{place}, {facts['date'][:10]}, commit {(facts['commit'] or 'unknown')[:9]}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(axes: Any, rows: list[Any]) -> None:
    labels: list[str] = []
    places: list[float] = []
    place = 0.0
    for row in rows:
        axes.text(
            0.0, place, f" {row['id']}", transform=axes.get_yaxis_transform(), va="center",
            fontsize=7, fontweight="bold",
        )  # fmt: skip
        for name, ratio in row["ratios"].items():
            place += 1
            colour = FASTER if ratio >= 1 else SLOWER
            axes.barh(place, ratio - 1, left=1, height=0.8, color=colour)
            axes.text(ratio, place, f" {ratio:.1f}x", va="center", fontsize=6)
            labels.append(name)
            places.append(place)
            for target in row["targets"]:
                if name == target["best_peer"]:
                    axes.plot([target["ratio"]] * 2, [place - 0.5, place + 0.5], color=TARGET)
        if not row["ratios"]:
            place += 1
            labels.append("patchword not measured")
            places.append(place)
        place += 1.3
    axes.set_xscale("log")
    largest = max((ratio for row in rows for ratio in row["ratios"].values()), default=1.0)
    smallest = min((ratio for row in rows for ratio in row["ratios"].values()), default=1.0)
    axes.set_xlim(0.7 * min(1.0, smallest), 2 * max(1.0, largest))
    axes.axvline(1, color=TARGET, linewidth=0.8)
    axes.set_yticks(places, labels, fontsize=6)
    axes.set_ylim(place, -1)
    axes.set_xlabel("ratio; black marks are targets", fontsize=7)
