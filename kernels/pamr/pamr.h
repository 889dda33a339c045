// SPDX-License-Identifier: Apache-2.0
// Pixel-adaptive mask refinement: the contract shared by the CPU levels, CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

// Neighbours per dilation, and the most dilations that a call may name.
constexpr int kPamrRing = 8;
constexpr int kPamrMostDilations = 16;
// A neighbour's distance counts in units of this times the local standard deviation, plus epsilon.
constexpr float kPamrSpread = 0.1f;
constexpr float kPamrEpsilon = 1e-8f;

struct PamrParams {
  const float* image;   // [B, K, h, w], any strides
  const float* masks;   // [B, C, h, w], any strides
  const uint8_t* live;  // [B, C] contiguous, not 0 = refine; null = all. Others come out as 0.
  float* out;           // [B, C, h, w], contiguous
  void* workspace;      // the bytes that the workspace function of the device asks for
  int64_t batch, colours, channels, height, width;
  int64_t image_stride[4];  // b, k, y, x; elements
  int64_t masks_stride[4];  // b, c, y, x; elements
  int32_t iterations;
  int32_t dilation_count;
  int64_t dilations[kPamrMostDilations];  // at least 1
};

struct PamrTable {
  // Does not allocate. `threads` is what the workspace function was asked with.
  Status (*refine)(const PamrParams& params, int threads);
};

const PamrTable& pamr_table();
// Bytes of workspace of the CPU function, and of the CUDA entry point, for these sizes.
int64_t pamr_workspace(const PamrParams& params, int threads);
int64_t pamr_cuda_workspace(const PamrParams& params);

}  // namespace patchword
