// SPDX-License-Identifier: Apache-2.0
// Two sigmoids by one division, and tanh as a quotient of polynomials. For level units only.
#pragma once

#include "kernels/common/simd.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// e^-x: relative error 3e-7 near 0, growing to 3e-6 at +-41, where a sigmoid no longer feels it.
// Beyond, it stays at that end, so that products of two neither overflow nor vanish. NaN stays NaN: it is the second operand, and the last step is a
// multiplication rather than an integer addition to the exponent.
PW_INLINE VecF exp_minus(VecF x) {
  const VecF limited = min(splat(60.0f), max(splat(-60.0f), x * splat(-1.44269504f)));
  const VecF magic = splat(12582912.0f + 127.0f);  // rounds, and biases the exponent
  const VecF shifted = limited + magic;
  const VecF r = limited - (shifted - magic);
  VecF p = splat(1.327646111e-3f);
  p = fma(p, r, splat(9.675541721e-3f));
  p = fma(p, r, splat(5.550713311e-2f));
  p = fma(p, r, splat(2.402211972e-1f));
  p = fma(p, r, splat(6.931469670e-1f));
  p = fma(p, r, splat(1.0f));
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
  const VecF limited = min(splat(9.0f), max(splat(-9.0f), x));
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
