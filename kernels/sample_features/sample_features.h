// SPDX-License-Identifier: Apache-2.0
// Feature maps read at points: the contract shared by the CPU levels, CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

enum class SampleMode : int32_t { kBilinear = 0, kNearest = 1 };
enum class SamplePadding : int32_t { kZeros = 0, kBorder = 1, kReflection = 2 };

struct SampleFeaturesParams {
  const void* features;  // [B, C, h, w], any strides, dtype `dtype`
  const float* points;   // [B, M, 2], x before y
  void* out;             // [B, M, C], contiguous, dtype `dtype`
  void* workspace;       // CPU: sample_features_workspace bytes
  DType dtype;
  SampleMode mode;
  SamplePadding padding;
  int32_t align_corners;  // only reflection asks: it mirrors at centres or at edges
  int64_t batch, channels, height, width, num_points;
  int64_t features_stride[4];  // b, c, y, x; elements
  int64_t points_stride[3];    // b, point, coordinate; elements
  // Cell index of a coordinate: x * scale + shift, a whole number at a cell's centre.
  float scale_x, shift_x, scale_y, shift_y;
};

struct SampleFeaturesTable {
  // Writes every element of out. Never allocates.
  Status (*forward)(const SampleFeaturesParams& params, int threads);
};

const SampleFeaturesTable& sample_features_table();
// Bytes of workspace that `forward` needs with these sizes, strides and threads.
int64_t sample_features_workspace(const SampleFeaturesParams& params, int threads);

}  // namespace patchword
