# SPDX-License-Identifier: Apache-2.0
"""Command line of the benchmark: measures rows, prints tables, writes JSON and a chart."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from benchmarks import probes, provenance, result, tables
from benchmarks.common import NotAvailable
from benchmarks.cuda_timing import is_alive, require_cuda
from benchmarks.journal import Journal
from benchmarks.measure import Candidate, Session, describe, failed_row, measure_row
from benchmarks.registry import ONLY_IF_NAMED, SUITES, Row, select_rows, suite_rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--suite",
        action="append",
        default=[],
        choices=SUITES,
        help="only this suite; without, all of them but the slowest, one after another",
    )
    parser.add_argument("--op", action="append", default=[], help="only this op's rows")
    parser.add_argument("--row", action="append", default=[], help="only this row")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=("native", "triton", "reference"),
        default=["native"],
        help="our backends; the first is the one that ratios refer to",
    )
    parser.add_argument("--quick", action="store_true", help="few samples, no memory: a smoke run")
    parser.add_argument(
        "--seconds", type=float, help="start no row after this long; the file says what is missing"
    )
    parser.add_argument(
        "--row-seconds", type=float, help="end the process when one row takes longer than this"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of a file whose run was stopped"
    )
    parser.add_argument("--json", type=Path, help="where the one result file goes")
    parser.add_argument("--folder", type=Path, help="where the result files of suites go")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of failed candidates")
    return parser.parse_args(arguments)


def applies(row: Row, threads: int, options: argparse.Namespace) -> bool:
    """Whether a row is measured at this thread count; memory rows only at the largest."""
    if options.device not in row.devices:
        return False
    if row.kind == "memory":
        return threads == max(options.threads) and not options.quick
    return not (row.kind == "sharing" and options.device == "cuda")


def measure(
    options: argparse.Namespace,
    suite: str,
    rows: Sequence[Row],
    facts: dict[str, Any],
    console: Console,
) -> tuple[dict[str, Any], Path]:
    """Measure ``rows``, printing each when it is done; return the record and where it is."""
    session = Session(options.device, options.backend, options.quick)
    work = [(n, row) for n in options.threads for row in rows if applies(row, n, options)]
    journal = Journal(options, suite, facts, [(row.id, n) for n, row in work])
    with ExitStack() as stack:
        stack.callback(session.close)
        cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="patchword-bench-"))
        # A fresh compiler cache, so that compile times are true. On CPUs no pool of compiler
        # processes either, which would take processor time from the row that follows.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        if options.device == "cpu":
            os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        for threads in options.threads:
            due = {key for key in journal.missing() if key[1] == threads}
            if not due or _out_of_time(options):
                continue
            weigh = threads == max(options.threads) and not options.quick
            session.start(threads, weigh)
            if not any(probe["threads"] == threads for probe in journal.probes):
                on_cpu = options.device == "cpu"
                probe = (
                    probes.probe_cpu(threads, session.workers) if on_cpu else probes.probe_cuda()
                )
                journal.probes.append(probe)
            ceiling = next(p for p in journal.probes if p["threads"] == threads)
            selected = [row for count, row in work if (row.id, count) in due and count == threads]
            for row in tqdm(selected, desc=f"{threads} thread(s)", file=sys.stderr):
                if _out_of_time(options):
                    break
                candidates = _measured(row, threads, session, journal, options)
                journal.rows.append(
                    result.row_record(row, candidates, threads, options.device, ceiling)
                )
                journal.write()
                tables.print_row(journal.rows[-1], console)
                if options.device == "cuda" and not is_alive():
                    raise DeviceLost(
                        f"{row.id} left the device unusable; --resume goes on after it"
                    )
    return journal.write(), journal.path


class DeviceLost(RuntimeError):
    """A faulty kernel broke this process's use of the device."""


def _out_of_time(options: argparse.Namespace) -> bool:
    return options.deadline is not None and time.monotonic() > options.deadline


def _measured(
    row: Row, threads: int, session: Session, journal: Journal, options: argparse.Namespace
) -> list[Candidate]:
    """Measure one row; whatever it raises becomes the reason in its record."""
    if journal.crashed == (row.id, threads):
        return failed_row(row, session, "ended the process, or took too long, in an earlier try")
    journal.write(running=(row.id, threads))
    if options.row_seconds:  # a hanging kernel cannot be interrupted, only ended with the process
        faulthandler.dump_traceback_later(options.row_seconds, exit=True)
    try:
        return measure_row(row, session)
    except Exception as error:
        logging.getLogger("benchmarks").warning("row %s failed", row.id, exc_info=True)
        return failed_row(row, session, describe(error))
    finally:
        faulthandler.cancel_dump_traceback_later()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Returns:
        0; 1 when a row of ours is void, 2 for bad usage, 3 when rows are left to ``--resume``.
    """
    options = parse(arguments)
    options.deadline = None if options.seconds is None else time.monotonic() + options.seconds
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("benchmarks").setLevel(logging.DEBUG if options.verbose else logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if options.json and len(options.suite) != 1 and not (options.op or options.row):
        print("benchmarks.run: --json must go with one --suite, --op or --row.", file=sys.stderr)
        return 2
    void = unfinished = False
    try:
        if options.op or options.row:
            work = {"selection": select_rows(options.op, options.row)}
        else:
            usual = [suite for suite in SUITES if suite not in ONLY_IF_NAMED]
            work = {suite: suite_rows(suite) for suite in options.suite or usual}
        if options.list:
            for row in (row for rows in work.values() for row in rows):
                console.print(f"{row.id}  {row.title}, {row.shape}, {row.dtype}", markup=False)
            return 0
        if options.device == "cuda":
            require_cuda()
            options.threads = [1]
        # Once: the file that a suite leaves behind must not make the next one's tree unclean.
        facts = provenance.collect(options.device)
        for suite, rows in work.items():
            if any(options.device in row.devices for row in rows):
                record = _run_suite(options, suite, rows, facts, console)
                void |= any(row["void"] for row in record["rows"])
                unfinished |= result.is_unfinished(record)
    except (NotAvailable, ValueError) as error:
        print(f"benchmarks.run: {error}.".replace("..", "."), file=sys.stderr)
        return 2
    except DeviceLost as error:
        print(f"benchmarks.run: {error}.", file=sys.stderr)
        return 3
    return 3 if unfinished else int(void)


def _run_suite(
    options: argparse.Namespace,
    suite: str,
    rows: Sequence[Row],
    facts: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Measure, print and store one suite; its record."""
    record, path = measure(options, suite, rows, facts, console)
    tables.print_losses(record["losses"], console)
    tables.print_scaling(record["rows"], console)
    if result.is_unfinished(record):
        count = len(record["unmeasured"])
        console.print(f"wrote {path}, unfinished: {count} rows are missing", soft_wrap=True)
        return record
    console.print(f"wrote {path}", soft_wrap=True)
    try:
        from benchmarks import chart
    except ImportError as error:  # a measuring machine needs no matplotlib
        console.print(f"no chart: {error}")
        return record
    chart.draw(record, path.with_suffix(".png"))
    console.print(f"wrote {path.with_suffix('.png')}", soft_wrap=True)
    return record


if __name__ == "__main__":
    sys.exit(main())
