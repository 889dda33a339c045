// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/pamr/pamr.h"
#include "kernels/pamr/pamr_plan.h"

namespace patchword {

PW_SELECT_TABLE(PamrTable, kPamr, pamr_table)

int64_t pamr_workspace(const PamrParams& p, int threads) {
  const PamrPlan plan = pamr_plan(p, threads);
  return plan.workers * plan.floats * static_cast<int64_t>(sizeof(float)) + 64;
}

int64_t pamr_cuda_workspace(const PamrParams& p) {
  const int64_t pixels = p.height * p.width;
  const int64_t weights = p.batch * kPamrRing * p.dilation_count * pixels;
  return (weights + p.batch * p.channels * pixels) * static_cast<int64_t>(sizeof(float));
}

}  // namespace patchword
