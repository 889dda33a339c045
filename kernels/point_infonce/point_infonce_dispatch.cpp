// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/point_infonce/infonce_plan.h"
#include "kernels/point_infonce/point_infonce.h"

namespace patchword {

PW_SELECT_TABLE(PointInfonceTable, kPointInfonce, point_infonce_table)

int64_t point_infonce_workspace(const PointInfonceParams& p, int threads, bool backward) {
  return infonce_plan(p, threads, backward).bytes;
}

}  // namespace patchword
