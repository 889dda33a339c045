// SPDX-License-Identifier: Apache-2.0
// One pass over all tiles of a pair that asks, per tile, only whether anything changes.
//
// Every row and every column has a limit (its running best, second or k-th best). A tile is
// compared with the limits of its rows and columns: two operations an accumulator. Only when some
// score is above its limit is the tile stored and looked at closely, which happens about (rows +
// columns) x ln(tiles) times in a whole sweep. For level units only.
#pragma once

#include "kernels/correspondence/match_pack.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Bytes of A panels that stay in the L2 cache while the panels of B go by.
constexpr int64_t kRowBlockBytes = 192 * 1024;

#if defined(__AVX512F__)
// Whether any comparison so far was true.
struct AnyAbove {
  __mmask16 bits = 0;
  PW_INLINE void compare(VecF value, VecF limit) {
    bits |= _mm512_cmp_ps_mask(bit_cast<__m512>(value), bit_cast<__m512>(limit), _CMP_GT_OQ);
  }
  PW_INLINE bool found() const { return bits != 0; }
};
#else
struct AnyAbove {
  VecI bits{};
  PW_INLINE void compare(VecF value, VecF limit) { bits |= value > limit; }
  PW_INLINE bool found() const { return any(bits); }
};
#endif

// The packed panels of one pair. B is packed whole, A a block of panels at a time.
struct PackedPair {
  const float* columns;
  int64_t column_panels, depth;
};

inline int64_t row_block_panels(int64_t depth) {
  const int64_t panels = kRowBlockBytes / (depth * kTileRows * static_cast<int64_t>(sizeof(float)));
  return panels < 1 ? 1 : panels;
}

// Scores of `row_panels` packed panels against all columns, in ascending order of columns for every
// row and of rows for every column. `look(values, panel, column_panel)` gets each tile
// [kTileRows][kTileCols] that holds a score above a limit.
template <bool Columns, bool Clamp, typename Look>
PW_INLINE void sweep_tiles(const PackedPair& pair, const float* rows, int64_t row_panels,
                           const float* row_limits, const float* column_limits, Look&& look) {
  for (int64_t j = 0; j < pair.column_panels; ++j) {
    const float* b = pair.columns + j * pair.depth * kTileCols;
    for (int64_t i = 0; i < row_panels; ++i) {
      VecF acc[kTileRows][kTileVectors];
      tile_scores(rows + i * pair.depth * kTileRows, b, pair.depth, acc);
      AnyAbove above;
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const VecF limit = splat(row_limits[i * kTileRows + r]);
#pragma GCC unroll 8
        for (int v = 0; v < kTileVectors; ++v) {
          // NaN stays NaN: it is the second operand.
          if constexpr (Clamp) acc[r][v] = min(VecF{}, acc[r][v]);
          above.compare(acc[r][v], limit);
        }
      }
      if constexpr (Columns) {
#pragma GCC unroll 8
        for (int v = 0; v < kTileVectors; ++v) {
          const VecF limit = load(column_limits + j * kTileCols + v * kLanes);
          VecF best = limit;
#pragma GCC unroll 16
          for (int r = 0; r < kTileRows; ++r) best = max(acc[r][v], best);
          above.compare(best, limit);
        }
      }
      if (above.found()) {
        alignas(64) float values[kTileRows * kTileCols];
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
          for (int v = 0; v < kTileVectors; ++v) {
            store(values + r * kTileCols + v * kLanes, acc[r][v]);
          }
        }
        look(values, i, j);
      }
    }
  }
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
