# SPDX-License-Identifier: Apache-2.0
"""The host engine multiplies what wgmma would, and reports kernels that break its rules.

The operands are laid out here by whole 16-byte chunks and the descriptors bit by bit, from the
tables of the PTX ISA and not by the functions of ``wgmma.cuh``.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable

import numpy as np
import pytest

Call = Callable[..., tuple[int, str]]

IMAGE = 32768
LAUNCH_FAILED = 3
DTYPES = ("half", "bfloat16")


class Product(ctypes.Structure):
    """``Call`` of selftest_wgmma.cu."""

    _fields_ = [
        ("image", ctypes.c_void_p), ("a_registers", ctypes.c_void_p),
        ("a", ctypes.c_uint64), ("b", ctypes.c_uint64),
        ("steps", ctypes.c_int32), ("a_step", ctypes.c_int32), ("b_step", ctypes.c_int32),
        ("d", ctypes.c_void_p),
    ]  # fmt: skip


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """The 16 bits of small integers, which both types hold exactly."""
    if dtype == "half":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def swizzle(rows: np.ndarray) -> np.ndarray:
    """Permute the 16-byte chunks of rows of 128 or 64 bytes, ``[count, elements]``, per 8 rows.

    Lines of 128 bytes: chunk c of line l of a pattern moves to c xor l, with 64-byte rows only the
    two low bits of c, since two rows share a line and a pattern has four lines.
    """
    chunks = rows.shape[1] // 8
    source = rows.reshape(-1, 8, chunks, 8)
    result = np.empty_like(source)
    for row in range(8):
        for chunk in range(chunks):
            result[:, row, chunk ^ (row if chunks == 8 else row // 2)] = source[:, row, chunk]
    return result.reshape(rows.shape)


def panels(matrix: np.ndarray, width: int) -> np.ndarray:
    """Cut ``[rows, columns]`` into panels of ``width`` bytes a row, one after the other."""
    columns = width // 2
    padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % columns)))
    return np.concatenate([swizzle(p) for p in np.split(padded, padded.shape[1] // columns, 1)])


def descriptor(offset: int, leading: int, stride: int, width: int) -> int:
    mode = {128: 1, 64: 2}[width]
    return offset >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62


def accumulator_places(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of element i of each thread, from the figure of the PTX ISA."""
    thread, i = np.arange(128)[:, None], np.arange(columns // 2)[None, :]
    row = thread // 32 * 16 + thread % 32 // 4 + np.where(i // 2 % 2 == 1, 8, 0)
    return row, i // 4 * 8 + thread % 4 * 2 + i % 2


def left_registers(bits: np.ndarray) -> np.ndarray:
    """``[64, 16 steps]`` as the four registers of each thread ``[steps, 128, 4]``."""
    thread, element = np.arange(128)[:, None], np.arange(8)[None, :]
    row = thread // 32 * 16 + thread % 32 // 4 + np.where(element // 2 % 2 == 1, 8, 0)
    column = thread % 4 * 2 + element % 2 + np.where(element >= 4, 8, 0)
    steps = [bits[row, k + column] for k in range(0, bits.shape[1], 16)]
    return np.ascontiguousarray(np.stack(steps)).view(np.uint32)


class Case:
    """A random product laid out for one form of the instruction."""

    def __init__(
        self, rng: np.random.Generator, dtype: str, columns: int, width: int, registers: bool
    ) -> None:
        self.dtype, self.columns, self.registers = dtype, columns, registers
        depth = 32 if registers else width // 2
        self.a = rng.integers(-8, 9, (64, depth)).astype(np.float32)
        self.b = rng.integers(-8, 9, (depth, columns)).astype(np.float32)
        a_bits, b_bits = encode(self.a, dtype), encode(self.b, dtype)
        image = np.full(IMAGE // 2, 0x7FC0, np.uint16)  # NaN in both types
        left, right = panels(a_bits, width), panels(b_bits if registers else b_bits.T, width)
        a_at, b_at = 1024, 16384
        image[a_at // 2 :][: left.size] = left.reshape(-1)
        image[b_at // 2 :][: right.size] = right.reshape(-1)
        self.image, self.words = image, left_registers(a_bits)
        stride = 8 * width
        # MN-major: the panel after next 64 (32) columns lies a whole panel further.
        leading = depth * width if registers else 16
        self.product = Product(
            image.ctypes.data, self.words.ctypes.data, descriptor(a_at, 16, stride, width),
            descriptor(b_at, leading, stride, width), depth // 16, 32,
            16 * width if registers else 32, 0,
        )  # fmt: skip

    def run(self, call: Call, fault: int = 0, threads: int = 128) -> tuple[int, str, np.ndarray]:
        d = np.zeros((128, self.columns // 2), np.float32)
        self.product.d = d.ctypes.data
        code, message = call(
            "wgmma", self.dtype == "bfloat16", self.columns, self.registers, fault, threads,
            ctypes.byref(self.product),
        )  # fmt: skip
        return code, message, d

    def expected(self) -> np.ndarray:
        return (self.a @ self.b)[accumulator_places(self.columns)]


@pytest.fixture(params=["late", "early"])
def copies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATCHWORD_SIMT_COPIES", request.param)
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [128, 64])
@pytest.mark.parametrize("columns", [64, 128])
def test_both_operands_in_shared_memory(
    wgmma_call: Call, copies: str, rng: np.random.Generator, columns: int, width: int, dtype: str
) -> None:
    case = Case(rng, dtype, columns, width, registers=False)
    code, message, d = case.run(wgmma_call)
    assert (code, message) == (0, "")
    np.testing.assert_array_equal(d, case.expected())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("columns", "width"), [(32, 64), (32, 128), (64, 128), (64, 64), (96, 128), (128, 128)]
)
def test_left_operand_in_registers_and_right_one_transposed(
    wgmma_call: Call, copies: str, rng: np.random.Generator, columns: int, width: int, dtype: str
) -> None:
    case = Case(rng, dtype, columns, width, registers=True)
    code, message, d = case.run(wgmma_call)
    assert (code, message) == (0, "")
    np.testing.assert_array_equal(d, case.expected())


def test_groups_complete_one_by_one(
    wgmma_call: Call, order: str, copies: str, rng: np.random.Generator
) -> None:
    case = Case(rng, "half", 64, 64, registers=False)
    d = np.zeros((128, 32), np.float32)
    case.product.d = d.ctypes.data
    assert wgmma_call("wgmma_two_groups", ctypes.byref(case.product)) == (0, "")
    wanted = 2 * case.a[:, :16] @ case.b[:16] + case.a[:, 16:] @ case.b[16:]
    np.testing.assert_array_equal(d, wanted[accumulator_places(64)])


# The faults of selftest_wgmma.cu that the engine names.
REPORTED = {
    1: r"wgmma at selftest_wgmma.cu:\d+ reads what thread .* copied without fence_async_proxy",
    2: r"wgmma at selftest_wgmma.cu:\d+: no wgmma_fence since the registers were free",
    3: r"exits before the wgmma at selftest_wgmma.cu:\d+ has been waited for",
    4: r"accumulators .*touched while in flight",
    8: r"warp \d differs from its warpgroup in descriptors or form",
    9: r"warp \d issued \d wgmma, another warp of its warpgroup \d",
}


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("fault", sorted(REPORTED))
def test_broken_rules_are_reported(
    wgmma_call: Call, order: str, rng: np.random.Generator, fault: int, registers: bool
) -> None:
    case = Case(rng, "half", 64, 128, registers)
    code, message, _ = case.run(wgmma_call, fault)
    assert code == LAUNCH_FAILED
    assert re.search(REPORTED[fault], message), message


def test_sums_are_unknown_before_the_wait(
    wgmma_call: Call, order: str, rng: np.random.Generator
) -> None:
    code, message, d = Case(rng, "half", 64, 128, registers=False).run(wgmma_call, 5)
    assert (code, message) == (0, "")
    assert np.isnan(d).all()


@pytest.mark.parametrize("registers", [False, True])
def test_a_missing_barrier_shows(
    wgmma_call: Call, rng: np.random.Generator, registers: bool
) -> None:
    case = Case(rng, "half", 64, 128, registers)
    code, message, d = case.run(wgmma_call, 6)
    assert (code, message) == (0, "")
    assert not np.array_equal(d, case.expected())


@pytest.mark.parametrize("registers", [False, True])
def test_operands_are_read_until_the_wait(
    wgmma_call: Call, copies: str, rng: np.random.Generator, registers: bool
) -> None:
    case = Case(rng, "half", 64, 128, registers)
    code, message, d = case.run(wgmma_call, 7)
    assert (code, message) == (0, "")
    # Whoever overwrites them before the wait may or may not be in time.
    assert np.array_equal(d, case.expected()) == (copies == "early")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (1 << 49, "has a base offset"),
        (1 << 63, "does not start where|steps by less|swizzle mode"),
        (2, "does not start where the swizzle pattern does"),
        (1 << 32, "steps by less than the swizzle pattern"),
        (2048, r"reads address \d+, outside the block's shared memory"),
    ],
    ids=["base", "mode", "start", "stride", "outside"],
)
def test_descriptors_are_checked(
    wgmma_call: Call, rng: np.random.Generator, change: int, rule: str
) -> None:
    case = Case(rng, "half", 64, 128, registers=True)
    case.product.b += change
    code, message, _ = case.run(wgmma_call)
    assert code == LAUNCH_FAILED
    assert re.search(rule, message), message


def test_a_warpgroup_is_four_warps(wgmma_call: Call, rng: np.random.Generator) -> None:
    code, message, _ = Case(rng, "half", 64, 128, registers=False).run(wgmma_call, threads=96)
    assert code == LAUNCH_FAILED
    assert "a warpgroup is four whole warps" in message
