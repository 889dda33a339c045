// SPDX-License-Identifier: Apache-2.0
// Where the CUDA matcher keeps its data: computed alike by the binding, which allocates, and by the
// launch code.
#pragma once

#include <cstdint>

#include "kernels/common/portable.h"
#include "kernels/correspondence/correspondence.h"

namespace patchword {

constexpr std::int64_t kMatchTile = 128;       // rows and columns of a tile
constexpr std::int64_t kMatchSliceDepth = 32;  // depth is padded to this
// Sweeps that one call may ask for: each further candidate of top-k costs one.
constexpr std::int64_t kMaxCudaTopK = 8;

// Byte offsets into the workspace. Sides are padded to whole tiles.
struct MatchCudaPlan {
  std::int64_t depth;       // padded
  std::int64_t tiles[2];    // of one pair
  std::int64_t operand[2];  // 16-bit rows: [P][tiles * 128][depth], for float32 high, then low
  std::int64_t low[2];      // elements from high to low
  std::int64_t factor[2];   // float [P][tiles * 128], multiplies the raw product
  std::int64_t term[2];     // float, added; NaN where a row takes no part
  std::int64_t keys[2];     // uint64 [P][tiles * 128], packed best of the current sweep
  std::int64_t limits[2];   // uint64, what the previous sweep found
  std::int64_t sums[2];     // float2 (maximum, sum) [P][tiles of the other side][tiles * 128]
  std::int64_t bytes;
};

PW_PORTABLE MatchCudaPlan match_cuda_plan(std::int64_t pairs, std::int64_t count0,
                                          std::int64_t count1, std::int64_t dim, bool split,
                                          bool sums) {
  MatchCudaPlan plan{};
  plan.depth = (dim + kMatchSliceDepth - 1) / kMatchSliceDepth * kMatchSliceDepth;
  if (plan.depth == 0) plan.depth = kMatchSliceDepth;
  plan.tiles[0] = (count0 + kMatchTile - 1) / kMatchTile;
  plan.tiles[1] = (count1 + kMatchTile - 1) / kMatchTile;
  std::int64_t at = 0;
  for (int side = 0; side < 2; ++side) {
    const std::int64_t rows = pairs * plan.tiles[side] * kMatchTile;  // a multiple of 128
    plan.operand[side] = at;
    plan.low[side] = rows * plan.depth;
    at += rows * plan.depth * (split ? 4 : 2);
    plan.factor[side] = at;
    at += rows * 4;
    plan.term[side] = at;
    at += rows * 4;
    plan.keys[side] = at;
    at += rows * 8;
    plan.limits[side] = at;
    at += rows * 8;
    plan.sums[side] = at;
    if (sums) at += rows * plan.tiles[1 - side] * 8;
  }
  plan.bytes = at;
  return plan;
}

}  // namespace patchword
