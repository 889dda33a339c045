// SPDX-License-Identifier: Apache-2.0
// Steps of dot products whose operands lie in 32-bit words. For level units only.
#pragma once

#include "kernels/common/simd.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// The bfloat16 elements of words, the first in the low half, as floats.
PW_INLINE VecF low_halves(VecF pairs) { return bit_cast<VecF>(bit_cast<VecU>(pairs) << 16); }
PW_INLINE VecF high_halves(VecF pairs) {
  return bit_cast<VecF>(bit_cast<VecU>(pairs) & 0xffff0000u);
}

// One step of a dot product: one float, or two bfloat16 in a 32-bit word.
struct FloatProduct {
  static constexpr int kStep = 1;
  static PW_INLINE VecF broadcast(const float* a) { return splat(*a); }
  static PW_INLINE VecF step(VecF a, VecF b, VecF sum) { return fma(a, b, sum); }
};
struct PairProduct {
  static constexpr int kStep = 2;
  // Through integers: the bits of a pair are no float.
  static PW_INLINE VecF broadcast(const float* a) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof(word));
    return bit_cast<VecF>(splat_int(word));
  }
  static PW_INLINE VecF step(VecF a, VecF b, VecF sum) {
#if defined(__AVX512BF16__) && PW_VECTOR_BYTES == 64
    return bit_cast<VecF>(
        _mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
#else
    sum = fma(low_halves(a), low_halves(b), sum);
    return fma(high_halves(a), high_halves(b), sum);
#endif
  }
};

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
