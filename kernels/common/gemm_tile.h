// SPDX-License-Identifier: Apache-2.0
// Outer-product microkernel on packed panels. For level units only.
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

}  // namespace PW_LEVEL
}  // namespace patchword
