# SPDX-License-Identifier: Apache-2.0
"""Measures the rows of a result file at another commit, built in a throw-away worktree."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.result import load

ROOT = Path(__file__).resolve().parents[1]


def measure_at(commit: str, new: dict[str, Any], root: Path = ROOT) -> dict[str, Any]:
    """Build ``commit`` and measure there the rows of ``new`` that it has.

    Args:
        commit: Anything that git takes for a commit.
        new: Record of a result file; its device, threads, backends and pace are taken over.
        root: A checkout of the project. What is not committed there plays no part.

    Returns:
        The record of the run at ``commit``.

    Raises:
        ValueError: The commit does not exist, does not build, has none of the rows, or its run
            fails.
    """
    with tempfile.TemporaryDirectory(prefix="patchword-base-") as folder:
        tree = Path(folder) / "tree"
        add = ["git", "worktree", "add", "--quiet", "--detach", str(tree), commit]
        _run(add, root, f"there is no commit {commit}")
        try:
            return _measure(tree, new, Path(folder) / "base.json", commit)
        finally:
            remove = ["git", "worktree", "remove", "--force", str(tree)]
            _run(remove, root, "the worktree cannot be removed")


def _measure(tree: Path, new: dict[str, Any], path: Path, commit: str) -> dict[str, Any]:
    cuda = ["--cuda"] if new["device"] == "cuda" else []
    _run(["scripts/dev_build.sh", *cuda], tree, f"{commit} does not build")
    run = [sys.executable, "-m", "benchmarks.run", "--device", new["device"]]
    listed = _run([*run, "--list"], tree, f"{commit} does not list its rows")
    known = {line.split()[0] for line in listed.splitlines() if line.strip()}
    wanted = dict.fromkeys(row["id"] for row in new["rows"])
    rows = [option for row in wanted if row in known for option in ("--row", row)]
    if not rows:
        raise ValueError(f"{commit} has none of the rows of the new file")
    threads = [str(count) for count in new["thread_counts"]]
    run += ["--threads", *threads, "--json", str(path), *rows]
    if new["quick"]:
        run.append("--quick")
    # 1: a row of ours is void, which its record says.
    _run(run, tree, f"the run at {commit} failed", accepted=(0, 1))
    return load(path)


def _run(command: Sequence[str], folder: Path, fault: str, accepted: Sequence[int] = (0,)) -> str:
    """Run a command with the project of ``folder`` in front; its output."""
    here = [str(folder / "python"), str(folder)]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(here)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in accepted:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ValueError(f"{fault} ({last})")
    return done.stdout
