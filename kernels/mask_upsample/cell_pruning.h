// SPDX-License-Identifier: Apache-2.0
// Which classes can win somewhere in a cell, exactly. For level units only.
//
// All pixels of a cell mix the same taps. A bilinear value lies between the smallest and the
// largest tap; a bicubic one between min - N (max - min) and max + N (max - min), N being the
// largest sum of negative weights. A class whose upper bound is below another's lower bound cannot
// win. The guard covers the rounding of the kernel's own arithmetic (derivation: README.md).
#pragma once

#include "kernels/mask_upsample/axis_rows.h"

namespace patchword {
namespace PW_LEVEL {

struct PruneBuffers {
  float* high;        // [live][pitch] upper bounds
  float* lowest;      // [pitch] largest lower bound over the classes, then the cutoff
  float* magnitude;   // [pitch] largest |tap|
  float* column_min;  // [pitch]
  float* column_max;  // [pitch]
  int32_t* lists;     // [pitch][channels]
  int32_t* counts;    // [pitch]
};

template <int Taps>
PW_INLINE void bound_class(const UpsamplePlan& plan, const float* const* rows, int64_t at,
                           float negative, const PruneBuffers& buffers, float* high) {
  const float* low_row = rows[0] + at;
  const float* high_row = low_row;
  if constexpr (Taps == 4) {
    for (int64_t i = 0; i < plan.pitch; i += kLanes) {
      VecF low = load(rows[0] + at + i), top = low;
      for (int t = 1; t < 4; ++t) {
        const VecF v = load(rows[t] + at + i);
        low = min(v, low);
        top = max(v, top);
      }
      store(buffers.column_min + i, low);
      store(buffers.column_max + i, top);
    }
    low_row = buffers.column_min;
    high_row = buffers.column_max;
  }
  const VecF n = splat(negative);
  for (int64_t i = 0; i < plan.x.in + kPadLeft; i += kLanes) {
    VecF low = load(low_row + i), top = load(high_row + i);
    for (int t = 1; t < Taps; ++t) {
      low = min(load(low_row + i + t), low);
      top = max(load(high_row + i + t), top);
    }
    if constexpr (Taps == 2) {
      for (int t = 0; t < 2; ++t) {
        const VecF v = load(rows[1] + at + i + t);
        low = min(v, low);
        top = max(v, top);
      }
    }
    store(buffers.magnitude + i, max(max(abs(low), abs(top)), load(buffers.magnitude + i)));
    if constexpr (Taps == 4) {
      const VecF spread = n * (top - low);
      low = low - spread;
      top = top + spread;
    }
    store(high + i, top);
    store(buffers.lowest + i, max(low, load(buffers.lowest + i)));
  }
}

// Fills lists and counts of every column. `margin` widens the choice: classes within it of the
// best may matter too. Needs moderate rows.
inline void list_candidates(const UpsamplePlan& plan, const float* const* rows, const int32_t* live,
                            int64_t live_count, int64_t channels, float margin,
                            const PruneBuffers& buffers) {
  const int64_t columns = plan.x.in + kPadLeft;
  for (int64_t i = 0; i < plan.pitch; i += kLanes) {
    store(buffers.lowest + i, splat(-__builtin_inff()));
    store(buffers.magnitude + i, VecF{});
    store(buffers.counts + i, VecI{});
  }
  const bool cubic = plan.y.taps == 4;
  const float px = 1.0f + plan.x.negative, py = 1.0f + plan.y.negative;
  const float negative = px * plan.y.negative + py * plan.x.negative;
  for (int64_t k = 0; k < live_count; ++k) {
    float* high = buffers.high + k * plan.pitch;
    const int64_t at = live[k] * plan.pitch;
    if (cubic)
      bound_class<4>(plan, rows, at, negative, buffers, high);
    else
      bound_class<2>(plan, rows, at, 0.0f, buffers, high);
  }
  const VecF guard = splat(cubic ? kBicubicGuard : kBilinearGuard);
  for (int64_t i = 0; i < columns; i += kLanes) {
    const VecF cutoff =
        load(buffers.lowest + i) - guard * load(buffers.magnitude + i) - splat(margin);
    store(buffers.lowest + i, cutoff);
  }
  for (int64_t k = 0; k < live_count; ++k) {
    const float* high = buffers.high + k * plan.pitch;
    for (int64_t i = 0; i < columns; i += kLanes) {
      uint32_t bits = mask_bits(load(high + i) >= load(buffers.lowest + i));
      while (bits != 0) {
        const int64_t column = i + __builtin_ctz(bits);
        bits &= bits - 1;
        buffers.lists[column * channels + buffers.counts[column]++] = live[k];
      }
    }
  }
}

}  // namespace PW_LEVEL
}  // namespace patchword
