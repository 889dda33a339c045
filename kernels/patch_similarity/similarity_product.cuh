// SPDX-License-Identifier: Apache-2.0
// Products of 64 patches with up to 256 queries on tensor cores, norms from the same slices.
//
// 16 warps stand 4 by 4: warp (wr, wc) owns patches [16 wr, 16 wr + 16) and the 8-query tiles
// wc, wc + 4, ... Both operands pass through shared memory in slices of 64 bytes of depth per row,
// three stages deep. Half types multiply with m16n8k16; float32 is split into two tf32 terms and
// takes three m16n8k8 products (the product of the low terms is below the rounding).
#pragma once

#include "kernels/common/async_copy.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/simt.cuh"

namespace patchword {
namespace {

constexpr int kThreads = 512;
constexpr int kTileRows = 64;     // patches of a block
constexpr int kMaxColumns = 256;  // queries of a pass
constexpr int kStages = 3;
constexpr int kSliceBytes = 64;
// 80 bytes a row: eight consecutive rows start in eight different 16-byte bank groups.
constexpr int kRowBytes = 80;
constexpr int kColumnTiles = kMaxColumns / 8 / 4;  // per warp
// Tensor cores truncate when they add: the sum moves to a float32 register this often.
constexpr int kRestartDepth = 256;

// Rows of a matrix that a block reads, in elements.
template <class T>
struct RowSource {
  const T* first;
  int64_t row_stride, depth_stride;
  int rows;     // valid ones; the others read as zero
  bool vector;  // 16-byte copies are possible: unit stride and aligned rows
};

template <class T>
PW_DEVICE void load_slice(const RowSource<T>& source, int padded_rows, int64_t depth, int64_t d0,
                          unsigned char* to) {
  constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));
  constexpr int kChunks = kSliceBytes / 16;
#pragma unroll 1  // unrolled copies would cost registers that the accumulators need
  for (int i = static_cast<int>(threadIdx.x); i < padded_rows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t d = d0 + chunk * kPerChunk;
    unsigned char* target = to + row * kRowBytes + chunk * 16;
    const int64_t left = depth - d;
    const int valid =
        row < source.rows && left > 0 ? static_cast<int>(simt::min<int64_t>(left, kPerChunk)) : 0;
    if (source.vector) {
      const T* from = valid > 0 ? source.first + row * source.row_stride + d : source.first;
      simt::cp_async<16>(target, from, valid * static_cast<int>(sizeof(T)));
    } else {
      T* elements = reinterpret_cast<T*>(target);
      const T* from = source.first + row * source.row_stride + d * source.depth_stride;
#pragma unroll 1
      for (int j = 0; j < kPerChunk; ++j) {
        elements[j] = j < valid ? from[j * source.depth_stride] : from_float<T>(0.0f);
      }
    }
  }
}

template <class T>
PW_DEVICE float square_of_pair(std::uint32_t pair) {
  const float low = to_float(T{static_cast<std::uint16_t>(pair)});
  const float high = to_float(T{static_cast<std::uint16_t>(pair >> 16)});
  return low * low + high * high;
}

// Accumulators of one warp.
struct WarpTile {
  float sums[kColumnTiles][4];
  float row_squares[2];  // rows group, group + 8; the depths of this lane's quad
};

// Squares of one slice of a query: two threads share a row, which costs one register where sums
// from the fragments would take one for each column tile.
template <class T>
PW_DEVICE float column_squares_of(const unsigned char* b, int columns) {
  constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));
  const int column = static_cast<int>(threadIdx.x) / 2;
  float squares = 0.0f;
  if (column < columns) {
    const T* part =
        reinterpret_cast<const T*>(b + column * kRowBytes + kSliceBytes / 2 * (threadIdx.x % 2));
#pragma unroll 1
    for (int chunk = 0; chunk < kSliceBytes / 32; ++chunk) {
      const auto values = simt::load_pack<kPerChunk>(part + chunk * kPerChunk);
      PW_UNROLL
      for (int j = 0; j < kPerChunk; ++j) squares += to_float(values[j]) * to_float(values[j]);
    }
  }
  return squares;
}

template <class T>
PW_DEVICE void multiply_slice(const unsigned char* a, const unsigned char* b, int wr, int wc,
                              int tiles, WarpTile& t) {
  const unsigned lane = simt::lane_id();
  if constexpr (sizeof(T) == 2) {
    PW_UNROLL
    for (int k = 0; k < 2; ++k) {
      std::uint32_t fragment[4];
      simt::ldmatrix_x4(fragment,
                        a + (16 * wr + lane % 16) * kRowBytes + 32 * k + 16 * (lane / 16));
      t.row_squares[0] += square_of_pair<T>(fragment[0]) + square_of_pair<T>(fragment[2]);
      t.row_squares[1] += square_of_pair<T>(fragment[1]) + square_of_pair<T>(fragment[3]);
      PW_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) {
        const int tile = wc + 4 * n;
        if (tile < tiles) {
          std::uint32_t columns[2];
          simt::ldmatrix_x2(columns,
                            b + (8 * tile + lane % 8) * kRowBytes + 32 * k + 16 * (lane / 8 % 2));
          simt::mma_m16n8k16<T>(t.sums[n], fragment, columns, t.sums[n]);
        }
      }
    }
  } else {
    const unsigned group = lane / 4, quad = lane % 4;
    PW_UNROLL
    for (int k = 0; k < 2; ++k) {
      std::uint32_t high[4], low[4];
      PW_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float x = *reinterpret_cast<const float*>(
            a + (16 * wr + group + 8 * (r % 2)) * kRowBytes + 4 * (8 * k + quad + 4 * (r / 2)));
        t.row_squares[r % 2] += x * x;
        high[r] = simt::to_tf32(x);
        low[r] = simt::to_tf32(x - bit_cast<float>(high[r]));
      }
      PW_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) {
        const int tile = wc + 4 * n;
        if (tile < tiles) {
          std::uint32_t column_high[2], column_low[2];
          PW_UNROLL
          for (int r = 0; r < 2; ++r) {
            const float w = *reinterpret_cast<const float*>(b + (8 * tile + group) * kRowBytes +
                                                            4 * (8 * k + quad + 4 * r));
            column_high[r] = simt::to_tf32(w);
            column_low[r] = simt::to_tf32(w - bit_cast<float>(column_high[r]));
          }
          simt::mma_m16n8k8_tf32(t.sums[n], low, column_high, t.sums[n]);
          simt::mma_m16n8k8_tf32(t.sums[n], high, column_low, t.sums[n]);
          simt::mma_m16n8k8_tf32(t.sums[n], high, column_high, t.sums[n]);
        }
      }
    }
  }
}

// Inner products into z[row * z_step + column], squares of the norms of rows and columns beside.
// `arena` holds kStages slices of both operands; z may lie over them.
template <class T>
PW_DEVICE void product_tile(const RowSource<T>& rows, const RowSource<T>& columns, int64_t depth,
                            int num_columns, unsigned char* arena, float* z, int z_step,
                            float* row_squares, float* column_squares) {
  constexpr int kSlice = kSliceBytes / static_cast<int>(sizeof(T));
  const int tiles = simt::ceil_div(num_columns, 8);
  const int stage_bytes = (kTileRows + 8 * tiles) * kRowBytes;
  const int slices = static_cast<int>(simt::ceil_div<int64_t>(depth, kSlice));
  const int wr = static_cast<int>(simt::warp_id()) % 4, wc = static_cast<int>(simt::warp_id()) / 4;
  WarpTile t;
  float total[kColumnTiles][4];
  PW_UNROLL
  for (int n = 0; n < kColumnTiles; ++n) {
    PW_UNROLL
    for (int i = 0; i < 4; ++i) t.sums[n][i] = total[n][i] = 0.0f;
  }
  t.row_squares[0] = t.row_squares[1] = 0.0f;
  float squares_of_column = 0.0f;

  auto start = [&](int slice) {
    if (slice < slices) {
      unsigned char* stage = arena + slice % kStages * stage_bytes;
      const int64_t d0 = static_cast<int64_t>(slice) * kSlice;
      load_slice(rows, kTileRows, depth, d0, stage);
      load_slice(columns, 8 * tiles, depth, d0, stage + kTileRows * kRowBytes);
    }
    simt::cp_async_commit();
  };
  for (int s = 0; s < kStages - 1; ++s) start(s);
#pragma unroll 1
  for (int s = 0; s < slices; ++s) {
    simt::cp_async_wait_group<kStages - 2>();
    simt::sync_block();  // slice s is complete, and slice s - 1 is read to the end
    start(s + kStages - 1);
    const unsigned char* stage = arena + s % kStages * stage_bytes;
    multiply_slice<T>(stage, stage + kTileRows * kRowBytes, wr, wc, tiles, t);
    squares_of_column += column_squares_of<T>(stage + kTileRows * kRowBytes, 8 * tiles);
    if ((s + 1) % (kRestartDepth / kSlice) == 0) {
      PW_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) {
          total[n][i] += t.sums[n][i];
          t.sums[n][i] = 0.0f;
        }
      }
    }
  }
  simt::cp_async_wait_all();
  simt::sync_block();  // the stages are free for z

  const int group = static_cast<int>(simt::lane_id()) / 4,
            quad = static_cast<int>(simt::lane_id()) % 4;
  PW_UNROLL
  for (int n = 0; n < kColumnTiles; ++n) {
    const int tile = wc + 4 * n;
    if (tile < tiles) {
      PW_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * wr + group + 8 * (i / 2);
        z[row * z_step + 8 * tile + 2 * quad + i % 2] = total[n][i] + t.sums[n][i];
      }
    }
  }
  squares_of_column = simt::warp_reduce(squares_of_column, simt::Sum{}, 2);
  if (threadIdx.x % 2 == 0) column_squares[threadIdx.x / 2] = squares_of_column;
  PW_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float squares = simt::warp_reduce(t.row_squares[r], simt::Sum{}, 4);
    if (wc == 0 && quad == 0) row_squares[16 * wr + group + 8 * r] = squares;
  }
  simt::sync_block();
}

}  // namespace
}  // namespace patchword
