# SPDX-License-Identifier: Apache-2.0
"""Command line of the benchmark: measures rows, prints tables, writes JSON and a chart."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from benchmarks import chart, probes, provenance, result, tables
from benchmarks.common import NotAvailable
from benchmarks.cuda_timing import require_cuda
from benchmarks.measure import Session, measure_row
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
    parser.add_argument("--json", type=Path, help="where the one result file goes")
    parser.add_argument("--folder", type=Path, help="where the result files of suites go")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of failed candidates")
    return parser.parse_args(arguments)


def applies(row: Row, threads: int, options: argparse.Namespace) -> bool:
    """Whether a row is measured at this thread count; memory rows only at the largest."""
    if row.kind == "memory":
        return threads == max(options.threads) and not options.quick
    return not (row.kind == "sharing" and options.device == "cuda")


def measure(
    options: argparse.Namespace,
    suite: str,
    rows: Sequence[Row],
    facts: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Measure ``rows`` and return the result record, printing each row when it is done."""
    session = Session(options.device, options.backend, options.quick)
    records, ceilings = [], []
    with ExitStack() as stack:
        stack.callback(session.close)
        cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="patchword-bench-"))
        # A fresh compiler cache, so that compile times are true; no pool of compiler processes.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        work = [(n, row) for n in options.threads for row in rows if applies(row, n, options)]
        for threads in options.threads:
            weigh = threads == max(options.threads) and not options.quick
            session.start(threads, weigh)
            if options.device == "cpu":
                ceilings.append(probes.probe_cpu(threads, session.workers))
            else:
                ceilings.append(probes.probe_cuda())
            progress = [row for count, row in work if count == threads]
            for row in tqdm(progress, desc=f"{threads} thread(s)", file=sys.stderr):
                candidates = measure_row(row, session)
                records.append(
                    result.row_record(row, candidates, threads, options.device, ceilings[-1])
                )
                tables.print_row(records[-1], console)
    after = [round(value, 2) for value in os.getloadavg()]
    return {
        "schema": result.SCHEMA_VERSION,
        "suite": suite,
        "device": options.device,
        "quick": options.quick,
        "complete": not (options.op or options.row or options.quick),
        "thread_counts": options.threads,
        "provenance": facts | {"load_average_after": after},
        "probes": ceilings,
        "rows": records,
        "losses": result.losses(records),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 when a row of ours is void, 2 for bad usage."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("benchmarks").setLevel(logging.DEBUG if options.verbose else logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if options.json and len(options.suite) != 1 and not (options.op or options.row):
        print("benchmarks.run: --json must go with one --suite, --op or --row.", file=sys.stderr)
        return 2
    void = False
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
            void |= _run_suite(options, suite, rows, facts, console)
    except (NotAvailable, ValueError) as error:
        print(f"benchmarks.run: {error}", file=sys.stderr)
        return 2
    return int(void)


def _run_suite(
    options: argparse.Namespace,
    suite: str,
    rows: Sequence[Row],
    facts: dict[str, Any],
    console: Console,
) -> bool:
    """Measure, print and store one suite; True when a row of ours is void."""
    record = measure(options, suite, rows, facts, console)
    tables.print_losses(record["losses"], console)
    tables.print_scaling(record["rows"], console)
    path = options.json or result.default_path(
        record["provenance"], options.device, record["complete"], suite
    )
    if options.folder and not options.json:
        path = options.folder / path.name
    result.save(record, path)
    chart.draw(record, path.with_suffix(".png"))
    console.print(f"wrote {path} and {path.with_suffix('.png')}", soft_wrap=True)
    return any(row["void"] for row in record["rows"])


if __name__ == "__main__":
    sys.exit(main())
