// SPDX-License-Identifier: Apache-2.0
// Threads and workspace of the CPU form. Each thread owns whole pairs and holds, for one pair, the
// best value per target cell [h * w], the queries' targets [Q] and their dot products [Q].
#pragma once

#include "kernels/common/portable.h"
#include "kernels/common/threads.h"
#include "kernels/match_score/match_score.h"
#include "kernels/match_score/target_cell.h"

namespace patchword {

struct ScorePlan {
  int threads;
  int64_t targets_at, dots_at, thread_bytes, bytes;
};

PW_PORTABLE ScorePlan score_plan(const MatchScoreParams& p, int threads) {
  ScorePlan plan{};
  // One row is a cache miss or two, whatever its length.
  const double rows = static_cast<double>(p.batch) * static_cast<double>(p.queries);
  plan.threads =
      useful_threads(threads, p.batch, rows * (40.0 + 0.1 * static_cast<double>(p.channels)));
  const auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  plan.targets_at = lines(p.height * p.width * 4);
  plan.dots_at = plan.targets_at + lines(p.queries * static_cast<int64_t>(sizeof(Target)));
  plan.thread_bytes = plan.dots_at + lines(p.queries * 4);
  plan.bytes = plan.threads * plan.thread_bytes;
  return plan;
}

}  // namespace patchword
