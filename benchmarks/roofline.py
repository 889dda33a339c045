# SPDX-License-Identifier: Apache-2.0
"""Draws the rows of one result file under the ceilings measured in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS, PEER, INK = "#0072b2", "#d55e00", "#222222"
_LISTED = 28


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG: operations a second over operations a byte, one panel a thread count.

    A filled mark is ours, a hollow one the fastest peer that computes the same. The sloped line
    is the measured copy bandwidth, the level one the measured float32 matrix product. Operations
    are counted by the row's formula, so pruned or 16-bit work can lie above.
    """
    probes = [p for p in result["probes"] if p.get("copy_gbs") and p.get("ceiling_gflops")]
    count = max(1, len(probes))
    figure = Figure(figsize=(7.5 * count, 5.2))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes, probe in zip(panels, probes, strict=False):
        rows = [
            row
            for row in result["rows"]
            if row["kind"] == "speed" and row["threads"] == probe["threads"]
        ]
        _panel(axes, probe, [point for row in rows if (point := _point(row)) is not None])
        unit = "thread" if probe["threads"] == 1 else "threads"
        axes.set_title(
            f"{probe['threads']} {unit}" if result["device"] == "cpu" else result["device"]
        )
    facts = result["provenance"]
    figure.suptitle(
        "Speed under the measured ceilings: filled patchword, hollow the fastest peer; "
        "above the line: pruned or 16-bit work\n"
        f"{facts['cpu']}, {facts['date'][:10]}, commit {(facts['commit'] or 'unknown')[:9]}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")  # with the list of rows below


def _point(row: dict[str, Any]) -> tuple[str, float, float, float | None] | None:
    """Name, operations a byte, our speed and the fastest peer's in GFLOP/s."""
    done = [one for one in row["candidates"] if one["status"] == "ok" and one.get("gflops")]
    ours = [one["gflops"] for one in done if one["role"] == "ours"]
    peers = [one["gflops"] for one in done if one["role"] == "peer" and one["comparable"]]
    if not ours or not row.get("flops") or not row.get("moved_bytes"):
        return None
    name = f"{row['id'].split('.', 1)[-1]} {row['dtype']}"
    return name, row["flops"] / row["moved_bytes"], max(ours), max(peers, default=None)


def _panel(axes: Any, probe: dict[str, Any], points: list[Any]) -> None:
    lowest = min((point[1] for point in points), default=0.1) / 2
    highest = max((point[1] for point in points), default=100.0) * 8
    x = np.geomspace(lowest, highest, 200)
    ceiling = max(probe["ceiling_gflops"], *probe["gflops"].values())
    kind = "bfloat16" if "torch bfloat16" in probe["gflops"] else "float32"
    axes.plot(x, np.minimum(x * probe["copy_gbs"], ceiling), color=INK, linewidth=1)
    axes.text(
        highest, ceiling, f"{ceiling:.0f} GFLOP/s {kind} product ", ha="right", va="bottom",
        fontsize=6,
    )  # fmt: skip
    axes.text(
        lowest, lowest * probe["copy_gbs"], f" {probe['copy_gbs']:.0f} GB/s copy", va="top",
        fontsize=6,
    )  # fmt: skip
    for number, (name, intensity, ours, peer) in enumerate(points, start=1):
        if peer is not None:
            axes.plot([intensity] * 2, [ours, peer], color=PEER, linewidth=0.6)
            axes.plot(intensity, peer, "o", color=PEER, markerfacecolor="white", markersize=4)
        axes.plot(intensity, ours, "o", color=OURS, markersize=4, label=f"{number} {name}")
        axes.annotate(
            str(number), (intensity, ours), xytext=(3, 3), textcoords="offset points", fontsize=6
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest, highest)
    axes.set_xlabel("operations per byte of inputs and outputs", fontsize=7)
    axes.set_ylabel("GFLOP/s", fontsize=7)
    axes.grid(color="0.9", linewidth=0.5)
    if points:
        columns = 1 + len(points) // _LISTED
        axes.legend(
            fontsize=5, ncols=columns, loc="upper left", bbox_to_anchor=(0, -0.1), frameon=False,
            handlelength=0, markerscale=0,
        )  # fmt: skip
