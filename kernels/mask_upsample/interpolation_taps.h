// SPDX-License-Identifier: Apache-2.0
// Which cells an output coordinate mixes and with which weights, along one axis.
//
// The float32 arithmetic of torch.nn.functional.interpolate with a given size, step by step, with
// the multiply-adds fused as torch's builds for AVX2 and CUDA have them: equal to the last bit.
// Shared by the CPU's tables and the CUDA kernels.
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

// a * b + c with one rounding, whatever the instruction set.
PW_PORTABLE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
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
  return fused(fused(1.25f, x, -2.25f) * x, x, 1.0f);
}

PW_PORTABLE float cubic_far(float x) {  // 1 < |x| < 2
  return fused(fused(fused(-0.75f, x, 3.75f), x, -6.0f), x, 3.0f);
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
  float position = align_corners ? scale * o : fused(scale, o + 0.5f, -0.5f);
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

// Whether cells are large enough to look for the classes that can win in them: that costs one look
// at all taps of all classes, as much as about 64 pixels of the plain loop.
PW_PORTABLE bool prunes_cells(int64_t height, int64_t width, int64_t out_height,
                              int64_t out_width) {
  return out_width * out_height >= 64 * width * height && out_width >= 4 * width &&
         out_height >= 2 * height;
}

// Below this magnitude differences and bounds of values cannot overflow.
constexpr float kModerate = 1e37f;
// Rounding of the mixed value, relative to the largest tap (derivation: README.md).
constexpr float kBilinearGuard = 32.0f / 16777216.0f;
constexpr float kBicubicGuard = 256.0f / 16777216.0f;
// A map whose values spread less than this, relative to the largest, is constant up to rounding.
constexpr float kConstantSpan = 4e-6f;

PW_PORTABLE int64_t clamp_cell(int64_t cell, int64_t in) {
  return cell < 0 ? 0 : cell < in ? cell : in - 1;
}

}  // namespace patchword
