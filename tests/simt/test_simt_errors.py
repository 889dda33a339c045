# SPDX-License-Identifier: Apache-2.0
"""The host engine reports every broken kernel, and makes silent faults visible in results."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable

import numpy as np
import pytest

Call = Callable[..., tuple[int, str]]

LAUNCH_FAILED = 3
SANITIZED = "PATCHWORD_SIMT_SELFTEST" in os.environ
WRITES_OUTSIDE = {6: "past the 256 bytes of shared", 7: "past the 256 bytes of dynamic shared"}
BROKEN = {
    0: r"barrier divergence: it is in sync_block at selftest_faults.cu:(\d+), "
    r"but thread \(\d+, 0, 0\) waits in sync_block at selftest_faults.cu:(?!\1)\d+",
    1: r"barrier divergence: thread \(5, 0, 0\) has exited",
    2: r"the mask names lane 9, which has exited|its mask names lane 9, but .* has exited",
    3: r"lane mismatch: it is in (any|shuffle) .*waits in (shuffle|any)",
    4: r"the mask does not name the calling lane (1[6-9]|2\d|3[01])",
    5: r"waits in sync_block at .*: barrier divergence: thread .* waits in shuffle_down",
    8: r"ldmatrix row of 16 bytes at .* lies outside the block's shared memory",
    9: r"cp_async destination at .* is misaligned: the address must be a multiple of 16",
    10: r"cp_async source at .* is misaligned: the address must be a multiple of 16",
    11: r"cp_async destination of 4 bytes at .* lies outside",
    12: r"load_pack at .* is misaligned",
    13: r"named barrier 3 at .*: deadlock: 32 of 64 threads arrived",
    14: r"livelock: threads wait in spin_pause",
}


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_broken_kernels_are_reported(call: Call, order: str, kind: int) -> None:
    code, message = call("broken", kind, np.zeros(64, np.float32))
    assert code == LAUNCH_FAILED
    assert re.match(r"kernel broken_kernel, block \([01], 0, 0\), thread \(", message)
    assert re.search(BROKEN[kind], message)
    # The engine is usable afterwards.
    values, total = np.ones((1, 64), np.float32), np.zeros(1, np.float32)
    assert call("block_reduce", 0, values, 1, 64, 64, total) == (0, "")
    assert total[0] == 64


@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer ends the process at the write itself")
@pytest.mark.parametrize("kind", sorted(WRITES_OUTSIDE))
def test_canaries_find_writes_outside_shared_memory(call: Call, kind: int) -> None:
    code, message = call("broken", kind, np.zeros(64, np.float32))
    assert code == LAUNCH_FAILED
    assert WRITES_OUTSIDE[kind] in message


def test_missing_wait_reads_poison(call: Call) -> None:
    values, total = np.ones(1000, np.float32), np.zeros(1, np.float32)
    assert call("pipeline", 1, values, 1000, 64, total) == (0, "")
    assert np.isnan(total[0])


def test_copy_into_a_slice_still_read_shows_with_early_copies(
    call: Call, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHWORD_SIMT_COPIES", "early")
    values, total = np.arange(1000, dtype=np.float32), np.zeros(1, np.float32)
    assert call("pipeline", 2, values, 1000, 64, total) == (0, "")
    assert total[0] != values.sum()


def test_missing_barrier_shows_when_the_order_changes(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(256, dtype=np.float32).reshape(16, 16)
    results = []
    for order in ("forward", "reverse", "random:1", "random:2"):
        monkeypatch.setenv("PATCHWORD_SIMT_ORDER", order)
        output = np.zeros((16, 16), np.float32)
        assert call("transpose", 0, values, 16, 16, output) == (0, "")
        results.append(output)
    for result in results:
        assert not np.array_equal(result, values.T)
    assert not np.array_equal(results[0], results[1], equal_nan=True)
    assert not np.array_equal(results[2], results[3], equal_nan=True)


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("PATCHWORD_SIMT_ORDER", "backward", "forward, reverse or random:<seed>"),
        ("PATCHWORD_SIMT_ORDER", "random:", "forward, reverse or random:<seed>"),
        ("PATCHWORD_SIMT_ORDER", "random:x", "forward, reverse or random:<seed>"),
        ("PATCHWORD_SIMT_COPIES", "never", "late or early"),
    ],
)
def test_unknown_settings_are_refused(
    call: Call, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, rule: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, message = call("spin", np.zeros(1, np.uint32), 1)
    assert code == LAUNCH_FAILED
    assert f"{variable} must be {rule}" in message


# ---------------------------------------------------------------- launch limits


@pytest.mark.parametrize(
    ("grid", "threads", "message"),
    [(0, 32, "grid (0, 1, 1) is outside"), (1, 1025, "must have 1 to 1024 threads"),
     (1, 0, "must have 1 to 1024 threads")],
)  # fmt: skip
def test_launch_dimensions(call: Call, grid: int, threads: int, message: str) -> None:
    output = np.zeros(1, np.float32)
    code, text = call("launch", grid, threads, ctypes.c_size_t(0), output)
    assert code == LAUNCH_FAILED
    assert message in text


def test_static_shared_memory_limit(call: Call) -> None:
    output = np.zeros(32, np.float32)
    assert call("large_static", output, ctypes.c_size_t(0)) == (0, "")
    np.testing.assert_array_equal(output, 3)
    code, message = call("large_static", output, ctypes.c_size_t(16))
    assert code == LAUNCH_FAILED
    assert "static and dynamic shared memory need 49168 bytes, more than 49152" in message


def test_dynamic_shared_memory_limit(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    output = np.zeros(32, np.float32)
    size = ctypes.c_size_t(100 * 1024)
    code, message = call("large_dynamic", 0, size, output)
    assert code == LAUNCH_FAILED
    assert "call PW_RAISE_DYNAMIC_SHARED first" in message
    assert call("large_dynamic", 1, size, output) == (0, "")
    np.testing.assert_array_equal(output, 3)
    code, message = call("large_dynamic", 0, ctypes.c_size_t(101 * 1024), output)
    assert code == LAUNCH_FAILED
    assert "exceed the limit of 102400" in message
    monkeypatch.setenv("PATCHWORD_SIMT_SHARED_KB", "99")
    code, message = call("large_dynamic", 1, size, output)
    assert code == LAUNCH_FAILED
    assert "more shared memory than a block of this device may have" in message
