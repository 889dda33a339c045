// SPDX-License-Identifier: Apache-2.0
// How much work a call is, and the workspace of counts beyond the sorted lists.
#pragma once

#include "kernels/common/portable.h"
#include "kernels/common/threads.h"
#include "kernels/weldon_pool/weldon_pool.h"

namespace patchword {

// Values of one side that the CPU keeps sorted in registers; larger counts are searched for.
constexpr int64_t kWeldonList = 16;
constexpr int64_t kWeldonMostLanes = 16;

PW_PORTABLE bool weldon_searches(const WeldonPoolParams& p) {
  return p.top_count > kWeldonList || p.bottom_count > kWeldonList;
}

PW_PORTABLE int weldon_threads(const WeldonPoolParams& p, int threads) {
  const int64_t rows = p.batch * p.channels;
  const double cell_ns = weldon_searches(p) ? 5.0 : 0.5;
  return useful_threads(
      threads, rows, cell_ns * static_cast<double>(rows) * static_cast<double>(p.height * p.width));
}

}  // namespace patchword
