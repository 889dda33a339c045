// SPDX-License-Identifier: Apache-2.0
// Where one point reads and with which weights: shared by the CPU levels and the CUDA kernels.
//
// The cell index is worked out in float64: in float32 its rounding alone would cost more than the
// accuracy contract allows from 32 cells on.
#pragma once

#include <cstdint>

#include "kernels/common/portable.h"
#include "kernels/sample_features/sample_features.h"

namespace patchword {

// One axis of a point: two neighbouring cells, clamped into the map.
struct AxisTaps {
  int32_t cell[2];
  float weight[2];  // 0 for a cell that does not count
  float inside[2];  // 1 where the cell counts when it gets weight, else 0
  float slope;      // d index / d coordinate; 0 where padding or rounding holds the index still
};

// Mirrors into [low, low + span]; `slope` changes sign with every reflection.
PW_PORTABLE double reflect(double value, double low, double span, float* slope) {
  if (span <= 0.0) {
    *slope = 0.0f;
    return 0.0;
  }
  double distance = value - low;
  if (distance < 0.0) {
    distance = -distance;
    *slope = -*slope;
  }
  // Beyond 2^53 flips parity is meaningless; keeping the quotient small keeps it defined.
  const double quotient = distance / span;
  if (!(quotient < 9007199254740992.0)) {
    *slope = 0.0f;
    return low;
  }
  const int64_t flips = static_cast<int64_t>(quotient);
  const double rest = distance - static_cast<double>(flips) * span;
  if (flips % 2 == 0) return low + rest;
  *slope = -*slope;
  return low + span - rest;
}

PW_PORTABLE double floor_index(double x) {  // |x| is below 2^31
  const int32_t cut = static_cast<int32_t>(x);
  return static_cast<double>(cut) > x ? cut - 1 : cut;
}

// Half to even, whatever the rounding mode and without a maths library.
PW_PORTABLE double round_index(double x) {
  const double below = floor_index(x);
  const double rest = x - below;
  if (rest != 0.5) return rest < 0.5 ? below : below + 1.0;
  return static_cast<int32_t>(below) % 2 == 0 ? below : below + 1.0;
}

PW_PORTABLE AxisTaps axis_taps(float coordinate, double scale, double shift, int64_t size,
                               SampleMode mode, SamplePadding padding, bool align_corners) {
  AxisTaps taps;
  taps.slope = static_cast<float>(scale);
  // NaN is read one cell before the first, as grid_sample documents.
  double index = coordinate == coordinate ? coordinate * scale + shift : -1.0;
  if (coordinate != coordinate) taps.slope = 0.0f;
  const double last = static_cast<double>(size - 1);
  if (padding != SamplePadding::kZeros) {
    if (padding == SamplePadding::kReflection) {
      index = align_corners ? reflect(index, 0.0, last, &taps.slope)
                            : reflect(index, -0.5, last + 1.0, &taps.slope);
    }
    if (!(index > 0.0 && index < last)) taps.slope = 0.0f;
    index = index > 0.0 ? (index < last ? index : last) : 0.0;
  } else {
    // Two cells beyond the map every weight is 0; staying there keeps conversions defined.
    index = index > -3.0 ? (index < last + 3.0 ? index : last + 3.0) : -3.0;
  }
  if (mode == SampleMode::kNearest) {
    index = round_index(index);
    taps.slope = 0.0f;
  }
  const double first = floor_index(index);
  const int32_t x0 = static_cast<int32_t>(first);
  const int32_t n = static_cast<int32_t>(size);
  const float fraction = static_cast<float>(index - first);
  taps.inside[0] = x0 >= 0 && x0 < n ? 1.0f : 0.0f;
  taps.inside[1] = x0 >= -1 && x0 < n - 1 ? 1.0f : 0.0f;
  taps.weight[0] = (1.0f - fraction) * taps.inside[0];
  taps.weight[1] = fraction * taps.inside[1];
  taps.cell[0] = x0 < 0 ? 0 : (x0 < n ? x0 : n - 1);
  taps.cell[1] = x0 < -1 ? 0 : (x0 < n - 1 ? x0 + 1 : n - 1);
  return taps;
}

struct PointTaps {
  AxisTaps x, y;
};

PW_PORTABLE PointTaps point_taps(const SampleFeaturesParams& p, int64_t b, int64_t m) {
  const float* point = p.points + b * p.points_stride[0] + m * p.points_stride[1];
  const bool corners = p.align_corners != 0;
  PointTaps taps;
  taps.x = axis_taps(point[0], p.scale_x, p.shift_x, p.width, p.mode, p.padding, corners);
  taps.y = axis_taps(point[p.points_stride[2]], p.scale_y, p.shift_y, p.height, p.mode, p.padding,
                     corners);
  return taps;
}

// The four corners (y0 x0, y0 x1, y1 x0, y1 x1). One without weight must not be read: it may hold
// NaN or infinity, and 0 times those is not 0.
struct Corners {
  float weight[4];
  int32_t column[4];
  uint8_t row[4];  // map rows below y.cell[0]: 0 or 1
};

PW_PORTABLE Corners corners_of(const PointTaps& taps) {
  Corners corners;
  for (int k = 0; k < 4; ++k) {
    corners.weight[k] = taps.y.weight[k / 2] * taps.x.weight[k % 2];
    corners.column[k] = taps.x.cell[k % 2];
    corners.row[k] = taps.y.cell[k / 2] == taps.y.cell[0] ? 0 : 1;
  }
  return corners;
}

// Gradient of one point from `dots`, the products of grad_out with the four corners' vectors.
PW_PORTABLE void point_gradient(const PointTaps& taps, const float (&dots)[4], float* grad) {
  float d[4];
  for (int k = 0; k < 4; ++k) {
    d[k] = taps.y.inside[k / 2] * taps.x.inside[k % 2] != 0.0f ? dots[k] : 0.0f;
  }
  const float along_x = (d[1] - d[0]) * taps.y.weight[0] + (d[3] - d[2]) * taps.y.weight[1];
  const float along_y = (d[2] - d[0]) * taps.x.weight[0] + (d[3] - d[1]) * taps.x.weight[1];
  grad[0] = taps.x.slope == 0.0f ? 0.0f : taps.x.slope * along_x;
  grad[1] = taps.y.slope == 0.0f ? 0.0f : taps.y.slope * along_y;
}

}  // namespace patchword
