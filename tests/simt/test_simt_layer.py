# SPDX-License-Identifier: Apache-2.0
"""Kernels written against the SIMT layer compute on the CPU what CUDA would."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

Call = Callable[..., tuple[int, str]]


def round_to_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """float64 -> nearest number with ``bits`` significand bits, ties to even, no range limit."""
    fraction, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of values that bfloat16 holds exactly after rounding."""
    rounded = round_to_bits(values, 8).astype(np.float32)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


# ---------------------------------------------------------------- kernels that are right


@pytest.mark.parametrize("threads", [32, 96, 256])
@pytest.mark.parametrize("count", [1, 31, 1000])
def test_block_reduction(
    call: Call, order: str, rng: np.random.Generator, threads: int, count: int
) -> None:
    values = rng.standard_normal((3, count)).astype(np.float32)
    sums, maxima = np.zeros(3, np.float32), np.zeros(3, np.float32)
    assert call("block_reduce", 0, values, 3, count, threads, sums) == (0, "")
    assert call("block_reduce", 1, values, 3, count, threads, maxima) == (0, "")
    np.testing.assert_allclose(sums, values.sum(1, dtype=np.float64), rtol=0, atol=2e-6 * count)
    np.testing.assert_array_equal(maxima, values.max(1))


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (33, 50), (5, 70)])
def test_shared_memory_transpose(call: Call, order: str, shape: tuple[int, int]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    output = np.zeros(shape[::-1], np.float32)
    assert call("transpose", 1, values, *shape, output) == (0, "")
    np.testing.assert_array_equal(output, values.T)


def test_atomics(call: Call, order: str, rng: np.random.Generator) -> None:
    count = 500
    values = rng.integers(0, 2**32, count, dtype=np.uint32)
    fields = [
        ("sum", "i4"), ("float_sum", "f4"), ("wide_sum", "u8"), ("max", "u4"), ("wide_max", "u8"),
        ("wide_min", "i8"), ("packed_argmax", "u8"), ("last_block", "u4"), ("arrived", "u4"),
        ("seen", "u4"),
    ]  # fmt: skip
    results = np.zeros(1, np.dtype(fields, align=True))
    assert call("atomics", values, count, results) == (0, "")
    (got,) = results
    wide = values.astype(np.uint64)
    best = int(values.argmax())
    assert got["sum"] == (values % 1000).sum()
    assert got["float_sum"] == count / 2
    assert got["wide_sum"] == (wide << 8).sum()
    assert got["max"] == values.max()
    assert got["wide_max"] == (int(values[best]) << 32 | 0xFFFFFFFF - best)
    assert got["wide_min"] == -int(values.max())
    assert got["packed_argmax"] == (int(values[best]) << 32 | best)
    assert got["seen"] == np.bitwise_or.reduce(np.uint32(1) << values % 32)
    assert got["arrived"] == 6
    assert got["last_block"] == {"forward": 6, "reverse": 1}.get(order, got["last_block"])
    assert 1 <= got["last_block"] <= 6


def test_warp_primitives(call: Call, order: str, rng: np.random.Generator) -> None:
    v = rng.integers(0, 1000, 32).astype(np.int32)
    output = np.zeros((20, 32), np.int64)
    assert call("warp", v, output) == (0, "")
    lane = np.arange(32)
    ballot3 = sum(1 << i for i in range(32) if v[i] % 3 == 0)
    ballot2 = sum(1 << i for i in range(16, 32) if v[i] % 2 == 0)
    xor12 = np.where((lane ^ 12) <= (lane | 7), lane ^ 12, lane)
    expected = [
        np.full(32, v[5]),
        v[(lane + 3) % 32],
        v[lane // 8 * 8 + 1],
        v[np.where(lane >= 3, lane - 3, lane)],
        v[np.where(lane % 8 >= 3, lane - 3, lane)],
        v[np.where(lane + 7 < 32, lane + 7, lane)],
        v[np.where(lane % 16 + 7 < 16, lane + 7, lane)],
        v[lane ^ 6],
        v[xor12],
        v[31 - lane].astype(np.int64) << 33,
        v[lane ^ 1],
        np.full(32, ballot3),
        np.ones(32),
        np.ones(32),
        np.full(32, v.max()),
        v.reshape(8, 4).sum(1).repeat(4),
        [int(value).bit_count() for value in v],
        np.where(lane < 15, v[(lane + 1) % 32], np.where(lane < 16, v[15], ballot2)),
        np.where(lane < 16, -1, 1),
    ]
    for row, want in enumerate(expected):
        np.testing.assert_array_equal(output[row], want, err_msg=f"row {row}")
    np.testing.assert_array_equal(output[len(expected) :], 0)


def fragments(kind: str, elements: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of element i of each lane [32, elements], from the formulas of the PTX ISA."""
    lane, i = np.arange(32)[:, None], np.arange(elements)[None, :]
    group, in_group = lane >> 2, lane % 4
    if kind == "a16":
        row = np.where(((i >= 0) & (i < 2)) | ((i >= 4) & (i < 6)), group, group + 8)
        column = in_group * 2 + (i & 1) + np.where(i < 4, 0, 8)
    elif kind == "b16":
        row = in_group * 2 + (i & 1) + np.where(i < 2, 0, 8)
        column = group + 0 * i
    elif kind == "a_tf32":
        row = np.where((i == 0) | (i == 2), group, group + 8)
        column = np.where(i < 2, in_group, in_group + 4)
    elif kind == "b_tf32":
        row = np.where(i == 0, in_group, in_group + 4)
        column = group + 0 * i
    else:
        row = np.where(i < 2, group, group + 8)
        column = in_group * 2 + (i & 1)
    return row, column


@pytest.mark.parametrize("dtype", ["half", "bfloat16", "tf32"])
def test_mma_fragments_follow_the_ptx_layout(
    call: Call, order: str, rng: np.random.Generator, dtype: str
) -> None:
    depth = 8 if dtype == "tf32" else 16
    # Small integers are exact in every type, so the product has one right answer.
    a = rng.integers(-8, 9, (16, depth)).astype(np.float32)
    b = rng.integers(-8, 9, (depth, 8)).astype(np.float32)
    c = rng.integers(-99, 100, (16, 8)).astype(np.float32)
    if dtype == "tf32":
        a_registers = a[fragments("a_tf32", 4)].view(np.uint32)
        b_registers = b[fragments("b_tf32", 2)].view(np.uint32)
        a_registers = a_registers | 0x1FFF  # bits below tf32 are ignored
    else:
        encode = to_bfloat16 if dtype == "bfloat16" else lambda x: x.astype(np.float16)
        a_registers = encode(a)[fragments("a16", 8)].view(np.uint32)
        b_registers = encode(b)[fragments("b16", 4)].view(np.uint32)
    accumulators = fragments("c", 4)
    d = np.zeros((32, 4), np.float32)
    kind = ["half", "bfloat16", "tf32"].index(dtype)
    arrays = [np.ascontiguousarray(x) for x in (a_registers, b_registers, c[accumulators])]
    assert call("mma_registers", kind, *arrays, d) == (0, "")
    np.testing.assert_array_equal(d, (a @ b + c)[accumulators])


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_ldmatrix_follows_the_ptx_layout(call: Call, order: str, count: int, trans: bool) -> None:
    matrices = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    output = np.zeros((32, count), np.uint32)
    assert call("ldmatrix", count, int(trans), matrices, output) == (0, "")
    for lane in range(32):
        for j in range(count):
            matrix = matrices[j].T if trans else matrices[j]
            low, high = matrix[lane // 4, lane % 4 * 2], matrix[lane // 4, lane % 4 * 2 + 1]
            assert output[lane, j] == int(low) | int(high) << 16


@pytest.mark.parametrize("dtype", ["half", "bfloat16", "tf32"])
def test_mma_gemm(call: Call, order: str, rng: np.random.Generator, dtype: str) -> None:
    m, n, k = 32, 24, 48
    a = rng.standard_normal((m, k)).astype(np.float32)
    b = rng.standard_normal((k, n)).astype(np.float32)
    kind = ["half", "bfloat16", "tf32"].index(dtype)
    if dtype == "half":
        stored = [a.astype(np.float16), b.astype(np.float16)]
        exact = [x.astype(np.float64) for x in stored]
    elif dtype == "bfloat16":
        stored = [to_bfloat16(a), to_bfloat16(b)]
        exact = [round_to_bits(a, 8), round_to_bits(b, 8)]
    else:
        stored = [a, b]
        exact = [round_to_bits(a, 11), round_to_bits(b, 11)]
    output = np.zeros((m, n), np.float32)
    assert call("gemm", kind, *stored, m, n, k, output) == (0, "")
    bound = 1e-6 * (np.abs(exact[0]) @ np.abs(exact[1]))
    assert (np.abs(output - exact[0] @ exact[1]) <= bound).all()


@pytest.fixture(params=["late", "early"])
def copies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATCHWORD_SIMT_COPIES", request.param)
    return str(request.param)


@pytest.mark.parametrize("count", [1, 255, 256, 1000])
def test_cp_async_pipeline(
    call: Call, order: str, copies: str, rng: np.random.Generator, count: int
) -> None:
    values = rng.standard_normal(count).astype(np.float32)
    total = np.zeros(1, np.float32)
    assert call("pipeline", 0, values, count, 64, total) == (0, "")
    np.testing.assert_allclose(total[0], values.sum(dtype=np.float64), rtol=0, atol=1e-4)


def test_named_barriers(call: Call, order: str, rng: np.random.Generator) -> None:
    values = rng.standard_normal((10, 32)).astype(np.float32)
    output = np.zeros_like(values)
    assert call("named_barrier", values, 10, output) == (0, "")
    np.testing.assert_array_equal(output, values[:, ::-1])


def test_spin_wait_lets_the_others_run(call: Call, order: str) -> None:
    flag = np.zeros(1, np.uint32)
    assert call("spin", flag, 65) == (0, "")
    assert flag[0] == 64


def conversion_cases(rng: np.random.Generator) -> np.ndarray:
    """Every half, each midpoint between neighbours and the floats beside it, and random bits."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = np.append((halves[:-1] + halves[1:]) / 2, 65520.0).astype(np.float32)
    positive = np.concatenate(
        [halves.astype(np.float32), middles, np.nextafter(middles, np.float32(0)),
         np.nextafter(middles, np.float32(np.inf)), np.float32([np.inf, 3.4028235e38, 1e-45])]
    )  # fmt: skip
    random = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = (random & 0xFFFF0000) | 0x8000  # half way between two bfloat16 values
    return np.concatenate([positive, -positive, random.view(np.float32), ties.view(np.float32)])


@pytest.mark.parametrize("flush", [False, True])
def test_half_conversions_round_to_nearest_even(
    call: Call, rng: np.random.Generator, flush: bool
) -> None:
    values = conversion_cases(rng)
    half, bfloat = np.zeros(len(values), np.uint16), np.zeros(len(values), np.uint16)
    half_back, bfloat_back = np.zeros(len(values), np.float32), np.zeros(len(values), np.float32)
    if flush and call("flush_denormals", 1)[0] == 0:
        pytest.skip("this CPU has no flush-to-zero mode that the test knows")
    try:
        code = call("convert", values, len(values), half, bfloat, half_back, bfloat_back)
    finally:
        call("flush_denormals", 0)
    assert code == (0, "")
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(half[number], expected.view(np.uint16)[number])
    np.testing.assert_array_equal(half_back.view(np.uint32)[number],
                                  expected.astype(np.float32).view(np.uint32)[number])  # fmt: skip
    # bfloat16 shares float32's exponents: below 2^-126 the unit stays 2^-133.
    finite = values[number].astype(np.float64)
    unit = np.ldexp(1.0, np.maximum(np.frexp(np.where(np.isinf(finite), 1, finite))[1], -125) - 8)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.where(np.isinf(finite), finite, np.rint(finite / unit) * unit)
        expected_back = rounded.astype(np.float32)
    np.testing.assert_array_equal(
        bfloat_back.view(np.uint32)[number], expected_back.view(np.uint32)
    )
    np.testing.assert_array_equal(bfloat, bfloat_back.view(np.uint32) >> 16)
    assert np.isnan(half_back[~number]).all()
    assert np.isnan(bfloat_back[~number]).all()
    np.testing.assert_array_equal(np.signbit(half_back), np.signbit(values))
    np.testing.assert_array_equal(np.signbit(bfloat_back), np.signbit(values))
