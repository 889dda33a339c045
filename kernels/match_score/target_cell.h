// SPDX-License-Identifier: Apache-2.0
// Where one query cell is found and what it weighs: shared by the CPU levels and the CUDA kernel.
#pragma once

#include "kernels/common/portable.h"
#include "kernels/match_score/match_score.h"
#include "kernels/sample_features/sample_point.h"

namespace patchword {

struct Target {
  int32_t cell;  // row-major
  float weight;  // 0 when the query takes no part
};

// A place times a size is worked out in float32, as the definition says: on the border between two
// cells its rounding decides.
PW_PORTABLE int32_t cell_along(float place, int64_t size, CellRounding rounding) {
  const float last = static_cast<float>(size - 1);
  const float scaled =
      rounding == CellRounding::kCell ? place * static_cast<float>(size) : place * last;
  if (!(scaled > 0.0f)) return 0;
  if (!(scaled < last)) return static_cast<int32_t>(size - 1);
  return static_cast<int32_t>(rounding == CellRounding::kCell ? floor_index(scaled)
                                                              : round_index(scaled));
}

PW_PORTABLE Target target_of(const MatchScoreParams& p, int64_t b, int64_t q) {
  const float* point = p.points + b * p.points_stride[0] + q * p.points_stride[1];
  const float x = point[0];
  const float y = point[p.points_stride[2]];
  Target target;
  target.weight = p.weights[b * p.weights_stride[0] + q * p.weights_stride[1]];
  if (x != x || y != y || target.weight != target.weight) {
    target.cell = 0;
    target.weight = 0.0f;
    return target;
  }
  target.cell = cell_along(y, p.height, p.rounding) * static_cast<int32_t>(p.width) +
                cell_along(x, p.width, p.rounding);
  if (p.mask == nullptr || target.weight == 0.0f) return target;
  const AxisTaps across = axis_taps(x, static_cast<double>(p.width), -0.5, p.width,
                                    SampleMode::kBilinear, SamplePadding::kZeros, false);
  const AxisTaps down = axis_taps(y, static_cast<double>(p.height), -0.5, p.height,
                                  SampleMode::kBilinear, SamplePadding::kZeros, false);
  float seen = 0.0f;
  for (int k = 0; k < 4; ++k) {
    const float share = down.weight[k / 2] * across.weight[k % 2];
    // A corner without weight may hold NaN.
    if (share == 0.0f) continue;
    seen += share * p.mask[b * p.mask_stride[0] + down.cell[k / 2] * p.mask_stride[1] +
                           across.cell[k % 2] * p.mask_stride[2]];
  }
  target.weight *= seen;
  if (target.weight != target.weight) target.weight = 0.0f;
  return target;
}

}  // namespace patchword
