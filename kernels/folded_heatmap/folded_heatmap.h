// SPDX-License-Identifier: Apache-2.0
// A text's top units folded into one vector, and its heat map: the contract shared by the CPU
// levels, CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

struct FoldUnitsParams {
  const float* text;          // [T, E], contiguous
  const float* projection;    // [E, D], columns contiguous
  int64_t projection_stride;  // between rows; elements
  float* folded;              // [T, D], contiguous
  void* workspace;            // the bytes that the workspace function asks for
  int64_t texts, units, channels;
  int64_t top;  // 1 .. E units of each text take part
};

struct FoldedHeatmapParams {
  const void* maps;     // [B, D, h w], any strides, dtype `dtype`; at least one cell
  const float* folded;  // [1 or B, T, D], contiguous but for the first dimension
  float* heat;          // [B, T, h, w], contiguous
  int64_t* location;    // [B, T, 2], column and row of the largest value, -1 where all are NaN
  uint8_t* mask;        // [B, T, h, w], contiguous, 1 above the threshold; or null
  void* workspace;      // CPU: the bytes that the workspace function asks for
  DType dtype;
  int64_t batch, channels, height, width, texts;
  int64_t maps_stride[3];  // b, channel, cell; elements
  int64_t folded_stride;   // between images; elements, 0 when they share their texts
  float threshold;         // of the way from the smallest to the largest value
  int32_t from_minimum;    // else the smallest value is not added back
  int32_t columns_first;  // of equal values the one in the first column wins, else in the first row
};

struct FoldedHeatmapTable {
  // Neither allocates. `threads` is what the workspace function was asked with.
  Status (*fold)(const FoldUnitsParams& params, int threads);
  Status (*heat)(const FoldedHeatmapParams& params, int threads);
};

const FoldedHeatmapTable& folded_heatmap_table();
// Bytes of workspace. Folding: the lists alone serve CUDA, the CPU adds keys per thread.
int64_t fold_units_workspace(const FoldUnitsParams& params, int threads);
int64_t folded_heatmap_workspace(const FoldedHeatmapParams& params, int threads);

}  // namespace patchword
