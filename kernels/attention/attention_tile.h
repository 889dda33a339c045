// SPDX-License-Identifier: Apache-2.0
// Product tiles and the exponential of attention: lanes hold queries. For level units only.
#pragma once

#include "kernels/common/dot_product.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Accumulators fill the register file: 8 x 3 of 32 registers with AVX-512, 4 x 3 of 16 otherwise.
constexpr int kRows = kVectorBytes == 64 ? 8 : 4;
constexpr int kVectors = 3;
// Queries of a block, one per lane.
constexpr int kBlockQueries = kVectors * kLanes;
// Keys whose scores against a block of queries stay in L1.
constexpr int kBlockKeys = 128;

// a > b ? a : b in one instruction; compilers make a comparison and a blend of that expression.
PW_INLINE VecF larger(VecF a, VecF b) {
#if defined(__AVX512F__)
  return bit_cast<VecF>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  return bit_cast<VecF>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#else
  return max(a, b);
#endif
}

// sums[i][v] += sum over n of a[n * a_step + i * a_row] * b[n * b_step + v * kLanes ...]. The steps
// are constants at every call, so that each operand is one pointer with fixed offsets.
template <typename Product, int Rows, int Vectors>
PW_INLINE void multiply(const float* __restrict__ a, int64_t a_row, int64_t a_step,
                        const float* __restrict__ b, int64_t b_step, int64_t depth,
                        VecF (&sums)[Rows][Vectors]) {
#pragma GCC unroll 2
  for (int64_t n = 0; n < depth; ++n) {
    VecF columns[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const VecF row = Product::broadcast(a + i * a_row);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[i][v] = Product::step(row, columns[v], sums[i][v]);
    }
    a += a_step;
    b += b_step;
  }
}

// A constant that stays in a register: compilers would rather read it from memory each time, and
// a loop of exponentials is then bound by its loads.
PW_INLINE VecF held(float x) {
  VecF v = splat(x);
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  asm("" : "+x"(v));
#endif
  return v;
}

// 2^x for x <= 0: nearest integer, degree-5 polynomial on [-0.5, 0.5] (relative error 2e-7), scale
// by a float made of the integer. Below -126.5 it is 0; NaN stays NaN.
struct Exponential {
  const VecF lowest = held(-127.0f);
  // The low bits of 1.5 * 2^23 + 127 + n are the biased exponent of 2^n.
  const VecF magic = held(12583039.0f);
  const VecF c5 = held(1.3264727e-3f), c4 = held(9.6715130e-3f), c3 = held(5.5507336e-2f),
             c2 = held(2.4022242e-1f), c1 = held(6.9314700e-1f), one = held(1.0f);

  PW_INLINE VecF operator()(VecF x) const {
    const VecF limited = larger(lowest, x);  // this order keeps a NaN of x
    const VecF shifted = limited + magic;
    const VecF r = limited - (shifted - magic);
    const VecF factor = bit_cast<VecF>(bit_cast<VecI>(shifted) << 23);
    VecF p = fma(c5, r, c4);
    p = fma(p, r, c3);
    p = fma(p, r, c2);
    p = fma(p, r, c1);
    p = fma(p, r, one);
    return p * factor;
  }
};

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
