// SPDX-License-Identifier: Apache-2.0
// Inner loops of the CPU levels: blend four vectors, their dot products, transposed map rows.
#pragma once

#include "kernels/common/simd.h"
#include "kernels/sample_features/sample_features.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Calls body(c, n) for chunks of channels; n is kLanes except for the tail.
template <typename Body>
PW_INLINE void each_chunk(int64_t channels, Body&& body) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(c, kLanes);
  if (c < channels) body(c, static_cast<int>(channels - c));
}

// n == kLanes folds to one load wherever each_chunk is inlined.
template <typename Element>
PW_INLINE VecF load_chunk(const typename Element::Storage* p, int n) {
  return n == kLanes ? Element::load(p) : load_tail<Element>(p, n);
}
template <typename Element>
PW_INLINE void store_chunk(typename Element::Storage* p, VecF v, int n) {
  if (n == kLanes) {
    Element::store(p, v);
  } else {
    store_tail<Element>(p, v, n);
  }
}

// Two neighbouring map rows whose channels are contiguous, `pitch` elements from cell to cell.
template <typename Source>
struct Window {
  const typename Source::Storage* row[2];
  int64_t pitch;
};

// Four vectors of channels, contiguous in memory.
template <typename Source>
struct Rows {
  const typename Source::Storage* corner[4];
  PW_INLINE VecF load(int k, int64_t c, int n) const {
    return load_chunk<Source>(corner[k] + c, n);
  }
};

// The same with any distance between channels.
template <typename Source>
struct Strided {
  const typename Source::Storage* corner[4];
  int64_t stride;
  PW_INLINE VecF load(int k, int64_t c, int n) const {
    typename Source::Storage lanes[kLanes] = {};
    for (int i = 0; i < n; ++i) lanes[i] = corner[k][(c + i) * stride];
    return Source::load(lanes);
  }
};

// A sum over `count` corners, known to be kCorners of them unless that is 0.
template <int kCorners, typename Reader>
PW_INLINE VecF blend_chunk(const Reader& reader, const VecF (&w)[4], int count, int64_t c, int n) {
  VecF sum = w[0] * reader.load(0, c, n);
  for (int k = 1; k < (kCorners == 0 ? count : kCorners); ++k) {
    sum = fma(w[k], reader.load(k, c, n), sum);
  }
  return sum;
}

// out[0..channels) = the corners' vectors, weighted.
template <typename Element, int kCorners, typename Reader>
PW_INLINE void blend(const Reader& reader, const float (&weight)[4], int count, int64_t channels,
                     typename Element::Storage* out) {
  const VecF w[4] = {splat(weight[0]), splat(weight[1]), splat(weight[2]), splat(weight[3])};
  each_chunk(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    store_chunk<Element>(out + c, blend_chunk<kCorners>(reader, w, count, c, n), n);
  });
}

// The same divided by its norm; `vector` holds `channels` floats in between.
template <typename Element, int kCorners, typename Reader>
PW_INLINE void blend_normalized(const Reader& reader, const float (&weight)[4], int count,
                                int64_t channels, float* vector, typename Element::Storage* out) {
  const VecF w[4] = {splat(weight[0]), splat(weight[1]), splat(weight[2]), splat(weight[3])};
  VecF squares{};
  each_chunk(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    const VecF sum = blend_chunk<kCorners>(reader, w, count, c, n);
    squares = fma(sum, sum, squares);
    store_chunk<Float32>(vector + c, sum, n);
  });
  const float norm = __builtin_sqrtf(reduce_add(squares));
  const bool short_vector = norm < kSampleNormEpsilon;  // false for NaN
  const VecF scale = splat(1.0f / (short_vector ? kSampleNormEpsilon : norm));
  each_chunk(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    store_chunk<Element>(out + c, load_chunk<Float32>(vector + c, n) * scale, n);
  });
}

// dots[k] += <grad, corner k>
template <typename Element, typename Reader>
PW_INLINE void add_dots(const Reader& reader, const typename Element::Storage* grad,
                        int64_t channels, float (&dots)[4]) {
  VecF sums[4] = {};
  each_chunk(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    const VecF g = load_chunk<Element>(grad + c, n);
    for (int k = 0; k < 4; ++k) sums[k] = fma(g, reader.load(k, c, n), sums[k]);
  });
  for (int k = 0; k < 4; ++k) dots[k] += reduce_add(sums[k]);
}

#if PW_VECTOR_BYTES == 64
#define PW_LANE_LIST(f)                                                                          \
  f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), \
      f(15)
#elif PW_VECTOR_BYTES == 32
#define PW_LANE_LIST(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#else
#define PW_LANE_LIST(f) f(0), f(1), f(2), f(3)
#endif

// Swaps the off-diagonal kBit x kBit blocks of a pair of rows: one step of a transposition.
template <int kBit>
PW_INLINE void swap_blocks(VecF& a, VecF& b) {
#define PW_LOW(lane) ((lane) & kBit) ? kLanes + ((lane) - kBit) : (lane)
#define PW_HIGH(lane) ((lane) & kBit) ? kLanes + (lane) : ((lane) + kBit)
  const VecF low = __builtin_shufflevector(a, b, PW_LANE_LIST(PW_LOW));
  b = __builtin_shufflevector(a, b, PW_LANE_LIST(PW_HIGH));
  a = low;
#undef PW_LOW
#undef PW_HIGH
}

template <int kBit>
PW_INLINE void transpose_step(VecF (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kBit) == 0) swap_blocks<kBit>(rows[i], rows[i | kBit]);
  }
  if constexpr (kBit > 1) transpose_step<kBit / 2>(rows);
}

// kLanes channels x kLanes columns: rows[i] holds channel i before and column i after.
PW_INLINE void transpose(VecF (&rows)[kLanes]) { transpose_step<kLanes / 2>(rows); }

// panel[x * pitch + c] = row[c * channel_stride + x * column_stride] for whole map rows.
template <typename Element>
void fill_panel(const typename Element::Storage* row, int64_t channel_stride, int64_t column_stride,
                int64_t width, int64_t channels, int64_t pitch, float* panel) {
  const int64_t columns = column_stride == 1 ? width / kLanes * kLanes : 0;
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const typename Element::Storage* source = row + c * channel_stride;
    for (int64_t x = 0; x < columns; x += kLanes) {
      VecF block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const typename Element::Storage* cells = source + i * channel_stride + x;
        block[i] = Element::load(cells);
        // The row below, which is wanted next: too many planes for the hardware to follow.
        __builtin_prefetch(cells + width);
      }
      transpose(block);
      for (int i = 0; i < kLanes; ++i) store(panel + (x + i) * pitch + c, block[i]);
    }
  }
  for (int64_t k = 0; k < channels; ++k) {
    const typename Element::Storage* source = row + k * channel_stride;
    for (int64_t x = k < c ? columns : 0; x < width; ++x) {
      panel[x * pitch + k] = load_scalar<Element>(source + x * column_stride);
    }
  }
}

// The way back: one map row of sums, row[x * pitch + c], rounded into a map with these strides.
template <typename Element>
void store_row(const float* row, int64_t pitch, int64_t width, int64_t channels,
               typename Element::Storage* target, int64_t channel_stride, int64_t column_stride) {
  if (channel_stride == 1) {
    for (int64_t x = 0; x < width; ++x) {
      each_chunk(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
        store_chunk<Element>(target + x * column_stride + c, load(row + x * pitch + c), n);
      });
    }
    return;
  }
  const int64_t columns = column_stride == 1 ? width / kLanes * kLanes : 0;
  const int64_t whole = channels / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
    for (int64_t x = 0; x < columns; x += kLanes) {
      VecF block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = load(row + (x + i) * pitch + c);
      transpose(block);
      for (int i = 0; i < kLanes; ++i) {
        Element::store(target + (c + i) * channel_stride + x, block[i]);
      }
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = c < whole ? columns : 0; x < width; ++x) {
      store_scalar<Element>(target + c * channel_stride + x * column_stride, row[x * pitch + c]);
    }
  }
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
