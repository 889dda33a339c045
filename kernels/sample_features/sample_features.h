// SPDX-License-Identifier: Apache-2.0
// Feature maps read at points: the contract shared by the CPU levels, CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

enum class SampleMode : int32_t { kBilinear = 0, kNearest = 1 };
enum class SamplePadding : int32_t { kZeros = 0, kBorder = 1, kReflection = 2 };

// With more cells than this along an axis, float32 points cannot name them all anyway.
constexpr int64_t kSampleMaxSide = int64_t{1} << 24;
// Vectors shorter than this are divided by it when normalised.
constexpr float kSampleNormEpsilon = 1e-12f;

struct SampleFeaturesParams {
  const void* features;  // [B, C, h, w], any strides, dtype `dtype`
  const float* points;   // [B, M, 2], x before y
  void* out;             // [B, M, C], contiguous, dtype `dtype`; not used by the backward
  void* workspace;       // CPU: the bytes that the workspace function asks for
  DType dtype;
  SampleMode mode;
  SamplePadding padding;
  int32_t align_corners;  // only reflection asks: it mirrors at centres or at edges
  int32_t normalize;      // forward: divide each vector by its L2 norm
  int64_t batch, channels, height, width, num_points;
  int64_t features_stride[4];  // b, c, y, x; elements
  int64_t points_stride[3];    // b, point, coordinate; elements
  // Cell index of a coordinate: x * scale + shift, a whole number at a cell's centre.
  double scale_x, shift_x, scale_y, shift_y;
};

struct SampleFeaturesBackwardParams {
  SampleFeaturesParams forward;
  const void* grad_out;    // [B, M, C], contiguous, dtype of the features
  void* grad_features;     // [B, C, h, w], dtype of the features, every element written; or null
  int64_t grad_stride[4];  // b, c, y, x of grad_features
  float* grad_points;      // [B, M, 2], contiguous, every element written; or null
  // CUDA, for grad_features: the points of the whole batch ordered by first cell, equal cells in
  // order of the points, and where each of the B * h * w cells begins (one more entry at the end).
  const int64_t* order;
  const int64_t* starts;
};

// CUDA: the first cell of each point, numbered over the whole batch; what `order` is sorted by.
struct SampleFeaturesCellsParams {
  SampleFeaturesParams forward;
  int64_t* cells;  // [B, M]
};

struct SampleFeaturesTable {
  // Neither allocates. `threads` is what the workspace function was asked with.
  Status (*forward)(const SampleFeaturesParams& params, int threads);
  Status (*backward)(const SampleFeaturesBackwardParams& params, int threads);
};

const SampleFeaturesTable& sample_features_table();
// Bytes of workspace of the CPU functions with these sizes, strides and threads.
int64_t sample_features_workspace(const SampleFeaturesParams& params, int threads);
int64_t sample_features_backward_workspace(const SampleFeaturesParams& params, int threads);

}  // namespace patchword
