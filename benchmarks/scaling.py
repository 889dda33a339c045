# SPDX-License-Identifier: Apache-2.0
"""How much faster a row becomes with all threads, for rows long enough to share out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]

LONG_S = 1e-3
"""Shorter calls than this on one thread are not worth waking a second one."""
SHARE = 0.85
"""Wanted speed-up as a share of the thread count: 1.7 of 2."""


def scaling(rows: Sequence[Record]) -> list[Record]:
    """Return, per long CPU row measured at one and at more threads, ours and the best peer's gain.

    A gain is the median at one thread (CPU time, see the page) over the median at ``threads``
    (wall time).
    """
    alone = {row["id"]: row for row in rows if row["threads"] == 1 and row["device"] == "cpu"}
    found = []
    for row in rows:
        if row["threads"] == 1 or row["kind"] != "speed" or row["id"] not in alone:
            continue
        gains = _gains(alone[row["id"]], row)
        ours = row["candidates"][0]["name"]
        first = alone[row["id"]]["candidates"][0]["seconds"]
        if ours not in gains or first["median"] < LONG_S:
            continue
        peers = {name: gain for name, gain in gains.items() if name != ours}
        best = max(peers, key=lambda name: peers[name]) if peers else None
        wanted = SHARE * row["threads"]
        found.append(
            {
                **{key: row[key] for key in ("id", "title", "shape", "dtype", "threads")},
                "gain": gains[ours],
                "wanted": wanted,
                "met": gains[ours] >= wanted,
                "peer": best,
                "peer_gain": None if best is None else peers[best],
            }
        )
    return found


def _gains(alone: Record, shared: Record) -> dict[str, float]:
    """Gain of every candidate but variants that has a time in both rows."""
    before = {c["name"]: c["seconds"] for c in alone["candidates"]}
    return {
        c["name"]: before[c["name"]]["median"] / c["seconds"]["median"]
        for c in shared["candidates"]
        if c["role"] != "variant" and c["seconds"] and before.get(c["name"])
    }
