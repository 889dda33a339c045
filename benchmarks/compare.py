# SPDX-License-Identifier: Apache-2.0
"""Compares two result files: each candidate is faster, slower, the same, or undecided.

``NEW OLD`` compares two files; ``NEW --base COMMIT`` measures the rows of the first once more at
a commit, built in a throw-away worktree, so that both sides come from the same machine.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.base import measure_at
from benchmarks.result import is_unfinished, load
from benchmarks.tables import format_seconds

Change = Literal["faster", "slower", "same", "undecided"]
THRESHOLD = 0.05
"""Medians closer than this are the same, when both runs are steady."""
STEADY = 0.10
"""A run is steady when its inter-quartile range is below this share of its median."""


def classify(new: dict[str, float], old: dict[str, float]) -> Change:
    """Classify a change from two summaries with median, q1 and q3 in seconds.

    Faster and slower need quartile ranges that do not overlap and medians at least 5 % apart;
    the same needs medians within 5 % and both runs steady; everything else is undecided.
    """
    change = new["median"] / old["median"] - 1
    if new["q3"] < old["q1"] and change <= -THRESHOLD:
        return "faster"
    if new["q1"] > old["q3"] and change >= THRESHOLD:
        return "slower"
    steady = all((side["q3"] - side["q1"]) <= STEADY * side["median"] for side in (new, old))
    return "same" if abs(change) < THRESHOLD and steady else "undecided"


def _times(result: dict[str, Any]) -> dict[tuple[str, int, str], dict[str, float]]:
    return {
        (row["id"], row["threads"], candidate["name"]): candidate["seconds"]
        for row in result["rows"]
        for candidate in row["candidates"]
        if candidate["seconds"]
    }


def compare(
    new: dict[str, Any], old: dict[str, Any]
) -> Iterator[tuple[tuple[str, int, str], str, float, float]]:
    """Yield (row, threads and candidate; change; new seconds; old seconds) for timed candidates."""
    before, after = _times(old), _times(new)
    for key in sorted(before.keys() | after.keys()):
        if key not in before:
            yield key, "new", after[key]["median"], float("nan")
        elif key not in after:
            yield key, "gone", float("nan"), before[key]["median"]
        else:
            change = classify(after[key], before[key])
            yield key, change, after[key]["median"], before[key]["median"]


def warnings(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Return what makes the two runs hard to compare."""
    found = []
    for key in ("cpu", "gpu", "logical_cpus", "versions", "environment"):
        if (sides := [result["provenance"].get(key) for result in (new, old)])[0] != sides[1]:
            found.append(f"{key} differs: {sides[0]} and {sides[1]}")
    for word, run in (("new", new), ("old", old)):
        if run["quick"]:
            found.append(f"the {word} run was quick")
        if is_unfinished(run):
            found.append(f"the {word} run was stopped, {len(run['unmeasured'])} rows are missing")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; exit code 1 when one of ours is slower and that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("new", type=Path)
    sides = parser.add_mutually_exclusive_group(required=True)
    sides.add_argument("old", type=Path, nargs="?")
    sides.add_argument("--base", metavar="COMMIT", help="measure the old side at this commit now")
    parser.add_argument("--peers", action="store_true", help="show the peers too")
    parser.add_argument("--fail-on-slower", action="store_true")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        new = load(options.new)
        old = measure_at(options.base, new) if options.base else load(options.old)
    except (OSError, ValueError) as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    for line in warnings(new, old):
        console.print(f"note: {line}", soft_wrap=True)
    table = Table("row", "threads", "candidate", "new", "old", "new / old", "change")
    counts: Counter[str] = Counter()
    for (row, threads, name), change, after, before in compare(new, old):
        if not options.peers and not name.startswith("patchword"):
            continue
        counts[change] += 1
        both = change not in ("new", "gone")
        table.add_row(
            row,
            str(threads),
            name,
            "-" if change == "gone" else format_seconds(after),
            "-" if change == "new" else format_seconds(before),
            f"{after / before:.3f}" if both else "-",
            change,
        )
    console.print(table)
    console.print(", ".join(f"{count} {change}" for change, count in counts.items()) or "no rows")
    return int(options.fail_on_slower and counts["slower"] > 0)


if __name__ == "__main__":
    sys.exit(main())
