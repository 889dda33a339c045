// SPDX-License-Identifier: Apache-2.0
// Inner loops that compare the classes of a pixel: pixels in lanes, classes in the loop. For level
// units only.
//
// A strip of kStrip pixels holds, per class, the rows of one vertical cell expanded to those
// pixels. It is expanded once and mixed for every output row of the cell: per pixel and class one
// fused multiply-add, one compare, one maximum and one select.
#pragma once

#include "kernels/common/exp2_nonpositive.h"
#include "kernels/mask_upsample/axis_rows.h"

namespace patchword {
namespace PW_LEVEL {

constexpr int kStripVectors = kStrip / kLanes;
// Output rows mixed together: as many running maxima and indices as the registers hold.
constexpr int kRowBlock = kVectorBytes == 64 ? 8 : 4;

struct ClassList {
  const int32_t* classes;  // ascending, so that a strict comparison keeps the lowest
  int64_t count;
};

// strip[k][part][kStrip]: pixels x0 .. of the rows `rows[t] + class * pitch`.
inline void expand_strip(const UpsamplePlan& plan, const float* const* rows, bool moderate,
                         ClassList list, int64_t x0, int vectors, float* strip) {
  const int taps = plan.y.taps;
  const int64_t pitch = plan.pitch;
  with_axis_form(plan.x, moderate, [&]<int Taps, bool Gathers, bool Moderate>() {
    for (int v = 0; v < vectors; ++v) {
      const PixelVector<Taps, Gathers> pixels(plan.x, x0 + v * kLanes);
      float* out = strip + v * kLanes;
      for (int64_t k = 0; k < list.count; ++k) {
        const int64_t at = list.classes[k] * pitch;
        if (taps == 4) {
          for (int t = 0; t < 4; ++t) {
            store(out + t * kStrip, pixels.template expand<Moderate>(rows[t] + at));
          }
          out += 4 * kStrip;
          continue;
        }
        const VecF upper = pixels.template expand<Moderate>(rows[0] + at);
        VecF second{};
        if (taps == 2) {
          second = pixels.template expand<Moderate>(rows[1] + at);
          if (moderate) second = second - upper;
        }
        store(out, upper);
        store(out + kStrip, second);
        out += 2 * kStrip;
      }
    }
  });
}

template <Mix M>
PW_INLINE void load_parts(const float* at, VecF (&part)[kMixParts<M>]) {
#pragma GCC unroll 4
  for (int t = 0; t < kMixParts<M>; ++t) part[t] = load(at + t * kStrip);
}

// Largest value and its class for Rows x kLanes pixels. A NaN never wins; -1 where none won.
template <Mix M, int Rows>
PW_INLINE void best_class(const float* strip, ClassList list, const RowWeights<M> (&rows)[Rows],
                          VecF (&best)[Rows], VecI (&index)[Rows]) {
  constexpr int64_t kStep = kMixParts<M> * kStrip;
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    best[r] = splat(-__builtin_inff());
    index[r] = splat_int(-1);
  }
  const float* at = strip;
  for (int64_t k = 0; k < list.count; ++k, at += kStep) {
    VecF part[kMixParts<M>];
    load_parts<M>(at, part);
    const VecI id = splat_int(list.classes[k]);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const VecF value = rows[r].mix(part);
      const VecI wins = value > best[r];
      best[r] = max(value, best[r]);
      index[r] = select(wins, id, index[r]);
    }
  }
  // Minus infinity is a value like any other, but never above the start: look again where it may
  // be the best there is.
  for (int r = 0; r < Rows; ++r) {
    if (!any(index[r] < 0)) continue;
    at = strip + (list.count - 1) * kStep;
    for (int64_t k = list.count - 1; k >= 0; --k, at -= kStep) {
      VecF part[kMixParts<M>];
      load_parts<M>(at, part);
      const VecF value = rows[r].mix(part);
      const VecI first = (value == value) & (best[r] == splat(-__builtin_inff()));
      index[r] = select(first, splat_int(list.classes[k]), index[r]);
    }
  }
}

// Probability of the best class: 1 / sum exp(scale (value - best)).
template <Mix M, int Rows>
PW_INLINE void confidence_of(const float* strip, ClassList list, const RowWeights<M> (&rows)[Rows],
                             const VecF (&best)[Rows], float scale_log2e, VecF (&out)[Rows]) {
  VecF sum[Rows] = {};
  const VecF scale = splat(scale_log2e);
  const float* at = strip;
  for (int64_t k = 0; k < list.count; ++k, at += kMixParts<M> * kStrip) {
    VecF part[kMixParts<M>];
    load_parts<M>(at, part);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      sum[r] = sum[r] + exp2_nonpositive((rows[r].mix(part) - best[r]) * scale);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    out[r] = list.count > 0 ? splat(1.0f) / sum[r] : VecF{};
  }
}

// Probabilities of all listed classes of kLanes pixels: values[k][kLanes].
template <Mix M>
PW_INLINE void softmax_of(const float* strip, ClassList list, const RowWeights<M>& row,
                          float scale_log2e, float* values) {
  constexpr int64_t kStep = kMixParts<M> * kStrip;
  VecF best = splat(-__builtin_inff());
  for (int64_t k = 0; k < list.count; ++k) {
    VecF part[kMixParts<M>];
    load_parts<M>(strip + k * kStep, part);
    const VecF value = row.mix(part);
    store(values + k * kLanes, value);
    best = max(value, best);
  }
  const VecF scale = splat(scale_log2e);
  VecF sum{};
  for (int64_t k = 0; k < list.count; ++k) {
    const VecF e = exp2_nonpositive((load(values + k * kLanes) - best) * scale);
    store(values + k * kLanes, e);
    sum = sum + e;
  }
  const VecF inverse = splat(1.0f) / sum;
  for (int64_t k = 0; k < list.count; ++k) {
    store(values + k * kLanes, load(values + k * kLanes) * inverse);
  }
}

}  // namespace PW_LEVEL
}  // namespace patchword
