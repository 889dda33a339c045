// SPDX-License-Identifier: Apache-2.0
// How the CPU visits many points: sorted by cell, each map row transposed once. README.md says why.
#pragma once

#include <cstdint>

#include "kernels/common/portable.h"
#include "kernels/common/threads.h"
#include "kernels/sample_features/sample_features.h"

namespace patchword {

// A point with the corners that count (sample_point.h) and where it sorts to.
struct PlannedPoint {
  float weight[4];
  int32_t column[4];
  uint8_t row[4];
  int32_t count;
  uint32_t bucket;
};

// Channels of grad_features that one task adds up in float32: 32 keep a 56 x 56 map in L2.
constexpr int64_t kGradientBlock = 32;

// Sizes of the plan and of the workspace, which holds: points [B, M], ends [B, buckets],
// order [B, M], then per thread a panel of two map rows and one vector of C floats.
struct SamplePlan {
  bool sorted;           // else every point is read on its own, without a plan
  int threads;           // worth using for this much work
  int32_t shift;         // columns per bucket, as a power of two
  int64_t row_buckets;   // per map row
  int64_t buckets;       // per image
  int64_t block;         // channels of a panel
  int64_t panel_floats;  // per thread; 0 when channels are contiguous in the map
  int64_t points_at, ends_at, order_at, panels_at, vectors_at, bytes;
};

PW_PORTABLE int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

PW_PORTABLE SamplePlan sample_plan(const SampleFeaturesParams& p, int threads) {
  SamplePlan plan{};
  const int64_t total = p.batch * p.num_points;
  // About 0.1 ns per channel and corner once the map is in cache.
  plan.threads = useful_threads(threads, total, 0.5 * static_cast<double>(total * p.channels));
  // Sorting pays once vectors are long enough and rows are shared by several points.
  plan.sorted = p.channels >= 16 && p.num_points >= 64 && p.num_points >= 2 * p.height &&
                p.num_points < (int64_t{1} << 31);
  const bool planar = p.features_stride[1] != 1;
  int64_t at = 0;
  if (plan.sorted) {
    // No more than a few buckets per point, so that clearing them stays cheap.
    while ((p.height * (((p.width - 1) >> plan.shift) + 1)) > 4 * p.num_points &&
           (p.width >> plan.shift) > 0) {
      ++plan.shift;
    }
    plan.row_buckets = ((p.width - 1) >> plan.shift) + 1;
    plan.buckets = p.height * plan.row_buckets;
    // Two rows in half of a 512 KB L2 cache; normalising needs all channels of a point at once.
    int64_t block = (int64_t{256} << 10) / (2 * p.width * static_cast<int64_t>(sizeof(float)));
    block = block / 32 * 32;
    if (block < 32) block = 32;
    plan.block = p.normalize || !planar || block > p.channels ? p.channels : block;
    plan.panel_floats = planar ? 2 * p.width * round_up(plan.block, 16) : 0;
    plan.points_at = at;
    at = round_up(at + total * static_cast<int64_t>(sizeof(PlannedPoint)), 64);
    plan.ends_at = at;
    at = round_up(at + p.batch * plan.buckets * 4, 64);
    plan.order_at = at;
    at = round_up(at + total * 4, 64);
    plan.panels_at = at;
    at = round_up(at + plan.threads * plan.panel_floats * 4, 64);
  }
  plan.vectors_at = at;
  if (p.normalize) at += plan.threads * round_up(p.channels, 16) * 4;
  plan.bytes = at;
  return plan;
}

// Workspace of the gradient of the features: points [B, M], then a block of cells per thread.
struct GradientPlan {
  int threads;
  int64_t blocks;        // of channels
  int64_t block_floats;  // per thread
  int64_t cells_at, bytes;
};

PW_PORTABLE GradientPlan gradient_plan(const SampleFeaturesParams& p, int threads) {
  GradientPlan plan{};
  const int64_t total = p.batch * p.num_points;
  plan.blocks = (p.channels + kGradientBlock - 1) / kGradientBlock;
  plan.threads = useful_threads(threads, p.batch * plan.blocks,
                                static_cast<double>((total + p.height * p.width) * p.channels));
  plan.block_floats = p.height * p.width * kGradientBlock;
  plan.cells_at = round_up(total * static_cast<int64_t>(sizeof(PlannedPoint)), 64);
  plan.bytes = plan.cells_at + plan.threads * plan.block_floats * 4;
  return plan;
}

}  // namespace patchword
