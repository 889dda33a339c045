# SPDX-License-Identifier: Apache-2.0
"""What a benchmark row is: inputs, a correctness gate, our candidate, its peers and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

from benchmarks.common import Run

Inputs = dict[str, Any]
Build = Callable[[Inputs], Run]


class OwnBuild(Protocol):
    """Builds one of our candidates for a backend."""

    def __call__(self, inputs: Inputs, backend: str) -> Run:
        """Return the call to be timed."""


Kind = Literal["speed", "memory", "overhead", "sharing"]
Where = Literal["process", "blas", "blas-skylakex"]

EACH_ALONE = "each alone, summed"
"""The one comparison of a sharing row: the sum of its peers' times."""

# A suite is measured in one go and has a result file of its own.
SUITES: dict[str, tuple[str, ...]] = {
    "ops": (
        "benchmarks.ops.correspondence",
        "benchmarks.ops.patch_similarity",
        "benchmarks.ops.mask_upsample",
        "benchmarks.ops.sample_features",
        "benchmarks.ops.call_overhead",
        "benchmarks.ops.shared_runtime",
    ),
    "attention": ("benchmarks.ops.attention",),
    "refinement": (
        "benchmarks.ops.pamr",
        "benchmarks.ops.pooling",
        "benchmarks.ops.point_infonce",
    ),
    "sequences": (
        "benchmarks.ops.sru",
        "benchmarks.ops.retrieval_ranks",
        "benchmarks.ops.keypoint_join",
    ),
    "segswap": ("benchmarks.ops.match_score", "benchmarks.end_to_end.segswap"),
    "sketchseg": ("benchmarks.end_to_end.sketchseg",),
    "sketchseg_large": ("benchmarks.end_to_end.sketchseg_large",),
    # Rows that exist on CUDA alone, with the targets of the GPU kernels, the boldest first.
    "gpu": (
        "benchmarks.gpu.matching",
        "benchmarks.gpu.maps",
        "benchmarks.gpu.attention",
        "benchmarks.gpu.sequences",
    ),
}
ONLY_IF_NAMED = ("sketchseg_large",)
"""Suites that take hours; a run without ``--suite`` leaves them out."""


@dataclass(frozen=True)
class Verdict:
    """Deviation of one output from the float64 oracle, in the unit of the accuracy contract.

    ``mismatches`` counts elements that are wrong whatever the rounding; ``ties`` counts index
    or label results that differ from float64 but are near-ties within the contract.
    """

    error: float
    tolerance: float
    mismatches: int = 0
    ties: int = 0

    @property
    def within(self) -> bool:
        """Whether the output keeps the accuracy contract."""
        return self.mismatches == 0 and self.error <= self.tolerance


Gate = Callable[[Any, str], Verdict | None]


@dataclass(frozen=True)
class Peer:
    """Somebody else's way to the same result.

    ``build`` is a top-level function (it travels to worker processes by name), prepares what
    may be prepared once and returns the call to be timed; ``part`` tells the gate what the
    output is.
    """

    name: str
    build: Build
    part: str = "full"
    where: Where = "process"
    devices: tuple[str, ...] = ("cpu",)
    compiled: bool = False
    note: str = ""


@dataclass(frozen=True)
class Target:
    """``ratio`` times as fast as the best of the peers named in ``against``, or of all if empty."""

    against: tuple[str, ...]
    ratio: float


@dataclass(frozen=True)
class Row:
    """One line of the benchmark; ``flops`` and ``moved_bytes`` come from ``formula``.

    ``targets`` hold on the first of ``devices``; on others a row only reports.
    ``memory_limit`` bounds our peak extra memory as a multiple of the output or, where
    ``memory_against`` names a peer, both sides without their outputs, of that peer's.
    """

    id: str
    op: str
    title: str
    shape: str
    dtype: str
    layout: str
    inputs: Callable[[bool], Inputs]
    gate: Callable[[Inputs], Gate]
    ours: OwnBuild
    peers: tuple[Peer, ...]
    targets: tuple[Target, ...] = ()
    kind: Kind = "speed"
    flops: float = 0.0
    moved_bytes: float = 0.0
    formula: str = ""
    variants: tuple[tuple[str, OwnBuild], ...] = ()
    memory_limit: float | None = None
    memory_against: str = ""
    note: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")

    def targets_on(self, device: str) -> tuple[Target, ...]:
        """Return the targets that apply on a device."""
        return self.targets if device == self.devices[0] else ()


def suite_rows(suite: str) -> list[Row]:
    """Return the rows of a suite in the order of the table."""
    return [row for name in SUITES[suite] for row in import_module(name).ROWS]


def all_rows() -> list[Row]:
    """Return every row in the order of the tables."""
    return [row for suite in SUITES for row in suite_rows(suite)]


def select_rows(ops: Sequence[str], ids: Sequence[str]) -> list[Row]:
    """Return the rows of the named ops and the rows with the named ids, or all of them."""
    rows = all_rows()
    known_ops, known_ids = {row.op for row in rows}, {row.id for row in rows}
    for word, known, kind in [(o, known_ops, "--op") for o in ops] + [
        (i, known_ids, "--row") for i in ids
    ]:
        if word not in known:
            raise ValueError(f"run: {kind} must be one of {sorted(known)}, got {word!r}.")
    if not ops and not ids:
        return rows
    return [row for row in rows if row.op in ops or row.id in ids]
