// SPDX-License-Identifier: Apache-2.0
// Sizes of the CPU kernels: threads, channel blocks, workspace. README.md says why.
#pragma once

#include <cstdint>

#include "kernels/common/portable.h"
#include "kernels/common/threads.h"
#include "kernels/point_infonce/point_infonce.h"
#include "kernels/sample_features/sample_plan.h"

namespace patchword {

// Channels whose sampled vectors exist at a time.
constexpr int64_t kInfonceBlock = 32;
// What walking down one map row costs, in points.
constexpr int64_t kInfonceRowCost = 32;

struct InfoncePlan {
  int threads;
  int64_t points;       // T (1 + keys)
  int64_t rows;         // B h
  int64_t panel_bytes;  // per thread: two map rows [w, kInfonceBlock] and a flag for each column
  int64_t points_at, ends_at, order_at, vectors_at, weights_at, pulls_at, panels_at, bytes;
};

PW_PORTABLE InfoncePlan infonce_plan(const PointInfonceParams& p, int threads, bool backward) {
  InfoncePlan plan{};
  plan.points = p.queries * (1 + p.keys);
  plan.rows = p.batch * p.height;
  const double work = static_cast<double>(plan.points + (backward ? plan.rows * p.width / 4 : 0));
  plan.threads = useful_threads(threads, plan.rows, work * static_cast<double>(p.channels));
  plan.panel_bytes = round_up(2 * p.width * (kInfonceBlock * 4 + 1), 64);
  int64_t at = 0;
  plan.points_at = at;
  at = round_up(at + plan.points * static_cast<int64_t>(sizeof(PlannedPoint)), 64);
  plan.ends_at = at;
  at = round_up(at + plan.rows * 4, 64);
  plan.order_at = at;
  at = round_up(at + plan.points * 4, 64);
  plan.vectors_at = at;
  at += plan.points * kInfonceBlock * 4;
  if (backward) {
    plan.weights_at = at;
    at = round_up(at + plan.points * 4, 64);
    plan.pulls_at = at;
    at = round_up(at + plan.points * 4, 64);
  }
  plan.panels_at = at;
  plan.bytes = at + plan.threads * plan.panel_bytes;
  return plan;
}

}  // namespace patchword
