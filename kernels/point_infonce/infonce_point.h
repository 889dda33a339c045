// SPDX-License-Identifier: Apache-2.0
// Which map a point reads and where: shared by the CPU levels and the CUDA kernels.
#pragma once

#include "kernels/common/portable.h"
#include "kernels/point_infonce/point_infonce.h"
#include "kernels/sample_features/sample_point.h"

namespace patchword {

// Point j of query t: the query itself, then its keys.
PW_PORTABLE int64_t image_of(const PointInfonceParams& p, int64_t t, int64_t j) {
  if (j == 0) return p.query_images[t * p.query_images_stride];
  return p.key_images[t * p.key_images_stride[0] + (j - 1) * p.key_images_stride[1]];
}

PW_PORTABLE PointTaps taps_of(const PointInfonceParams& p, int64_t t, int64_t j) {
  const bool query = j == 0;
  const float* place =
      query ? p.query_points + t * p.query_points_stride[0]
            : p.key_points + t * p.key_points_stride[0] + (j - 1) * p.key_points_stride[1];
  const float x = place[0];
  const float y = place[query ? p.query_points_stride[1] : p.key_points_stride[2]];
  PointTaps taps;
  taps.x = axis_taps(x, p.scale_x, p.shift_x, p.width, SampleMode::kBilinear, SamplePadding::kZeros,
                     false);
  taps.y = axis_taps(y, p.scale_y, p.shift_y, p.height, SampleMode::kBilinear,
                     SamplePadding::kZeros, false);
  return taps;
}

}  // namespace patchword
