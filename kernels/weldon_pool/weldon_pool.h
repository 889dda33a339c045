// SPDX-License-Identifier: Apache-2.0
// Mean of the largest plus mean of the smallest values of a map: the contract shared by the CPU
// levels, CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

struct WeldonPoolParams {
  const void* maps;  // [B, C, h, w], any strides, dtype `dtype`; at least one cell
  void* out;         // [B, C], contiguous, dtype `dtype`; not used by the backward
  // [B, C, 2]: order keys (sorted_lists.h) of the last value that counts as large, and as small.
  // Forward: written, or null. Backward: read.
  int32_t* thresholds;
  void* workspace;  // CPU forward: the bytes that the workspace function asks for
  DType dtype;
  int64_t batch, channels, height, width;
  int64_t maps_stride[4];             // b, c, y, x; elements
  int64_t top_count, bottom_count;    // 1 .. h w, 0 .. h w
  float top_divisor, bottom_divisor;  // what the two sums are divided by
};

struct WeldonPoolBackwardParams {
  WeldonPoolParams forward;
  const void* grad_out;    // [B, C], contiguous, dtype of the maps
  void* grad_maps;         // [B, C, h, w], dtype of the maps, every element written
  int64_t grad_stride[4];  // b, c, y, x of grad_maps
};

struct WeldonPoolTable {
  // Neither allocates. `threads` is what the workspace function was asked with.
  Status (*forward)(const WeldonPoolParams& params, int threads);
  Status (*backward)(const WeldonPoolBackwardParams& params, int threads);
};

const WeldonPoolTable& weldon_pool_table();
int64_t weldon_pool_workspace(const WeldonPoolParams& params, int threads);

}  // namespace patchword
