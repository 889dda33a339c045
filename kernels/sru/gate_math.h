// SPDX-License-Identifier: Apache-2.0
// Two sigmoids by one division, and tanh as a quotient of polynomials. For level units only.
#pragma once

#include "kernels/common/simd.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// x within [-limit, limit]; NaN stays NaN: it is the second operand. The intrinsics are one
// instruction where the ternaries of simd.h become two.
PW_INLINE VecF clamp(VecF x, float limit) {
#if defined(__AVX512F__)
  return bit_cast<VecF>(_mm512_min_ps(_mm512_set1_ps(limit),
                                      _mm512_max_ps(_mm512_set1_ps(-limit), bit_cast<__m512>(x))));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  return bit_cast<VecF>(_mm256_min_ps(_mm256_set1_ps(limit),
                                      _mm256_max_ps(_mm256_set1_ps(-limit), bit_cast<__m256>(x))));
#else
  return min(splat(limit), max(splat(-limit), x));
#endif
}

// e^-x: relative error 3e-7 near 0, growing to 3e-6 at +-41, where a sigmoid no longer feels it.
// Beyond, it stays at that end, so that products of two neither overflow nor vanish. NaN stays NaN:
// the last step is a multiplication rather than an integer addition to the exponent.
PW_INLINE VecF exp_minus(VecF x) {
  const VecF limited = clamp(x * splat(-1.44269504f), 60.0f);
  const VecF magic = splat(12582912.0f + 127.0f);  // rounds, and biases the exponent
  const VecF shifted = limited + magic;
  const VecF r = limited - (shifted - magic);
  // In pairs: the chain of a step is long, and this is a shorter part of it than Horner's form.
  const VecF square = r * r;
  const VecF high = fma(splat(1.327646111e-3f), r, splat(9.675541721e-3f));
  const VecF middle = fma(splat(5.550713311e-2f), r, splat(2.402211972e-1f));
  const VecF low = fma(splat(6.931469670e-1f), r, splat(1.0f));
  const VecF p = fma(fma(high, square, middle), square, low);
  return p * bit_cast<VecF>(bit_cast<VecI>(shifted) << 23);
}

struct Gates {
  VecF forget, reset;
};

PW_INLINE VecF sigmoid(VecF x) { return splat(1.0f) / (splat(1.0f) + exp_minus(x)); }

PW_INLINE Gates sigmoids(VecF forget, VecF reset) {
  const VecF a = splat(1.0f) + exp_minus(forget), b = splat(1.0f) + exp_minus(reset);
  const VecF inverse = splat(1.0f) / (a * b);
  return {b * inverse, a * inverse};
}

// Within 4e-7 relative: a quotient fitted on [0, 9], beyond which tanh rounds to 1.
PW_INLINE VecF tanh(VecF x) {
  const VecF limited = clamp(x, 9.0f);
  const VecF y = limited * limited;
  VecF p = splat(1.335509189e-8f);
  p = fma(p, y, splat(2.060939480e-5f));
  p = fma(p, y, splat(3.495607217e-3f));
  p = fma(p, y, splat(1.338104174e-1f));
  p = fma(p, y, splat(1.0f));
  VecF q = splat(7.776734957e-7f);
  q = fma(q, y, splat(3.285665966e-4f));
  q = fma(q, y, splat(2.587705493e-2f));
  q = fma(q, y, splat(4.671435734e-1f));
  q = fma(q, y, splat(1.0f));
  return limited * p / q;
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
