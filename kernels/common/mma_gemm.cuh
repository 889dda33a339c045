// SPDX-License-Identifier: Apache-2.0
// Main loop of a matrix product C = A B^T on tensor cores, for kernels that reduce C in registers.
//
// A block of 256 threads makes a 128 x 128 tile of C. Operands are 16-bit matrices in global
// memory, row-major, their depth a multiple of kSliceDepth and their rows readable up to a multiple
// of 128. Each warp of a 2 x 4 grid holds 64 x 32 of the tile: 4 x 4 fragments of m16n8k16.
//
// Split: each operand is a pair high + low of Half (22 bits of a float32), and the loop adds
// high high + high low + low high: products as good as float32's. Tensor cores truncate when they
// add, so accumulation restarts every kRestartDepth and the pieces are added in ordinary float32.
//
// Shared memory: kStages slices of 32 depths, filled by 16-byte asynchronous copies. A row of a
// slice has four 16-byte chunks, stored at chunk ^ (row / 2) % 4, so that the eight rows which
// ldmatrix reads at once lie in different banks.
#pragma once

#include "kernels/common/async_copy.cuh"
#include "kernels/common/mma.cuh"

namespace patchword::simt {

// One operand: `rows` x `depth` elements, `low` only for split products.
template <class T>
struct GemmOperand {
  const T* high;
  const T* low;
  std::int64_t depth;
};

// What a stored element is multiplied as.
template <class T>
struct OperandOf {
  using Type = T;
  static constexpr bool kSplit = false;
};
template <>
struct OperandOf<float> {
  using Type = Half;
  static constexpr bool kSplit = true;
};

template <class T, bool Split>
struct GemmTile {
  static constexpr int kThreads = 256;
  static constexpr int kRows = 128, kColumns = 128;
  static constexpr int kSliceDepth = 32;
  static constexpr int kRestartDepth = 256;
  static constexpr int kRowFragments = 4, kColumnFragments = 4;  // of a warp: 16 rows, 8 columns
  static constexpr int kStages = Split ? 3 : 4;
  static constexpr int kMatrices = Split ? 4 : 2;  // A high, B high, A low, B low
  static constexpr int kMatrixBytes = 128 * kSliceDepth * 2;
  static constexpr int kStageBytes = kMatrices * kMatrixBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;

  // acc[m][n][i]: row m * 16 + group + 8 * (i / 2), column n * 8 + 2 * quad + i % 2 of the warp's
  // part.
  using Accumulators = float[kRowFragments][kColumnFragments][4];

  static PW_DEVICE int warp_row() { return static_cast<int>(warp_id()) / 4 * 64; }
  static PW_DEVICE int warp_column() { return static_cast<int>(warp_id()) % 4 * 32; }

  // Starts the copies of one slice; every thread commits one group, empty beyond the last slice.
  static PW_DEVICE void load_slice(unsigned char* arena, const GemmOperand<T>& a,
                                   const GemmOperand<T>& b, std::int64_t row0, std::int64_t column0,
                                   int slice, int slices) {
    if (slice < slices) {
      unsigned char* stage = arena + slice % kStages * kStageBytes;
      PW_UNROLL
      for (int m = 0; m < kMatrices; ++m) {
        const GemmOperand<T>& operand = m % 2 == 0 ? a : b;
        const T* from = m < 2 ? operand.high : operand.low;
        const std::int64_t first = m % 2 == 0 ? row0 : column0;
        PW_UNROLL
        for (int part = 0; part < 2; ++part) {
          const int item = static_cast<int>(threadIdx.x) + part * kThreads;
          const int row = item / 4, chunk = item % 4;
          cp_async<16>(stage + m * kMatrixBytes + row * 64 + ((chunk ^ ((row / 2) % 4)) * 16),
                       from + (first + row) * operand.depth +
                           static_cast<std::int64_t>(slice) * kSliceDepth + chunk * 8);
        }
      }
    }
    cp_async_commit();
  }

  static PW_DEVICE const unsigned char* chunk_of(const unsigned char* matrix, int row, int chunk) {
    return matrix + row * 64 + ((chunk ^ ((row / 2) % 4)) * 16);
  }

  // Fragments of 16 depths `half` (0 or 1) of a slice.
  static PW_DEVICE void load_rows(std::uint32_t (&a)[kRowFragments][4], const unsigned char* matrix,
                                  int half) {
    const int lane = static_cast<int>(lane_id());
    PW_UNROLL
    for (int m = 0; m < kRowFragments; ++m) {
      // Matrices 0 to 3: rows 0-7 and 8-15 of the first eight depths, then of the next eight.
      const int row = warp_row() + m * 16 + lane % 16;
      ldmatrix_x4(a[m], chunk_of(matrix, row, half * 2 + lane / 16));
    }
  }
  static PW_DEVICE void load_columns(std::uint32_t (&b)[kColumnFragments][2],
                                     const unsigned char* matrix, int half) {
    const int lane = static_cast<int>(lane_id());
    PW_UNROLL
    for (int n = 0; n < kColumnFragments; n += 2) {
      // Matrices 0, 1: both depths of eight columns; 2, 3: of the next eight.
      const int column = warp_column() + n * 8 + lane % 8 + lane / 16 * 8;
      std::uint32_t both[4];
      ldmatrix_x4(both, chunk_of(matrix, column, half * 2 + lane / 8 % 2));
      b[n][0] = both[0];
      b[n][1] = both[1];
      b[n + 1][0] = both[2];
      b[n + 1][1] = both[3];
    }
  }

  static PW_DEVICE void multiply(Accumulators& acc, const std::uint32_t (&a)[kRowFragments][4],
                                 const std::uint32_t (&b)[kColumnFragments][2]) {
    PW_UNROLL
    for (int m = 0; m < kRowFragments; ++m) {
      PW_UNROLL
      for (int n = 0; n < kColumnFragments; ++n) mma_m16n8k16<T>(acc[m][n], a[m], b[n], acc[m][n]);
    }
  }

  // total = the tile at (row0, column0). All threads of the block call it; the shared memory may be
  // used for other things afterwards.
  static PW_DEVICE void run(unsigned char* arena, const GemmOperand<T>& a, const GemmOperand<T>& b,
                            std::int64_t row0, std::int64_t column0, Accumulators& total) {
    const int slices = static_cast<int>(a.depth / kSliceDepth);
    Accumulators acc;
    PW_UNROLL
    for (int m = 0; m < kRowFragments; ++m) {
      PW_UNROLL
      for (int n = 0; n < kColumnFragments; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) acc[m][n][i] = total[m][n][i] = 0.0f;
      }
    }
    for (int s = 0; s < kStages - 1; ++s) load_slice(arena, a, b, row0, column0, s, slices);
    for (int s = 0; s < slices; ++s) {
      cp_async_wait_group<kStages - 2>();
      // The slice is there for all, and nobody still reads the stage that is filled next.
      sync_block();
      load_slice(arena, a, b, row0, column0, s + kStages - 1, slices);
      const unsigned char* stage = arena + s % kStages * kStageBytes;
      PW_UNROLL
      for (int half = 0; half < 2; ++half) {
        std::uint32_t rows[kRowFragments][4], columns[kColumnFragments][2];
        load_rows(rows, stage, half);
        load_columns(columns, stage + kMatrixBytes, half);
        multiply(acc, rows, columns);
        if constexpr (Split) {
          std::uint32_t low_columns[kColumnFragments][2];
          load_columns(low_columns, stage + 3 * kMatrixBytes, half);
          multiply(acc, rows, low_columns);
          load_rows(rows, stage + 2 * kMatrixBytes, half);
          multiply(acc, rows, columns);
        }
      }
      if ((s + 1) % (kRestartDepth / kSliceDepth) == 0 || s + 1 == slices) {
        PW_UNROLL
        for (int m = 0; m < kRowFragments; ++m) {
          PW_UNROLL
          for (int n = 0; n < kColumnFragments; ++n) {
            PW_UNROLL
            for (int i = 0; i < 4; ++i) {
              total[m][n][i] += acc[m][n][i];
              acc[m][n][i] = 0.0f;
            }
          }
        }
      }
    }
    cp_async_wait_all();
    sync_block();
  }
};

}  // namespace patchword::simt
