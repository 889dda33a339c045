// SPDX-License-Identifier: Apache-2.0
// Which cells an output coordinate mixes and with which weights, along one axis.
//
// The float32 arithmetic of torch.nn.functional.interpolate with a given size, step by step: one
// rounding per operation (no contraction), shared by the CPU's tables and the CUDA kernels.
#pragma once

#include "kernels/common/portable.h"
#include "kernels/mask_upsample/mask_upsample.h"

namespace patchword {

// Taps of one coordinate: cells first .. first + count - 1, to be clamped to the axis. `first` is
// -1 or less near the low border of a bicubic axis.
struct AxisTaps {
  int32_t first;
  float weight[4];
};

// A product that the compiler may not fuse with the next sum.
PW_PORTABLE float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  volatile float product = a * b;
  return product;
#endif
}

PW_PORTABLE float axis_scale(int64_t in, int64_t out, bool align_corners) {
  if (align_corners) {
    return out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0.0f;
  }
  return static_cast<float>(in) / static_cast<float>(out);
}

// Number of taps: an axis that keeps its size is copied, whatever the mode.
PW_PORTABLE int axis_tap_count(int64_t in, int64_t out, UpsampleMode mode) {
  return in == out ? 1 : mode == UpsampleMode::kBilinear ? 2 : 4;
}

PW_PORTABLE float cubic_near(float x) {  // |x| <= 1, A = -0.75
  return rounded_product(rounded_product(rounded_product(1.25f, x) - 2.25f, x), x) + 1.0f;
}

PW_PORTABLE float cubic_far(float x) {  // 1 < |x| < 2
  const float a = rounded_product(-0.75f, x) + 3.75f;
  return rounded_product(rounded_product(a, x) - 6.0f, x) + 3.0f;
}

PW_PORTABLE AxisTaps axis_taps(int64_t in, int64_t out, float scale, int64_t coordinate,
                                  UpsampleMode mode, bool align_corners) {
  AxisTaps taps{};
  if (in == out) {
    taps.first = static_cast<int32_t>(coordinate);
    taps.weight[0] = 1.0f;
    return taps;
  }
  const bool cubic = mode == UpsampleMode::kBicubic;
  const float o = static_cast<float>(coordinate);
  float position = align_corners ? rounded_product(scale, o)
                                 : rounded_product(scale, o + 0.5f) - 0.5f;
  if (!cubic && position < 0.0f) position = 0.0f;
  int32_t cell = static_cast<int32_t>(position);
  if (static_cast<float>(cell) > position) --cell;  // floor of a negative position
  if (cell > in - 1) cell = static_cast<int32_t>(in - 1);
  float t = position - static_cast<float>(cell);
  t = t < 0.0f ? 0.0f : t > 1.0f ? 1.0f : t;
  if (!cubic) {
    taps.first = cell;
    taps.weight[0] = 1.0f - t;
    taps.weight[1] = t;
    return taps;
  }
  taps.first = cell - 1;
  taps.weight[0] = cubic_far(t + 1.0f);
  taps.weight[1] = cubic_near(t);
  taps.weight[2] = cubic_near(1.0f - t);
  taps.weight[3] = cubic_far((1.0f - t) + 1.0f);
  return taps;
}

PW_PORTABLE int64_t clamp_cell(int64_t cell, int64_t in) {
  return cell < 0 ? 0 : cell < in ? cell : in - 1;
}

}  // namespace patchword
