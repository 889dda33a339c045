// SPDX-License-Identifier: Apache-2.0
// (value, index) in 64 bits, such that the larger integer is the larger value, and of equal values
// the lower index. The maximum is associative and commutative: any order of merging, atomics
// included, gives the same bits.
#pragma once

#include <cstdint>

#include "kernels/common/half.h"

namespace patchword {

// Orders like the float; -0 equals +0; NaN is 0, below everything.
PW_PORTABLE std::uint32_t order_key(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value + 0.0f);
  const std::uint32_t key = bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u);
  return value == value ? key : 0u;
}

PW_PORTABLE float value_of_order_key(std::uint32_t key) {
  return bit_cast<float>(key ^ ((key & 0x80000000u) != 0 ? 0x80000000u : 0xffffffffu));
}

// 0 stands for "none" and is what a NaN packs to, whatever its index.
PW_PORTABLE std::uint64_t pack_argmax(std::uint32_t key, std::uint32_t index) {
  return key == 0u ? 0u : (static_cast<std::uint64_t>(key) << 32) | (0xffffffffu - index);
}

PW_PORTABLE std::int64_t index_of_argmax(std::uint64_t packed) {
  return packed == 0 ? -1
                     : static_cast<std::int64_t>(0xffffffffu - static_cast<std::uint32_t>(packed));
}

PW_PORTABLE float value_of_argmax(std::uint64_t packed) {
  return packed == 0 ? -bit_cast<float>(0x7f800000u)
                     : value_of_order_key(static_cast<std::uint32_t>(packed >> 32));
}

}  // namespace patchword
