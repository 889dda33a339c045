// SPDX-License-Identifier: Apache-2.0
// Threads worth using, and where things lie in the workspace.
#pragma once

#include "kernels/common/portable.h"
#include "kernels/common/threads.h"
#include "kernels/folded_heatmap/folded_heatmap.h"

namespace patchword {

// Widest tile of any CPU level: rows are texts, columns are cells.
constexpr int64_t kHeatMostRows = 12;
constexpr int64_t kHeatMostColumns = 32;

// Chosen units of every text, in rising order, and the weights that they are added with.
struct UnitLists {
  int32_t* units;
  float* weights;
};

PW_PORTABLE UnitLists unit_lists(const FoldUnitsParams& p) {
  int32_t* units = static_cast<int32_t*>(p.workspace);
  return {units, reinterpret_cast<float*>(units + p.texts * p.top)};
}

PW_PORTABLE int fold_threads(const FoldUnitsParams& p, int threads) {
  const double work = static_cast<double>(p.texts) *
                      (static_cast<double>(p.top * p.channels) * 0.1 + 2.0 * p.units);
  const int64_t tasks = p.texts > p.channels / 64 ? p.texts : p.channels / 64;
  return useful_threads(threads, tasks, work);
}

PW_PORTABLE int heat_threads(const FoldedHeatmapParams& p, int threads) {
  const int64_t cells = p.height * p.width;
  return useful_threads(
      threads, p.batch * cells,
      0.05 * static_cast<double>(p.batch * cells) * static_cast<double>(p.channels * p.texts));
}

// Floats of the packed texts of all images, and of one thread's packed cells.
PW_PORTABLE int64_t packed_texts(const FoldedHeatmapParams& p) {
  const int64_t sets = p.folded_stride == 0 ? 1 : p.batch;
  return sets * (p.texts + kHeatMostRows) * p.channels;
}
PW_PORTABLE int64_t packed_cells(const FoldedHeatmapParams& p) {
  return (p.channels * kHeatMostColumns + 15) / 16 * 16;
}

}  // namespace patchword
