// SPDX-License-Identifier: Apache-2.0
// How well the cells of one picture are found in another: the contract shared by the CPU levels,
// CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

// Which cell a place in [0, 1] means: the one that holds it, or the nearest when 0 and 1 are the
// centres of the outer cells (halves to even).
enum class CellRounding : int32_t { kCell = 0, kPublished = 1 };

// Beyond 2^24 cells along an axis float32 places cannot name them all.
constexpr int64_t kMatchScoreMaxSide = int64_t{1} << 24;

struct MatchScoreParams {
  const void* features0;  // [B, Q, D], any strides, dtype `dtype`; CUDA: D contiguous
  const void* features1;  // [B, h * w, D], the same
  const float* points;    // [B, Q, 2], x before y, 0 to 1 across picture 1
  const float* weights;   // [B, Q]
  const float* mask;      // [B, h, w], sampled at the points; or null
  float* out;             // [B]
  void* workspace;        // CPU: match_score_workspace bytes; CUDA: int32 [B, h * w] of zeros
  DType dtype;
  CellRounding rounding;
  int64_t batch, queries, height, width, channels;
  int64_t features0_stride[3], features1_stride[3];  // elements
  int64_t points_stride[3], weights_stride[2], mask_stride[3];
};

struct MatchScoreTable {
  Status (*forward)(const MatchScoreParams& params, int threads);
};

const MatchScoreTable& match_score_table();
int64_t match_score_workspace(const MatchScoreParams& params, int threads);

}  // namespace patchword
