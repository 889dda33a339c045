// SPDX-License-Identifier: Apache-2.0
// Storage types for half precision and bfloat16, with exact conversions for CPU and CUDA code.
//
// Everything here has internal linkage and no member functions on purpose: the same header is
// compiled under different -m flags, and a shared inline symbol could let the linker pick the
// AVX-512 copy for a machine that has none. The integer code is branch-free so that it vectorises,
// uses no denormal operand (it is right under flush-to-zero) and rounds to nearest, ties to even.
// NaN stays NaN with its sign; the payload is unspecified.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "kernels/common/portable.h"

namespace patchword {

// IEEE 754 binary16: 1 sign, 5 exponent, 10 fraction bits.
struct Half {
  std::uint16_t bits;
};

// bfloat16: the upper 16 bits of a binary32.
struct BFloat16 {
  std::uint16_t bits;
};

// Reinterprets the bytes of a value as another type of the same size.
template <class To, class From>
PW_PORTABLE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of equal size");
  static_assert(std::is_trivially_copyable<To>::value && std::is_trivially_copyable<From>::value,
                "bit_cast needs trivially copyable types");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

PW_PORTABLE float to_float(float value) { return value; }

PW_PORTABLE float to_float(BFloat16 value) {
  return bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

PW_PORTABLE float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(bit_cast<__half>(value));
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  // Normal: move the exponent bias from 15 to 127; inf and NaN get the top exponent.
  const std::uint32_t normal = rest + (rest >= (31u << 23) ? (224u << 23) : (112u << 23));
  // Subnormal: 2^-14 (1 + fraction) - 2^-14 is exact and touches normal numbers only.
  const float subnormal = bit_cast<float>(rest + (113u << 23)) - bit_cast<float>(113u << 23);
  const std::uint32_t magnitude = rest < (1u << 23) ? bit_cast<std::uint32_t>(subnormal) : normal;
  return bit_cast<float>(sign | magnitude);
#endif
}

PW_PORTABLE Half float_to_half(float value) {
#if defined(__CUDA_ARCH__)
  return bit_cast<Half>(__float2half_rn(value));
#else
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the unit is 2^-24: adding 0.5 makes the adder round to exactly that unit.
  const std::uint32_t subnormal =
      bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  // Above, drop 13 bits: half a unit less one, plus the bit that decides a tie.
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  std::uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= 0x47800000u ? 0x7c00u : result;  // from 65520 on the carry did the same
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return Half{static_cast<std::uint16_t>(sign | result)};
#endif
}

PW_PORTABLE BFloat16 float_to_bfloat16(float value) {
#if defined(__CUDA_ARCH__)
  return bit_cast<BFloat16>(__float2bfloat16_rn(value));
#else
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t nan = (bits >> 16) | 0x40u;
  return BFloat16{static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
#endif
}

// Rounds a float to the storage type T (float, Half or BFloat16).
template <class T>
PW_PORTABLE T from_float(float value) {
  if constexpr (std::is_same<T, Half>::value) {
    return float_to_half(value);
  } else if constexpr (std::is_same<T, BFloat16>::value) {
    return float_to_bfloat16(value);
  } else {
    static_assert(std::is_same<T, float>::value, "from_float knows float, Half and BFloat16");
    return value;
  }
}

}  // namespace patchword
