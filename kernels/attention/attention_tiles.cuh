// SPDX-License-Identifier: Apache-2.0
// Tiles in shared memory and the two products of a warp over them, `dot_rows` (A B^T) and
// `accumulate` (P B).
//
// A tile is [rows][D] with padded rows, so that neither ldmatrix nor the float reads of the tf32
// path meet a bank twice. 16-bit types use m16n8k16. float32 uses three m16n8k8 products of tf32
// halves (high high, high low, low high); tensor cores truncate when they add, so sums restart
// after a few products and the pieces are added in ordinary float32.
#pragma once

#include "kernels/attention/attention_rows.cuh"
#include "kernels/common/async_copy.cuh"
#include "kernels/common/mma.cuh"

namespace patchword {
namespace {

constexpr int kThreads = 128;

template <class T, int D>
struct Tile {
  static constexpr int kStride = D + 16 / static_cast<int>(sizeof(T));  // elements
  static constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));
  static constexpr int bytes(int rows) { return rows * kStride * static_cast<int>(sizeof(T)); }
};

// ---------------------------------------------------------------- tiles

// Rows `start` ... of a set go to shared memory; rows that `take` refuses and columns from `dim` on
// become zeros and are not read. A commit and a wait must follow also where nothing is aligned.
template <class T, int D, class Take>
PW_DEVICE void load_tile(T* tile, int rows, const T* from, std::int64_t row_stride,
                         std::int64_t start, int dim, bool aligned, Take take) {
  constexpr int kChunk = Tile<T, D>::kPerChunk, kChunks = D / kChunk;
  if (aligned) {
    for (int item = static_cast<int>(threadIdx.x); item < rows * kChunks; item += kThreads) {
      const int row = item / kChunks, column = item % kChunks * kChunk;
      const bool there = column < dim && take(start + row);
      simt::cp_async<16>(tile + row * Tile<T, D>::kStride + column,
                         there ? from + (start + row) * row_stride + column : from, there ? 16 : 0);
    }
  } else {
    for (int item = static_cast<int>(threadIdx.x); item < rows * D; item += kThreads) {
      const int row = item / D, column = item % D;
      const bool there = column < dim && take(start + row);
      tile[row * Tile<T, D>::kStride + column] =
          there ? from[(start + row) * row_stride + column] : from_float<T>(0.0f);
    }
  }
}

// Takes the first `count` rows.
struct Below {
  std::int64_t count;
  PW_DEVICE bool operator()(std::int64_t row) const { return row < count; }
};
struct Visible {
  Keys keys;
  PW_DEVICE bool operator()(std::int64_t key) const { return keys.visible(key); }
};

// Writes a warp's 16 x D accumulators to rows start + 16 * warp ... below `count`.
template <class T, int D>
PW_DEVICE void store_rows(T* to, std::int64_t row_stride, std::int64_t start, std::int64_t count,
                          int dim, const float (&acc)[D / 8][4], const float (&factor)[2]) {
  const int group = static_cast<int>(simt::lane_id()) / 4;
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row = start + static_cast<int>(simt::warp_id()) * 16 + group + 8 * half;
    if (row >= count) continue;
    T* out = to + row * row_stride;
    PW_UNROLL
    for (int n = 0; n < D / 8; ++n) {
      PW_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int column = n * 8 + 2 * quad + i;
        if (column < dim) out[column] = from_float<T>(acc[n][2 * half + i] * factor[half]);
      }
    }
  }
}

template <int N>
PW_DEVICE void clear(float (&c)[N][4]) {
  PW_UNROLL
  for (int n = 0; n < N; ++n) {
    PW_UNROLL
    for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
  }
}

// ---------------------------------------------------------------- products

struct Tf32Pair {
  std::uint32_t high, low;
};

PW_DEVICE Tf32Pair split(float value) {
  const std::uint32_t high = simt::to_tf32(value);
  return Tf32Pair{high, simt::to_tf32(value - bit_cast<float>(high))};
}

template <class T>
PW_DEVICE std::uint32_t pack_pair(float low, float high) {
  return static_cast<std::uint32_t>(from_float<T>(low).bits) |
         static_cast<std::uint32_t>(from_float<T>(high).bits) << 16;
}

// The products of one element type and depth. `a` is the warp's 16 rows of a tile, `b` a tile.
template <class T, int D>
struct Products {
  static constexpr int kStride = Tile<T, D>::kStride;

  // c[n][i] += a . b over D, for rows of `a` and 8 N rows of `b`, in the layout of mma's C.
  template <int N>
  static PW_DEVICE void dot_rows(float (&c)[N][4], const T* a, const T* b) {
    const int lane = static_cast<int>(simt::lane_id());
    PW_UNROLL
    for (int k = 0; k < D; k += 16) {
      std::uint32_t rows[4];
      simt::ldmatrix_x4(rows, a + lane % 16 * kStride + k + lane / 16 * 8);
      PW_UNROLL
      for (int n = 0; n < N; n += 2) {
        std::uint32_t both[4];
        simt::ldmatrix_x4(both,
                          b + (n * 8 + lane % 8 + lane / 16 * 8) * kStride + k + lane / 8 % 2 * 8);
        const std::uint32_t first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
        simt::mma_m16n8k16<T>(c[n], rows, first, c[n]);
        simt::mma_m16n8k16<T>(c[n + 1], rows, second, c[n + 1]);
      }
    }
  }

  // acc += p b: p is 16 x 8 M in the layout of mma's C and rounds to T, b has 8 M rows.
  template <int M>
  static PW_DEVICE void accumulate(float (&acc)[D / 8][4], const float (&p)[M][4], const T* b) {
    const int lane = static_cast<int>(simt::lane_id());
    PW_UNROLL
    for (int m = 0; m < M; m += 2) {
      const std::uint32_t rows[4] = {pack_pair<T>(p[m][0], p[m][1]), pack_pair<T>(p[m][2], p[m][3]),
                                     pack_pair<T>(p[m + 1][0], p[m + 1][1]),
                                     pack_pair<T>(p[m + 1][2], p[m + 1][3])};
      PW_UNROLL
      for (int n = 0; n < D / 8; n += 2) {
        std::uint32_t both[4];
        simt::ldmatrix_x4<true>(both, b + (m * 8 + lane % 16) * kStride + n * 8 + lane / 16 * 8);
        const std::uint32_t first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
        simt::mma_m16n8k16<T>(acc[n], rows, first, acc[n]);
        simt::mma_m16n8k16<T>(acc[n + 1], rows, second, acc[n + 1]);
      }
    }
  }
};

template <int D>
struct Products<float, D> {
  static constexpr int kStride = Tile<float, D>::kStride;
  static constexpr int kRestart = 32;

  static PW_DEVICE void multiply(float (&c)[4], const Tf32Pair (&a)[4], const Tf32Pair (&b)[2]) {
    const std::uint32_t high_a[4] = {a[0].high, a[1].high, a[2].high, a[3].high};
    const std::uint32_t low_a[4] = {a[0].low, a[1].low, a[2].low, a[3].low};
    const std::uint32_t high_b[2] = {b[0].high, b[1].high}, low_b[2] = {b[0].low, b[1].low};
    simt::mma_m16n8k8_tf32(c, low_a, high_b, c);
    simt::mma_m16n8k8_tf32(c, high_a, low_b, c);
    simt::mma_m16n8k8_tf32(c, high_a, high_b, c);
  }

  template <int N>
  static PW_DEVICE void dot_rows(float (&c)[N][4], const float* a, const float* b) {
    const int group = static_cast<int>(simt::lane_id()) / 4;
    const int quad = static_cast<int>(simt::lane_id()) % 4;
    for (int k0 = 0; k0 < D; k0 += kRestart) {
      float part[N][4];
      clear(part);
      PW_UNROLL
      for (int k = k0; k < k0 + kRestart; k += 8) {
        Tf32Pair rows[4];
        PW_UNROLL
        for (int r = 0; r < 4; ++r) {
          rows[r] = split(a[(group + r % 2 * 8) * kStride + k + quad + r / 2 * 4]);
        }
        PW_UNROLL
        for (int n = 0; n < N; ++n) {
          const float* row = b + (n * 8 + group) * kStride + k + quad;
          const Tf32Pair columns[2] = {split(row[0]), split(row[4])};
          multiply(part[n], rows, columns);
        }
      }
      PW_UNROLL
      for (int n = 0; n < N; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) c[n][i] += part[n][i];
      }
    }
  }

  // mma wants columns quad and quad + 4 of p where its C layout holds 2 quad and 2 quad + 1. A sum
  // over keys has no order, so key 2 quad is called column quad, and 2 quad + 1 column quad + 4.
  template <int M>
  static PW_DEVICE void accumulate(float (&acc)[D / 8][4], const float (&p)[M][4], const float* b) {
    const int group = static_cast<int>(simt::lane_id()) / 4;
    const int quad = static_cast<int>(simt::lane_id()) % 4;
    // Two groups of eight keys at a time: their halves fit in registers beside the sums.
    PW_UNROLL
    for (int m0 = 0; m0 < M; m0 += 2) {
      Tf32Pair rows[2][4];
      PW_UNROLL
      for (int m = 0; m < 2; ++m) {
        rows[m][0] = split(p[m0 + m][0]);
        rows[m][1] = split(p[m0 + m][2]);
        rows[m][2] = split(p[m0 + m][1]);
        rows[m][3] = split(p[m0 + m][3]);
      }
      PW_UNROLL
      for (int n = 0; n < D / 8; ++n) {
        float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        PW_UNROLL
        for (int m = 0; m < 2; ++m) {
          const float* row = b + ((m0 + m) * 8 + 2 * quad) * kStride + n * 8 + group;
          const Tf32Pair columns[2] = {split(row[0]), split(row[kStride])};
          multiply(part, rows[m], columns);
        }
        PW_UNROLL
        for (int i = 0; i < 4; ++i) acc[n][i] += part[i];
      }
    }
  }
};

}  // namespace
}  // namespace patchword
