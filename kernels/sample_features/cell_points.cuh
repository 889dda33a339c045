// SPDX-License-Identifier: Apache-2.0
// Backward of reading maps at points on CUDA: what reaches a cell, gathered by a warp.
#pragma once

#include "kernels/common/simt.cuh"
#include "kernels/sample_features/sample_point.h"

namespace patchword {
namespace {

// add(weight, point) for the points that give weight to `cell`, row y and column x of a map, in a
// fixed order: those that begin at the cell, left of it, above it, above left. `order` lists points
// by the cell they begin at, `starts` where each cell's begin; taps_of(point) tells how one reads.
template <class TapsOf, class Add>
PW_DEVICE void visit_points_at(const int64_t* order, const int64_t* starts, int64_t cell,
                               int64_t width, int32_t y, int32_t x, const TapsOf& taps_of,
                               const Add& add) {
  const int lane = static_cast<int>(simt::lane_id());
  for (int corner = 0; corner < 4; ++corner) {
    const int32_t up = corner / 2, left = corner % 2;
    if (y < up || x < left) continue;
    const int64_t base = cell - up * width - left;
    const int64_t end = starts[base + 1];
    for (int64_t i = starts[base]; i < end; i += 32) {
      const int count = static_cast<int>(simt::min<int64_t>(32, end - i));
      int64_t point = 0;
      float weight = 0.0f;
      if (lane < count) {
        point = order[i + lane];
        const PointTaps taps = taps_of(point);
        float along_x = 0.0f, along_y = 0.0f;
        PW_UNROLL
        for (int k = 0; k < 2; ++k) {
          if (taps.x.cell[k] == x) along_x += taps.x.weight[k];
          if (taps.y.cell[k] == y) along_y += taps.y.weight[k];
        }
        weight = along_x * along_y;
      }
      for (int j = 0; j < count; ++j) {
        const float w = simt::shuffle(weight, j);
        const int64_t from = simt::shuffle(point, j);
        if (w != 0.0f) add(w, from);
      }
    }
  }
}

}  // namespace
}  // namespace patchword
