// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/folded_heatmap/folded_heatmap.h"
#include "kernels/folded_heatmap/folded_heatmap_plan.h"

namespace patchword {

PW_SELECT_TABLE(FoldedHeatmapTable, kFoldedHeatmap, folded_heatmap_table)

int64_t fold_units_workspace(const FoldUnitsParams& p, int threads) {
  return (2 * p.texts * p.top + fold_threads(p, threads) * p.units) *
         static_cast<int64_t>(sizeof(float));
}

int64_t folded_heatmap_workspace(const FoldedHeatmapParams& p, int threads) {
  return (packed_texts(p) + heat_threads(p, threads) * packed_cells(p)) *
             static_cast<int64_t>(sizeof(float)) +
         64;
}

}  // namespace patchword
