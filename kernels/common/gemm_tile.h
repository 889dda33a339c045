// SPDX-License-Identifier: Apache-2.0
// Outer-product microkernel on packed panels, and the packing. For level units only.
//
// A panel: [depth][kTileRows], rows broadcast. B panel: [depth][kTileCols], columns in lanes. Both
// are contiguous so that the inner loop has no strided pointer; buffers are 64-byte aligned.
#pragma once

#include "kernels/common/simd.h"

namespace patchword {
namespace PW_LEVEL {

// Accumulators fill the register file: 12 x 2 of 32 registers with AVX-512, 6 x 2 of 16 otherwise.
constexpr int kTileRows = kVectorBytes == 64 ? 12 : 6;
constexpr int kTileVectors = 2;
constexpr int kTileCols = kTileVectors * kLanes;

constexpr int64_t panel_count(int64_t n, int64_t width) { return (n + width - 1) / width; }

// acc[i][v] += sum over depth of a[d][i] * b[d][v]
template <int Rows, int Vectors>
PW_INLINE void product_tile(const float* __restrict__ a, const float* __restrict__ b, int64_t depth,
                            VecF (&acc)[Rows][Vectors]) {
  for (int64_t d = 0; d < depth; ++d) {
    VecF columns[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const VecF row = splat(a[i]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[i][v] = fma(row, columns[v], acc[i][v]);
    }
    a += Rows;
    b += Vectors * kLanes;
  }
}

// Packs `count` (at most Width) rows of length `depth` into panel[depth][Width]; missing rows are
// `fill`. Strides are in elements. When `squared_norms` is given, it receives the Width sums of
// squares (0 for missing rows), taken from the same values that are packed.
template <typename Element, int Width>
inline void pack_panel(const typename Element::Storage* rows, int64_t row_stride,
                       int64_t column_stride, int count, int64_t depth, float fill, float* panel,
                       float* squared_norms) {
  VecF sums[Width] = {};
  float block[Width][kLanes];
  for (int64_t d0 = 0; d0 < depth; d0 += kLanes) {
    const int n = depth - d0 < kLanes ? static_cast<int>(depth - d0) : kLanes;
    for (int i = 0; i < Width; ++i) {
      if (i >= count) {
        store(block[i], splat(fill));
        continue;
      }
      const typename Element::Storage* source = rows + i * row_stride + d0 * column_stride;
      VecF values;
      if (column_stride == 1) {
        values = n == kLanes ? Element::load(source) : load_tail<Element>(source, n);
      } else {
        typename Element::Storage lanes[kLanes] = {};
        for (int j = 0; j < n; ++j) lanes[j] = source[j * column_stride];
        values = Element::load(lanes);
      }
      store(block[i], values);
      sums[i] = fma(values, values, sums[i]);
    }
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < Width; ++i) panel[(d0 + j) * Width + i] = block[i][j];
    }
  }
  if (squared_norms != nullptr) {
    for (int i = 0; i < Width; ++i) squared_norms[i] = i < count ? reduce_add(sums[i]) : 0.0f;
  }
}

}  // namespace PW_LEVEL
}  // namespace patchword
