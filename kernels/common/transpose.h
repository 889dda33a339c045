// SPDX-License-Identifier: Apache-2.0
// Square transposes in registers, and the packing that stands on them. For level units only.
#pragma once

#include "kernels/common/simd.h"

namespace patchword {
namespace PW_LEVEL {

// Shuffles within every group of four lanes, as unpack instructions do them, then of whole groups.
#if PW_VECTOR_BYTES == 16
#define PW_UNPACK_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define PW_UNPACK_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define PW_PAIRS_LOW(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define PW_PAIRS_HIGH(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#elif PW_VECTOR_BYTES == 32
#define PW_UNPACK_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define PW_UNPACK_HIGH(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define PW_PAIRS_LOW(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define PW_PAIRS_HIGH(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define PW_HALVES_LOW(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define PW_HALVES_HIGH(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#else
#define PW_UNPACK_LOW(a, b) \
  __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define PW_UNPACK_HIGH(a, b) \
  __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define PW_PAIRS_LOW(a, b) \
  __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define PW_PAIRS_HIGH(a, b) \
  __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define PW_HALVES_LOW(a, b) \
  __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define PW_HALVES_HIGH(a, b) \
  __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define PW_GROUPS_EVEN(a, b) \
  __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define PW_GROUPS_ODD(a, b) \
  __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#endif

// rows[i][j] becomes rows[j][i].
PW_INLINE void transpose(VecF (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int g = 0; g < kLanes; g += 4) {
    const VecF a = PW_UNPACK_LOW(rows[g], rows[g + 1]);
    const VecF b = PW_UNPACK_HIGH(rows[g], rows[g + 1]);
    const VecF c = PW_UNPACK_LOW(rows[g + 2], rows[g + 3]);
    const VecF d = PW_UNPACK_HIGH(rows[g + 2], rows[g + 3]);
    rows[g] = PW_PAIRS_LOW(a, c);
    rows[g + 1] = PW_PAIRS_HIGH(a, c);
    rows[g + 2] = PW_PAIRS_LOW(b, d);
    rows[g + 3] = PW_PAIRS_HIGH(b, d);
  }
#if PW_VECTOR_BYTES == 32
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const VecF low = PW_HALVES_LOW(rows[j], rows[4 + j]);
    rows[4 + j] = PW_HALVES_HIGH(rows[j], rows[4 + j]);
    rows[j] = low;
  }
#elif PW_VECTOR_BYTES == 64
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const VecF a = PW_HALVES_LOW(rows[j], rows[4 + j]);
    const VecF b = PW_HALVES_HIGH(rows[j], rows[4 + j]);
    const VecF c = PW_HALVES_LOW(rows[8 + j], rows[12 + j]);
    const VecF d = PW_HALVES_HIGH(rows[8 + j], rows[12 + j]);
    rows[j] = PW_GROUPS_EVEN(a, c);
    rows[4 + j] = PW_GROUPS_ODD(a, c);
    rows[8 + j] = PW_GROUPS_EVEN(b, d);
    rows[12 + j] = PW_GROUPS_ODD(b, d);
  }
#endif
}

// A row's elements [d0, d0 + n) as floats, n at most kLanes, the others 0.
template <typename Element>
PW_INLINE VecF load_row(const typename Element::Storage* row, int64_t column_stride, int64_t d0,
                        int n) {
  if (column_stride == 1) {
    return n == kLanes ? Element::load(row + d0) : load_tail<Element>(row + d0, n);
  }
  typename Element::Storage lanes[kLanes] = {};
  for (int j = 0; j < n; ++j) lanes[j] = row[(d0 + j) * column_stride];
  return Element::load(lanes);
}

// Packs `count` (at most kLanes) rows of length `depth` into lanes: panel[d * width + i] is element
// d of row i; lanes without a row are 0. Strides are in elements. Returns the sums of squares of
// the packed values, one per lane.
template <typename Element>
PW_INLINE VecF pack_lanes(const typename Element::Storage* rows, int64_t row_stride,
                          int64_t column_stride, int count, int64_t depth, int64_t width,
                          float* panel) {
  // Four chains, since one would wait for the latency of each addition.
  VecF squares[4] = {};
  VecF block[kLanes];
  int64_t d0 = 0;
  if (count == kLanes && column_stride == 1) {
    for (; d0 + kLanes <= depth; d0 += kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) block[i] = Element::load(rows + i * row_stride + d0);
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        store(panel + (d0 + j) * width, block[j]);
        squares[j % 4] = fma(block[j], block[j], squares[j % 4]);
      }
    }
  }
  for (; d0 < depth; d0 += kLanes) {
    const int n = depth - d0 < kLanes ? static_cast<int>(depth - d0) : kLanes;
    for (int i = 0; i < kLanes; ++i) {
      block[i] =
          i < count ? load_row<Element>(rows + i * row_stride, column_stride, d0, n) : VecF{};
    }
    transpose(block);
    for (int j = 0; j < n; ++j) {
      store(panel + (d0 + j) * width, block[j]);
      squares[0] = fma(block[j], block[j], squares[0]);
    }
  }
  return (squares[0] + squares[1]) + (squares[2] + squares[3]);
}

}  // namespace PW_LEVEL
}  // namespace patchword
