# SPDX-License-Identifier: Apache-2.0
"""The GPU check keeps its deadline, and what it knows is on disk after every step."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import time

import pytest
import torch

from benchmarks.provenance import ROOT


@pytest.fixture
def script(monkeypatch, tmp_path):
    path = ROOT / "scripts" / "gpu_check.py"
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WORK", tmp_path / "work")
    return module


def test_a_step_that_hangs_is_stopped_with_its_children(script, tmp_path):
    check = script.Check(tmp_path / "out", 60)
    marker = tmp_path / "late"
    hangs = ["bash", "-c", f"(sleep 8; touch {marker}) & echo began; wait"]
    began = time.monotonic()
    assert check.step("hangs", hangs, 5, leaves=0) == 124
    assert time.monotonic() - began < 8
    assert check.step("right", ["true"], 5, leaves=0) == 0
    assert check.failed == 1
    time.sleep(max(0.0, 9 - (time.monotonic() - began)))
    assert not marker.exists()
    assert {path.name for path in check.out.iterdir()} == {"summary.txt", "logs.tar.gz"}
    assert "== hangs: STOPPED" in (check.out / "summary.txt").read_text()
    with tarfile.open(check.out / "logs.tar.gz") as archive:
        log = archive.extractfile("gpu_check/hangs.log")
        assert log is not None
        assert log.read().startswith(b"began\n\nstopped after 5 s")


def test_no_step_begins_in_the_time_of_the_later_ones(script, tmp_path):
    check = script.Check(tmp_path / "out", 20)
    assert check.step("build", ["true"], 100, leaves=18) == 124
    assert check.lines == ["== build: NO TIME LEFT"]


def test_test_files_fail_by_themselves(script, tmp_path):
    check = script.Check(tmp_path / "out", 60)
    for name, body in (("good", "pass"), ("bad", "assert 0"), ("dies", "import os; os._exit(3)")):
        (tmp_path / f"test_{name}.py").write_text(f"def test_one():\n    {body}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    names = ("good", "bad", "dies")
    jobs = [(n, [str(tmp_path / f"test_{n}.py"), "--rootdir", str(tmp_path)], []) for n in names]
    jobs = [(n, [*selection, "-c", str(tmp_path / "pytest.ini")], []) for n, selection, _ in jobs]
    script._pool(check, "tests", jobs, 3, 50)
    assert check.lines[0].startswith("== tests: 2 of 3 FAILED")
    assert check.lines[1:] == ["   bad: exit 1", "   dies: exit 3"]
    text = (check.out / "summary.txt").read_text()
    assert "bad test_bad::test_one: assert 0" in text
    assert "dies: no report" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so_in_one_line(tmp_path):
    done = subprocess.run(
        [ROOT / "scripts" / "gpu_check.sh", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    assert done.returncode == 1
    # Beside it may stand which packages are missing.
    assert "gpu_check: torch sees no GPU" in done.stdout.splitlines()[1:]


def test_every_cuda_test_file_is_found(script):
    assert "tests/ops/test_sru.py" in script._files("cuda")
    assert set(script._files("sanitizer")) <= set(script._files("cuda"))
    assert "tests/ops/test_patch_similarity_triton.py" in script._files("cuda")
