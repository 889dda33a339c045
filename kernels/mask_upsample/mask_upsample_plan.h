// SPDX-License-Identifier: Apache-2.0
// Tap tables and workspace layout: what the baseline code hands to the CPU level units.
#pragma once

#include "kernels/mask_upsample/mask_upsample.h"

namespace patchword {

// Widest vector of any level, in floats: tables and rows are padded to it, so that one plan serves
// every level.
constexpr int kMaxLanes = 16;
// Pixels that share one expansion of the class rows; C * 2 * 16 floats of it stay in the L1 cache
// up to C of about 200.
constexpr int kStrip = 16;
// Copies of the border cell on the left of a row; a bicubic tap reaches two cells outside.
constexpr int kPadLeft = 2;

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Floats of one low-resolution row with its border cells and room for a whole vector at the end.
constexpr int64_t row_pitch(int64_t width) { return round_up(width + 4 + kMaxLanes, kMaxLanes); }

// The taps of every coordinate of one axis. Tables go on for 2 * kMaxLanes entries that repeat the
// last coordinate. Runs of coordinates with the same taps are called cells.
struct AxisTable {
  const int32_t* first;  // [out + pad] first tap, not clamped
  const float* weight;   // [taps][weight_stride]
  int64_t weight_stride;
  const int32_t* cell;  // [cells + 1] first coordinate of each cell; the last one is `out`
  int64_t cells;
  int64_t in, out;
  int32_t taps;    // 1 (copy), 2 or 4
  bool gathers;    // the taps of 4 .. 16 neighbouring coordinates may lie further apart
  float negative;  // largest sum of |negative weights| of one coordinate

  const float* weights(int tap) const { return weight + tap * weight_stride; }
  int64_t clamp(int64_t i) const { return i < 0 ? 0 : i < in ? i : in - 1; }
};

struct UpsamplePlan {
  AxisTable x, y;
  bool prune;              // cells are large enough to look for the classes that can win
  int64_t pitch;           // floats of one padded low-resolution row
  int64_t padded_width;    // floats of one expanded row
  unsigned char* scratch;  // thread t owns [t * scratch_stride, (t + 1) * scratch_stride)
  int64_t scratch_stride;
};

// Per-thread scratch of the three kernels, in bytes; all parts are multiples of 64.
struct ClassScratch {
  int64_t ring, ring_state, high, bounds, lists, counts, live, strip, values, histogram, total;
};
ClassScratch class_scratch(const MaskUpsampleParams& params, const UpsamplePlan& plan);
struct MapScratch {
  int64_t row, ring, difference, total;
};
MapScratch map_scratch(const UpsamplePlan& plan);
struct GradScratch {
  int64_t ring, row, total;
};
GradScratch grad_scratch(const UpsamplePlan& plan);

// One table per CPU level.
struct MaskUpsampleTable {
  // labels, confidence, softmax and confusion: the classes of a pixel are compared
  Status (*classes)(const MaskUpsampleParams&, const UpsamplePlan&, int threads);
  // logits, sigmoid, min-max and thresholds: every map by itself
  Status (*maps)(const MaskUpsampleParams&, const UpsamplePlan&, int threads);
  Status (*grad)(const MaskUpsampleGradParams&, const UpsamplePlan&, int threads);
};

}  // namespace patchword
