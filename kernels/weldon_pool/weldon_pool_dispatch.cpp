// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/weldon_pool/weldon_pool.h"
#include "kernels/weldon_pool/weldon_pool_plan.h"

namespace patchword {

PW_SELECT_TABLE(WeldonPoolTable, kWeldonPool, weldon_pool_table)

int64_t weldon_pool_workspace(const WeldonPoolParams& p, int threads) {
  if (!weldon_searches(p)) return 0;
  const int64_t cells = (p.height * p.width + kWeldonMostLanes - 1) / kWeldonMostLanes;
  return weldon_threads(p, threads) * cells * kWeldonMostLanes * kWeldonMostLanes *
         static_cast<int64_t>(sizeof(int32_t));
}

}  // namespace patchword
