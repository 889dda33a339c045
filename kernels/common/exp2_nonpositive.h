// SPDX-License-Identifier: Apache-2.0
// The power of two of what a softmax leaves once its largest term is taken off. For level units
// only.
#pragma once

#include "kernels/common/simd.h"

namespace patchword {
namespace PW_LEVEL {

// 2^x for x <= 0: no upper limit to check, 2^-126 instead of less (nothing beside the largest term,
// which is 1), relative error below 2e-7. NaN stays NaN, whatever its bits: it is the second
// operand of max, and the power is multiplied by, not added to the exponent. The polynomial is that
// of exp2 in simd.h.
PW_INLINE VecF exp2_nonpositive(VecF x) {
  const VecF limited = max(splat(-126.0f), x);
  const VecF magic = splat(12582912.0f + 127.0f);  // rounds, and biases the exponent
  const VecF shifted = limited + magic;
  const VecF r = limited - (shifted - magic);
  VecF p = splat(1.5403530e-4f);
  p = fma(p, r, splat(1.3333558e-3f));
  p = fma(p, r, splat(9.6181291e-3f));
  p = fma(p, r, splat(5.5504109e-2f));
  p = fma(p, r, splat(2.4022651e-1f));
  p = fma(p, r, splat(6.9314718e-1f));
  p = fma(p, r, splat(1.0f));
  return p * bit_cast<VecF>(bit_cast<VecI>(shifted) << 23);
}

}  // namespace PW_LEVEL
}  // namespace patchword
