// SPDX-License-Identifier: Apache-2.0
// A vector mask as an integer. For level units only.
#pragma once

#include "kernels/common/simd.h"

namespace patchword {
namespace PW_LEVEL {

// One bit per lane of a mask.
PW_INLINE uint32_t lane_bits(VecI mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(bit_cast<__m512i>(mask), bit_cast<__m512i>(mask));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  return static_cast<uint32_t>(_mm256_movemask_ps(bit_cast<__m256>(mask)));
#else
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) bits |= mask[l] ? 1u << l : 0u;
  return bits;
#endif
}

}  // namespace PW_LEVEL
}  // namespace patchword
