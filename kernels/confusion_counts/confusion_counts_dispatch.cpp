// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/confusion_counts/confusion_counts.h"
#include "kernels/confusion_counts/confusion_counts_plan.h"

namespace patchword {

PW_SELECT_TABLE(ConfusionCountsTable, kConfusionCounts, confusion_counts_table)

int64_t confusion_counts_workspace(const ConfusionCountsParams& p, int threads) {
  const ConfusionPlan plan = confusion_plan(p, threads);
  return plan.threads * plan.copies * plan.room * static_cast<int64_t>(sizeof(uint32_t));
}

}  // namespace patchword
