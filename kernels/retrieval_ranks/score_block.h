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

// The same of single rows, one per lane; a negative index gives 0.
template <typename Element>
void pack_named_columns(const MatrixRows<Element>& m, const int64_t* rows, int64_t d0,
                        int64_t depth, float* out) {
  for (int64_t c = 0; c < kTileCols; ++c) {
    const typename Element::Storage* row =
        m.data + (rows[c] < 0 ? 0 : rows[c] * m.row_stride) + d0 * m.column_stride;
    for (int64_t d = 0; d < depth; d += kLanes) {
      const int n = depth - d < kLanes ? static_cast<int>(depth - d) : kLanes;
      const VecF values = rows[c] < 0 ? VecF{} : load_row<Element>(row, m.column_stride, d, n);
      for (int i = 0; i < n; ++i) out[(d + i) * kTileCols + c] = values[i];
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

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
