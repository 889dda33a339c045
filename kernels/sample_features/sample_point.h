// SPDX-License-Identifier: Apache-2.0
// Where one point reads and with which weights: shared by the CPU levels and the CUDA kernel.
#pragma once

#include <cstdint>

#include "kernels/common/portable.h"
#include "kernels/sample_features/sample_features.h"

namespace patchword {

// Channels that the CPU transposes at a time when the map is not channels-last: 32 floats a cell
// keep a 56 x 56 block in the L2 cache.
constexpr int kTransposedChannels = 32;

struct Taps {
  int64_t x[2], y[2];  // always inside the map
  float weight[4];     // (y0, x0), (y0, x1), (y1, x0), (y1, x1); 0 for a corner that does not count
};

// Mirrors into [low, high]; half-open intervals of length `span` tile the line.
PW_PORTABLE float reflect(float value, float low, float span) {
  if (span <= 0.0f) return 0.0f;
  float distance = value - low;
  if (distance < 0.0f) distance = -distance;
  const float flips = static_cast<float>(static_cast<int64_t>(distance / span));
  const float rest = distance - flips * span;
  const bool odd = static_cast<int64_t>(flips) % 2 != 0;
  return odd ? low + span - rest : low + rest;
}

PW_PORTABLE float pad_index(float index, int64_t size, SamplePadding padding,
                               bool align_corners) {
  if (padding == SamplePadding::kZeros) return index;
  if (padding == SamplePadding::kReflection) {
    index = align_corners ? reflect(index, 0.0f, static_cast<float>(size - 1))
                          : reflect(index, -0.5f, static_cast<float>(size));
  }
  const float last = static_cast<float>(size - 1);
  if (!(index > 0.0f)) index = 0.0f;
  return index < last ? index : last;
}

// Round half to even, without depending on the rounding mode or the maths library.
PW_PORTABLE float round_half_even(float x) {
  const float magic = 12582912.0f;
  if (!(x > -4194304.0f && x < 4194304.0f)) return x;
  return (x + magic) - magic;
}

// Far-away, infinite and NaN coordinates end up outside with weight 0 (zeros) or on the border.
PW_PORTABLE Taps sample_taps(const SampleFeaturesParams& p, float x, float y) {
  // grid_sample documents NaN as -1 in normalised coordinates, which is the first cell's side; a
  // NaN is therefore read at index -1, the outside neighbour of the first cell.
  float ix = x == x ? x * p.scale_x + p.shift_x : -1.0f;
  float iy = y == y ? y * p.scale_y + p.shift_y : -1.0f;
  ix = pad_index(ix, p.width, p.padding, p.align_corners != 0);
  iy = pad_index(iy, p.height, p.padding, p.align_corners != 0);
  // Two cells beyond the map every weight is 0; clamping there keeps the conversion defined.
  const float limit_x = static_cast<float>(p.width) + 2.0f;
  const float limit_y = static_cast<float>(p.height) + 2.0f;
  ix = ix < -3.0f ? -3.0f : (ix > limit_x ? limit_x : ix);
  iy = iy < -3.0f ? -3.0f : (iy > limit_y ? limit_y : iy);
  if (p.mode == SampleMode::kNearest) {
    ix = round_half_even(ix);
    iy = round_half_even(iy);
  }
  int64_t x0 = static_cast<int64_t>(ix);
  int64_t y0 = static_cast<int64_t>(iy);
  if (static_cast<float>(x0) > ix) --x0;  // floor
  if (static_cast<float>(y0) > iy) --y0;
  const float fx = ix - static_cast<float>(x0);
  const float fy = iy - static_cast<float>(y0);
  const float wx[2] = {x0 >= 0 && x0 < p.width ? 1.0f - fx : 0.0f,
                       x0 + 1 >= 0 && x0 + 1 < p.width ? fx : 0.0f};
  const float wy[2] = {y0 >= 0 && y0 < p.height ? 1.0f - fy : 0.0f,
                       y0 + 1 >= 0 && y0 + 1 < p.height ? fy : 0.0f};
  Taps taps;
  for (int i = 0; i < 2; ++i) {
    const int64_t cx = x0 + i;
    const int64_t cy = y0 + i;
    taps.x[i] = cx < 0 ? 0 : (cx < p.width ? cx : p.width - 1);
    taps.y[i] = cy < 0 ? 0 : (cy < p.height ? cy : p.height - 1);
  }
  for (int i = 0; i < 4; ++i) taps.weight[i] = wy[i / 2] * wx[i % 2];
  return taps;
}

}  // namespace patchword
