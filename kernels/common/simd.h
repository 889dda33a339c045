// SPDX-License-Identifier: Apache-2.0
// One vector type per CPU level, on the compilers' vector extensions.
//
// Included by level units only (PW_LEVEL and PW_VECTOR_BYTES are set by the build). Everything here
// is always inlined and lives in the level's namespace, so that code compiled for one instruction
// set can never be linked into another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if !defined(PW_LEVEL) || !defined(PW_VECTOR_BYTES)
#error "kernels/common/simd.h belongs into level units (see cmake/CpuLevels.cmake)"
#endif

#define PW_INLINE inline __attribute__((always_inline))

namespace patchword {
namespace PW_LEVEL {

constexpr int kVectorBytes = PW_VECTOR_BYTES;
constexpr int kLanes = kVectorBytes / 4;

typedef float VecF __attribute__((vector_size(PW_VECTOR_BYTES)));
typedef int32_t VecI __attribute__((vector_size(PW_VECTOR_BYTES)));
typedef uint32_t VecU __attribute__((vector_size(PW_VECTOR_BYTES)));
typedef uint16_t VecHalf __attribute__((vector_size(PW_VECTOR_BYTES / 2)));

// x - 0 is x for every x, -0 and NaN included, so this folds to a plain broadcast.
PW_INLINE VecF splat(float x) { return x - VecF{}; }
PW_INLINE VecI splat_int(int32_t x) { return VecI{} + x; }

PW_INLINE VecI lane_numbers() {
  VecI v{};
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

template <typename To, typename From>
PW_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

PW_INLINE VecF load(const float* p) {
  VecF v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
PW_INLINE VecI load(const int32_t* p) {
  VecI v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
PW_INLINE void store(float* p, VecF v) { __builtin_memcpy(p, &v, sizeof(v)); }
PW_INLINE void store(int32_t* p, VecI v) { __builtin_memcpy(p, &v, sizeof(v)); }

// The first n lanes, the others `fill`. Only for tails: it goes through memory.
PW_INLINE VecF load_first(const float* p, int n, float fill) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < n ? p[i] : fill;
  return load(lanes);
}

// mask lanes are all ones or all zeros, as comparisons of vectors give them.
PW_INLINE VecF select(VecI mask, VecF yes, VecF no) { return mask ? yes : no; }
PW_INLINE VecI select(VecI mask, VecI yes, VecI no) { return mask ? yes : no; }
// A NaN in `a` loses, one in `b` stays: call as max(candidate, running).
PW_INLINE VecF max(VecF a, VecF b) { return a > b ? a : b; }
PW_INLINE VecF min(VecF a, VecF b) { return a < b ? a : b; }
PW_INLINE VecF abs(VecF a) { return bit_cast<VecF>(bit_cast<VecI>(a) & 0x7fffffff); }
// a * b + c; contracted to one instruction where the level has it.
PW_INLINE VecF fma(VecF a, VecF b, VecF c) { return a * b + c; }
PW_INLINE VecF to_float(VecI v) { return __builtin_convertvector(v, VecF); }

PW_INLINE bool any(VecI mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(bit_cast<__m512i>(mask), bit_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  return !_mm256_testz_si256(bit_cast<__m256i>(mask), bit_cast<__m256i>(mask));
#else
  int64_t words[kVectorBytes / 8];
  __builtin_memcpy(words, &mask, sizeof(mask));
  int64_t bits = 0;
  for (int64_t word : words) bits |= word;
  return bits != 0;
#endif
}

PW_INLINE float reduce_max(VecF v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}
PW_INLINE float reduce_min(VecF v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] < best ? v[i] : best;
  return best;
}
// Pairwise, so that the order does not depend on how the compiler unrolls.
PW_INLINE float reduce_add(VecF v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// 2^x: nearest integer, degree-6 polynomial on [-0.5, 0.5], scale by integer add on the exponent.
// Relative error below 2e-7; inputs below -126 give 0, above 127.9 infinity, NaN stays NaN.
PW_INLINE VecF exp2(VecF x) {
  const VecF limited = min(max(x, splat(-126.0f)), splat(127.9999f));
  const VecF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF shifted = limited + magic;
  const VecI n = bit_cast<VecI>(shifted) - bit_cast<VecI>(magic);
  const VecF r = limited - (shifted - magic);
  VecF p = splat(1.5403530e-4f);
  p = fma(p, r, splat(1.3333558e-3f));
  p = fma(p, r, splat(9.6181291e-3f));
  p = fma(p, r, splat(5.5504109e-2f));
  p = fma(p, r, splat(2.4022651e-1f));
  p = fma(p, r, splat(6.9314718e-1f));
  p = fma(p, r, splat(1.0f));
  VecF scaled = bit_cast<VecF>(bit_cast<VecI>(p) + (n << 23));
  scaled = select(x < splat(-126.0f), VecF{}, scaled);
  scaled = select(x > splat(127.9999f), splat(__builtin_inff()), scaled);
  return select(x == x, scaled, x);
}

// Half-precision loads and stores: bit patterns in uint16_t, kLanes at a time.
PW_INLINE VecF load_bfloat16(const uint16_t* p) {
  VecHalf h;
  __builtin_memcpy(&h, p, sizeof(h));
  return bit_cast<VecF>(__builtin_convertvector(h, VecU) << 16);
}

PW_INLINE VecF load_float16(const uint16_t* p) {
#if defined(__AVX512F__)
  return bit_cast<VecF>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__) && PW_VECTOR_BYTES == 32
  return bit_cast<VecF>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  VecHalf h;
  __builtin_memcpy(&h, p, sizeof(h));
  const VecU bits = __builtin_convertvector(h, VecU);
  const VecU sign = (bits & 0x8000u) << 16;
  const VecU magnitude = (bits & 0x7fffu) << 13;
  // Rebias by multiplying with 2^112: exact for normal and subnormal halves alike.
  VecF value = bit_cast<VecF>(magnitude) * splat(0x1p112f);
  const VecU special = bit_cast<VecU>(magnitude >= (0x7c00u << 13));
  value =
      bit_cast<VecF>((bit_cast<VecU>(value) & ~special) | ((magnitude | 0x7f800000u) & special));
  return bit_cast<VecF>(bit_cast<VecU>(value) | sign);
#endif
}

// Round to nearest even; NaN becomes a quiet NaN.
PW_INLINE void store_bfloat16(uint16_t* p, VecF v) {
  const VecU bits = bit_cast<VecU>(v);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU nan = bit_cast<VecU>(v != v);
  const VecHalf h = __builtin_convertvector((rounded & ~nan) | (0x7fc0u & nan), VecHalf);
  __builtin_memcpy(p, &h, sizeof(h));
}

PW_INLINE void store_float16(uint16_t* p, VecF v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && PW_VECTOR_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  const VecU bits = bit_cast<VecU>(v);
  const VecU sign = (bits >> 16) & 0x8000u;
  const VecU magnitude = bits & 0x7fffffffu;
  // Normal halves: rebias the exponent, then round to nearest even on the 13 dropped bits.
  const VecU normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal halves: adding 0.5 lines the bits up so that the addition itself rounds.
  const VecU small = bit_cast<VecU>(bit_cast<VecF>(magnitude) + splat(0.5f)) - 0x3f000000u;
  const VecU is_small = bit_cast<VecU>(magnitude < (113u << 23));
  const VecU is_big = bit_cast<VecU>(magnitude >= 0x477ff000u);  // rounds to infinity
  const VecU is_nan = bit_cast<VecU>(magnitude > 0x7f800000u);
  VecU half = (small & is_small) | (normal & ~is_small);
  half = (half & ~is_big) | (0x7c00u & is_big);
  half = (half & ~is_nan) | (0x7e00u & is_nan);
  const VecHalf h = __builtin_convertvector(half | sign, VecHalf);
  __builtin_memcpy(p, &h, sizeof(h));
#endif
}

// Element access for code that is templated on the stored type.
struct Float32 {
  typedef float Storage;
  static PW_INLINE VecF load(const float* p) { return PW_LEVEL::load(p); }
  static PW_INLINE void store(float* p, VecF v) { PW_LEVEL::store(p, v); }
};
struct Float16 {
  typedef uint16_t Storage;
  static PW_INLINE VecF load(const uint16_t* p) { return load_float16(p); }
  static PW_INLINE void store(uint16_t* p, VecF v) { store_float16(p, v); }
};
struct BFloat16 {
  typedef uint16_t Storage;
  static PW_INLINE VecF load(const uint16_t* p) { return load_bfloat16(p); }
  static PW_INLINE void store(uint16_t* p, VecF v) { store_bfloat16(p, v); }
};

// The first n lanes of any element type (others 0), and the first n stored.
template <typename Element>
PW_INLINE VecF load_tail(const typename Element::Storage* p, int n) {
  typename Element::Storage lanes[kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return Element::load(lanes);
}
template <typename Element>
PW_INLINE void store_tail(typename Element::Storage* p, VecF v, int n) {
  typename Element::Storage lanes[kLanes];
  Element::store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
template <typename Element>
PW_INLINE float load_scalar(const typename Element::Storage* p) {
  return load_tail<Element>(p, 1)[0];
}
template <typename Element>
PW_INLINE void store_scalar(typename Element::Storage* p, float x) {
  store_tail<Element>(p, splat(x), 1);
}

}  // namespace PW_LEVEL
}  // namespace patchword
