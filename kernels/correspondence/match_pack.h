// SPDX-License-Identifier: Apache-2.0
// Descriptors into the panels of gemm_tile.h: transposed in registers, converted, normalised, with
// the additive terms of a score as two more elements of depth. For level units only.
#pragma once

#include "kernels/common/gemm_tile.h"
#include "kernels/correspondence/correspondence.h"

namespace patchword {
namespace PW_LEVEL {

// Sequential float32 sums restart at this depth, which keeps their error far below the contract's
// 2e-6 up to 4096 elements of one sign.
constexpr int64_t kDepthRestart = 512;

namespace {

// lanes[i][j] becomes lanes[j][i]: log2 rounds of interleaving the two halves.
PW_INLINE void transpose_lanes(VecF (&lanes)[kLanes]) {
  VecI low{}, high{};
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    VecF next[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = __builtin_shuffle(lanes[i], lanes[i + kLanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(lanes[i], lanes[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) lanes[i] = next[i];
  }
}

}  // namespace

// What a row that takes no part is packed as: NaN can win no comparison, and a sum masks it anyway.
enum class Excluded { kNaN, kZero };

// One side of one pair, and how its rows are to be packed.
struct PackPlan {
  const MatchSide* side;
  int64_t pair, count, dim, depth;  // depth: dim, plus 2 with additive terms, at least 1
  MatchMetric metric;
  float scale;      // on this side
  bool terms;       // whether `depth` holds the two additive elements
  bool first_side;  // which of the two holds its own term first
  Excluded excluded;

  bool takes_part(int64_t row) const {
    return row < count &&
           (side->valid == nullptr ||
            side->valid[pair * side->valid_stride[0] + row * side->valid_stride[1]] != 0);
  }
};

namespace {

inline int64_t length_of(const MatchSide& side, int64_t pair) {
  if (side.lengths == nullptr) return side.count;
  const int64_t length = side.lengths[pair];
  return length < 0 ? 0 : (length < side.count ? length : side.count);
}

inline PackPlan plan_side(const MatchParams& p, int64_t pair, bool first_side, float scale,
                          Excluded excluded) {
  PackPlan plan{};
  plan.side = first_side ? &p.side0 : &p.side1;
  plan.pair = pair;
  plan.count = length_of(*plan.side, pair);
  plan.dim = p.dim;
  plan.metric = p.metric;
  plan.terms = p.metric == MatchMetric::kL2 || p.side0.bias != nullptr || p.side1.bias != nullptr;
  plan.depth = p.dim + (plan.terms ? 2 : 0);
  if (plan.depth == 0) plan.depth = 1;
  plan.scale = first_side ? (p.metric == MatchMetric::kL2 ? 2.0f * scale : scale) : 1.0f;
  plan.first_side = first_side;
  plan.excluded = excluded;
  return plan;
}

}  // namespace

// Packs rows [row0, row0 + width) of the plan's side into panel[depth][width], width being
// kTileRows for the first side and kTileCols for the second. usable[i] (may be null) becomes all
// ones when row i takes part and holds no NaN, else 0. Null for an element type that has no
// packing.
typedef void (*PackFunction)(const PackPlan& plan, int64_t row0, float* panel, int32_t* usable);
// The same rows, cosines only, divided by their norm and row-major; unusable ones are 0.
typedef void (*UnitRowsFunction)(const PackPlan& plan, int64_t row0, int64_t count, int64_t padded,
                                 float* rows, int32_t* usable);
struct PackFunctions {
  PackFunction rows, columns;
  UnitRowsFunction unit_rows;
};
PackFunctions match_pack_functions(DType dtype);

namespace {

// acc[i][v] = score of row i and the columns of vector v.
template <int Rows, int Vectors>
PW_INLINE void tile_scores(const float* __restrict__ a, const float* __restrict__ b, int64_t depth,
                           VecF (&acc)[Rows][Vectors]) {
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) acc[i][v] = VecF{};
  }
  product_tile(a, b, depth < kDepthRestart ? depth : kDepthRestart, acc);
  if (__builtin_expect(depth > kDepthRestart, 0)) {
    VecF total[Rows][Vectors];
    for (int i = 0; i < Rows; ++i) {
      for (int v = 0; v < Vectors; ++v) total[i][v] = acc[i][v];
    }
    for (int64_t d = kDepthRestart; d < depth; d += kDepthRestart) {
      for (int i = 0; i < Rows; ++i) {
        for (int v = 0; v < Vectors; ++v) acc[i][v] = VecF{};
      }
      product_tile(a + d * Rows, b + d * Vectors * kLanes,
                   depth - d < kDepthRestart ? depth - d : kDepthRestart, acc);
      for (int i = 0; i < Rows; ++i) {
        for (int v = 0; v < Vectors; ++v) total[i][v] = total[i][v] + acc[i][v];
      }
    }
    for (int i = 0; i < Rows; ++i) {
      for (int v = 0; v < Vectors; ++v) acc[i][v] = total[i][v];
    }
  }
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
