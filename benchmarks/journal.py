# SPDX-License-Identifier: Apache-2.0
"""The result file of a run in progress: on disk after every row, continued after a crash."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import result

Key = tuple[str, int]
"""A row's id and its thread count."""


class Journal:
    """Rows of one suite as they are measured; a killed run leaves a valid, unfinished file.

    Its ``running`` names the row that was being measured. A run that resumes and finds one there
    records that row as failed: a kernel that hangs or crashes must not end every later try too.
    """

    def __init__(
        self, options: argparse.Namespace, suite: str, facts: dict[str, Any], work: Sequence[Key]
    ) -> None:
        """Begin the file, or continue it with ``options.resume``.

        Raises:
            ValueError: the file to continue comes from another commit or machine.
        """
        self.rows: list[dict[str, Any]] = []
        self.probes: list[dict[str, Any]] = []
        self.crashed: Key | None = None
        self._options, self._suite, self._facts, self._work = options, suite, facts, work
        self._whole = not (options.op or options.row or options.quick)
        if options.resume:
            for finished in (False, True):
                path = self._place(finished)
                if path.exists():
                    self._continue(result.load(path))
                    break

    def _place(self, finished: bool) -> Path:
        # An unfinished run must not replace a committed result.
        options = self._options
        if options.json:
            return Path(options.json)
        path = result.default_path(
            self._facts, options.device, self._whole and finished, self._suite
        )
        return Path(options.folder) / path.name if options.folder else path

    def _continue(self, found: dict[str, Any]) -> None:
        there, here = found["provenance"], self._facts
        for key in ("commit", "machine"):
            if there[key] != here[key]:
                raise ValueError(
                    f"run: --resume needs the file's {key} {there[key]}, got {here[key]}"
                )
        self._facts, self.rows, self.probes = there, found["rows"], found["probes"]
        if running := found.get("running"):
            self.crashed = (running[0], running[1])

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._place(not self.missing())

    def missing(self) -> list[Key]:
        """Return what has no record yet, in order."""
        known = {(row["id"], row["threads"]) for row in self.rows}
        return [key for key in self._work if key not in known]

    def write(self, running: Key | None = None) -> dict[str, Any]:
        """Write the file and return its record."""
        missing = self.missing()
        record: dict[str, Any] = {
            "schema": result.SCHEMA_VERSION,
            "suite": self._suite,
            "device": self._options.device,
            "quick": self._options.quick,
            "complete": self._whole and not missing,
            "unmeasured": [f"{row}, {threads} thread(s)" for row, threads in missing],
            "running": running,
            "thread_counts": self._options.threads,
            "provenance": self._facts
            | {"load_average_after": [round(value, 2) for value in os.getloadavg()]},
            "probes": self.probes,
            "rows": self.rows,
            "losses": result.losses(self.rows),
        }
        result.save(record, self.path)
        if not missing and self._place(False) != self.path:
            self._place(False).unlink(missing_ok=True)
        return record
