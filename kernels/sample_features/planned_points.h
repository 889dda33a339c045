// SPDX-License-Identifier: Apache-2.0
// Points sorted by cell on the CPU: which corners of them count, and the sort.
#pragma once

#include "kernels/common/simd.h"
#include "kernels/sample_features/sample_plan.h"
#include "kernels/sample_features/sample_point.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Moves the corners that have weight to the front; returns how many they are.
PW_INLINE int keep_counting(Corners& corners) {
  int n = 0;
  for (int k = 0; k < 4; ++k) {
    if (corners.weight[k] == 0.0f) continue;
    corners.weight[n] = corners.weight[k];
    corners.column[n] = corners.column[k];
    corners.row[n] = corners.row[k];
    ++n;
  }
  return n;
}

// Counting sort of points, stable; afterwards ends[k] is where bucket k ends in `order`.
void sort_points(const PlannedPoint* points, int64_t count, int64_t buckets, uint32_t* ends,
                 uint32_t* order) {
  __builtin_memset(ends, 0, static_cast<size_t>(buckets) * sizeof(uint32_t));
  for (int64_t m = 0; m < count; ++m) ++ends[points[m].bucket];
  uint32_t start = 0;
  for (int64_t k = 0; k < buckets; ++k) {
    const uint32_t here = ends[k];
    ends[k] = start;
    start += here;
  }
  for (int64_t m = 0; m < count; ++m) order[ends[points[m].bucket]++] = static_cast<uint32_t>(m);
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
