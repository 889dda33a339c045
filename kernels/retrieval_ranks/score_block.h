// SPDX-License-Identifier: Apache-2.0
// A block of scores, blocked along the depth so that panels stay in cache. For level units only.
//
// A score depends on its two rows alone, not on where it stands in a block: every one is made by
// multiply_tile, kDepthBlock elements at a time, the pieces added in order. So a true score that is
// worked out on its own equals, bit for bit, the one that a sweep meets.
#pragma once

#include "kernels/common/gemm_tile.h"
#include "kernels/common/transpose.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

constexpr int64_t kDepthBlock = 256;
constexpr int64_t kRowBlock = 96;      // its panels of one depth block take 96 KB of L2
constexpr int64_t kColumnBlock = 512;  // its scores with a row block take 192 KB
constexpr int64_t kPackWidth = panel_count(kTileRows, kLanes) * kLanes;

static_assert(kRowBlock % kTileRows == 0 && kColumnBlock % kTileCols == 0);

inline int64_t depth_blocks(int64_t depth) {
  const int64_t blocks = panel_count(depth, kDepthBlock);
  return blocks < 1 ? 1 : blocks;
}
inline int64_t block_depth(int64_t depth, int64_t block) {
  const int64_t left = depth - block * kDepthBlock;
  return left < kDepthBlock ? left : kDepthBlock;
}

// A matrix [count, depth] of Element with any strides.
template <typename Element>
struct MatrixRows {
  const typename Element::Storage* data;
  int64_t row_stride, column_stride, count, depth;
};

// `out` gets [depth][kTileRows] of rows [row0, row0 + kTileRows), missing ones 0.
template <typename Element>
void pack_row_panel(const MatrixRows<Element>& m, int64_t row0, int64_t d0, int64_t depth,
                    float* scratch, float* out) {
  for (int64_t at = 0; at < kPackWidth; at += kLanes) {
    int64_t n = m.count - row0 - at;
    n = n < 0 ? 0 : (n < kLanes ? n : kLanes);
    pack_lanes<Element>(m.data + (n > 0 ? (row0 + at) * m.row_stride : 0) + d0 * m.column_stride,
                        m.row_stride, m.column_stride, static_cast<int>(n), depth, kPackWidth,
                        scratch + at);
  }
  for (int64_t d = 0; d < depth; ++d) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) out[d * kTileRows + i] = scratch[d * kPackWidth + i];
  }
}

// `out` gets [depth][kTileCols] of rows [row0, row0 + kTileCols), missing ones 0.
template <typename Element>
void pack_column_panel(const MatrixRows<Element>& m, int64_t row0, int64_t d0, int64_t depth,
                       float* out) {
  for (int64_t at = 0; at < kTileCols; at += kLanes) {
    int64_t n = m.count - row0 - at;
    n = n < 0 ? 0 : (n < kLanes ? n : kLanes);
    pack_lanes<Element>(m.data + (n > 0 ? (row0 + at) * m.row_stride : 0) + d0 * m.column_stride,
                        m.row_stride, m.column_stride, static_cast<int>(n), depth, kTileCols,
                        out + at);
  }
}

// Elements [d, d + n) of kLanes rows, one per lane.
template <typename Element>
PW_INLINE void load_named(const typename Element::Storage* const* rows, int64_t column_stride,
                          int64_t d, int n, VecF (&lanes)[kLanes]) {
  if (column_stride == 1 && n == kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) lanes[i] = Element::load(rows[i] + d);
  } else {
    for (int i = 0; i < kLanes; ++i) lanes[i] = load_row<Element>(rows[i], column_stride, d, n);
  }
  transpose(lanes);
}

// `out` gets [depth][kTileCols] of single rows.
template <typename Element>
void pack_named_columns(const MatrixRows<Element>& m, const int64_t* rows, int64_t d0,
                        int64_t depth, float* out) {
  const typename Element::Storage* named[kTileCols];
  for (int c = 0; c < kTileCols; ++c) {
    named[c] = m.data + rows[c] * m.row_stride + d0 * m.column_stride;
  }
  for (int64_t d = 0; d < depth; d += kLanes) {
    const int n = depth - d < kLanes ? static_cast<int>(depth - d) : kLanes;
    for (int v = 0; v < kTileVectors; ++v) {
      VecF lanes[kLanes];
      load_named<Element>(named + v * kLanes, m.column_stride, d, n, lanes);
      for (int j = 0; j < n; ++j) store(out + (d + j) * kTileCols + v * kLanes, lanes[j]);
    }
  }
}

// out[r][c] (+)= products of the two panels. Never inlined: one code for every score.
__attribute__((noinline)) void multiply_tile(const float* a, const float* b, int64_t depth,
                                             bool first, float* out, int64_t pitch) {
  VecF acc[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) acc[i][v] = VecF{};
  }
  product_tile(a, b, depth, acc);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) {
      float* const at = out + i * pitch + v * kLanes;
      store(at, first ? acc[i][v] : load(at) + acc[i][v]);
    }
  }
}

// Row `index` of m as `depth` floats.
template <typename Element>
void widen_row(const MatrixRows<Element>& m, int64_t index, float* out) {
  const typename Element::Storage* const row = m.data + index * m.row_stride;
  for (int64_t d = 0; d < m.depth; d += kLanes) {
    const int n = m.depth - d < kLanes ? static_cast<int>(m.depth - d) : kLanes;
    const VecF values = load_row<Element>(row, m.column_stride, d, n);
    if (n == kLanes) {
      store(out + d, values);
    } else {
      store_tail<Float32>(out + d, values, n);
    }
  }
}

// More rows go by at once than the processor follows by itself: they are asked for this many
// elements ahead, a cache line at a time.
constexpr int64_t kAhead = 64, kLine = 16;

// Scores of a row of `depth` floats with Vectors * kLanes other rows: every one by the same
// operations in the same order as in multiply_tile.
template <int Vectors, typename Element>
__attribute__((noinline)) void multiply_named(const float* row, int64_t depth,
                                              const typename Element::Storage* const* named,
                                              int64_t column_stride, float* out) {
  VecF total[Vectors];
  for (int64_t k = 0; k < depth_blocks(depth); ++k) {
    const int64_t end = k * kDepthBlock + block_depth(depth, k);
    VecF acc[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[v] = VecF{};
    for (int64_t d = k * kDepthBlock; d < end; d += kLanes) {
      const int n = end - d < kLanes ? static_cast<int>(end - d) : kLanes;
      if (d % kLine == 0 && d + kAhead < depth) {
        for (int i = 0; i < Vectors * kLanes; ++i) {
          __builtin_prefetch(named[i] + (d + kAhead) * column_stride);
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        VecF lanes[kLanes];
        load_named<Element>(named + v * kLanes, column_stride, d, n, lanes);
        if (n == kLanes) {
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) acc[v] = fma(splat(row[d + j]), lanes[j], acc[v]);
        } else {
          for (int j = 0; j < n; ++j) acc[v] = fma(splat(row[d + j]), lanes[j], acc[v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) total[v] = k == 0 ? acc[v] : total[v] + acc[v];
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) store(out + v * kLanes, total[v]);
}

// Scores of a row of floats with rows first + listed[i] of m; `out` has room for kListed more.
constexpr int64_t kListed = 4 * kLanes;

template <typename Element>
void multiply_listed(const float* row, const MatrixRows<Element>& m, int64_t first,
                     const uint16_t* listed, int64_t count, float* out) {
  for (int64_t at = 0; at < count; at += kListed) {
    const int64_t left = count - at < kListed ? count - at : kListed;
    const typename Element::Storage* named[kListed];
    for (int64_t i = 0; i < kListed; ++i) {
      named[i] = m.data + (first + listed[i < left ? at + i : at]) * m.row_stride;
    }
    const int64_t vectors = panel_count(left, kLanes);
    const auto run = vectors == 1   ? &multiply_named<1, Element>
                     : vectors == 2 ? &multiply_named<2, Element>
                     : vectors == 3 ? &multiply_named<3, Element>
                                    : &multiply_named<4, Element>;
    run(row, m.depth, named, m.column_stride, out + at);
  }
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
