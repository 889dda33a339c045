// SPDX-License-Identifier: Apache-2.0
// Rows rounded to small integers, packed for products of bytes. For level units only.
//
// Instructions multiply unsigned bytes by signed ones: a row of queries x becomes A + kBias, one of
// the gallery B. What the bias adds, kBias times the sum of B, is known beforehand.
//
// Where four products are added into 32 bits at once, |A| and |B| are at most 127. Where two are
// added into 16 bits with saturation, they are at most 90: 2 * 181 * 90 < 2^15. There the products
// of one group of depth are then added in 16 bits, the first half of the group in the low, the
// second in the high half of a lane. Those sums may wrap on the way; the result is right if it
// fits, and by Cauchy-Schwarz it does when the norms of half groups are at most 181. The scale is
// chosen for 177, to which rounding adds at most sqrt(8).
#pragma once

#include "kernels/retrieval_ranks/score_block.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace patchword {
namespace PW_LEVEL {
namespace {

#if defined(__AVX512VNNI__)
constexpr bool kWideSums = true;
#elif defined(__AVX512BW__) || (defined(__AVX2__) && PW_VECTOR_BYTES == 32)
constexpr bool kWideSums = false;
#else
constexpr bool kWideSums = true;  // the plain form below
#endif

constexpr int64_t kGroup = 4 * kLanes;  // elements of depth: kLanes words of four bytes
constexpr int32_t kMost = kWideSums ? 127 : 90;
constexpr int32_t kBias = kMost + 1;
constexpr float kMostHalfNorm = 177.0f;

constexpr int64_t groups_of(int64_t depth) { return panel_count(depth, kGroup); }

// acc += the four products of bytes, u unsigned and b signed, of every 32-bit lane: in one sum, or
// in two sums of 16 bits.
PW_INLINE void add_products(VecI& acc, VecI u, VecI b) {
#if defined(__AVX512VNNI__)
  acc = bit_cast<VecI>(
      _mm512_dpbusd_epi32(bit_cast<__m512i>(acc), bit_cast<__m512i>(u), bit_cast<__m512i>(b)));
#elif defined(__AVX512BW__)
  acc = bit_cast<VecI>(_mm512_add_epi16(
      bit_cast<__m512i>(acc), _mm512_maddubs_epi16(bit_cast<__m512i>(u), bit_cast<__m512i>(b))));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  // As one piece: GCC otherwise moves the additions away from the products, and twelve products
  // and twelve sums do not fit into sixteen registers.
  VecI products;
  asm volatile("vpmaddubsw %2, %3, %1\n\tvpaddw %1, %0, %0"
               : "+x"(acc), "=&x"(products)
               : "x"(b), "x"(u));
#else
  for (int byte = 0; byte < 4; ++byte) {
    acc += ((u >> (8 * byte)) & 0xff) * ((b << (24 - 8 * byte)) >> 24);
  }
#endif
}

// The sum of products that a lane stands for.
PW_INLINE VecI lane_sum(VecI acc) {
#if defined(__AVX512BW__) && !defined(__AVX512VNNI__)
  return bit_cast<VecI>(_mm512_madd_epi16(bit_cast<__m512i>(acc), _mm512_set1_epi16(1)));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  return bit_cast<VecI>(_mm256_madd_epi16(bit_cast<__m256i>(acc), _mm256_set1_epi16(1)));
#else
  return acc;
#endif
}

// -acc, of each of its sums.
PW_INLINE VecI negated(VecI acc) {
  if constexpr (kWideSums) return -acc;
  typedef uint16_t Sums __attribute__((vector_size(PW_VECTOR_BYTES)));
  return bit_cast<VecI>(-bit_cast<Sums>(acc));
}

// A row as integers A: its factor, and upper bounds of |A| and of |factor x - A|.
// A row that cannot be screened has NaN for its error.
struct IntegerFit {
  float scale, norm, error;
};

// The largest norm of a half group of `row * scale`, squared.
template <typename Element>
float half_group_square(const MatrixRows<Element>& m, const typename Element::Storage* row,
                        float scale) {
  VecF most{};
  for (int64_t d0 = 0; d0 < m.depth; d0 += 2 * kLanes * kLanes) {
    VecF halves[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      halves[i] = VecF{};
      for (int part = 0; part < 2; ++part) {
        const int64_t d = d0 + (2 * i + part) * kLanes, left = m.depth - d;
        if (left <= 0) break;
        const VecF x =
            splat(scale) * load_row<Element>(row, m.column_stride, d,
                                             left < kLanes ? static_cast<int>(left) : kLanes);
        halves[i] = fma(x, x, halves[i]);
      }
    }
    transpose(halves);
    for (int i = 1; i < kLanes; ++i) halves[0] += halves[i];
    most = max(halves[0], most);
  }
  return reduce_max(most);
}

template <typename Element>
IntegerFit fit_row(const MatrixRows<Element>& m, int64_t index) {
  const typename Element::Storage* const row = m.data + index * m.row_stride;
  const auto read = [&](int64_t d) __attribute__((always_inline)) {
    const int64_t left = m.depth - d;
    return load_row<Element>(row, m.column_stride, d,
                             left < kLanes ? static_cast<int>(left) : kLanes);
  };
  VecF highest{};
  for (int64_t d = 0; d < m.depth; d += kLanes) highest = max(abs(read(d)), highest);
  float most = reduce_max(highest);  // NaN loses every comparison, but makes the error NaN
  if (most == 0.0f) most = 1.0f;
  // Nothing may overflow or vanish.
  if (most < 0x1p-40f || most > 0x1p40f) return {0.0f, 0.0f, __builtin_nanf("")};
  float scale = static_cast<float>(kMost) / most;
  if constexpr (!kWideSums) {
    const float norm = __builtin_sqrtf(half_group_square(m, row, scale));
    if (norm > kMostHalfNorm) scale *= kMostHalfNorm / norm;
  }
  const VecF magic = splat(12582912.0f);  // adding it rounds to an integer
  VecF squares[2] = {}, errors[2] = {};
  for (int64_t d = 0; d < m.depth; d += 2 * kLanes) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      if (d + i * kLanes >= m.depth) break;
      const VecF x = read(d + i * kLanes);
      const VecF whole = fma(x, splat(scale), magic) - magic;
      const VecF error = fma(x, splat(scale), -whole);
      squares[i] = fma(whole, whole, squares[i]);
      errors[i] = fma(error, error, errors[i]);
    }
  }
  // A thousandth more than enough for the rounding of these sums and of all that is made of them.
  return {scale, 1.001f * __builtin_sqrtf(reduce_add(squares[0] + squares[1])),
          1.001f * __builtin_sqrtf(reduce_add(errors[0] + errors[1]))};
}

// Rows [row0, row0 + Width) as words [groups * kLanes][Width]: the four bytes of word w of a group
// are its elements w, kLanes + w, 2 kLanes + w, 3 kLanes + w, plus `bias`. Missing rows are 0.
template <int Width, typename Element>
void pack_integers(const MatrixRows<Element>& m, int64_t row0, const IntegerFit* fits, int32_t bias,
                   int32_t* panel) {
  const VecF magic = splat(12582912.0f + static_cast<float>(bias));
  for (int first = 0; first < Width; first += kLanes) {
    constexpr int kRest = Width % kLanes;
    const int width = Width - first < kLanes ? Width - first : kLanes;
    for (int64_t d0 = 0; d0 < m.depth; d0 += kGroup) {
      VecF words[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t n = row0 + first + i;
        words[i] = VecF{};
        if (i >= width || n >= m.count) continue;
        const VecF scale = splat(fits[first + i].scale);
        VecI bytes[4];
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
          const int64_t d = d0 + part * kLanes, left = m.depth - d;
          const VecF x = left <= 0
                             ? VecF{}
                             : load_row<Element>(m.data + n * m.row_stride, m.column_stride, d,
                                                 left < kLanes ? static_cast<int>(left) : kLanes);
          bytes[part] = bit_cast<VecI>(fma(x, scale, magic));
        }
        words[i] = bit_cast<VecF>((bytes[0] & 0xff) | ((bytes[1] & 0xff) << 8) |
                                  ((bytes[2] & 0xff) << 16) | (bytes[3] << 24));
      }
      transpose(words);
      int32_t* const out = panel + d0 / 4 * Width + first;
      for (int w = 0; w < kLanes; ++w) {
        if (kRest == 0 || width == kLanes) {
          store(out + w * Width, bit_cast<VecI>(words[w]));
        } else {
          __builtin_memcpy(out + w * Width, &words[w], sizeof(int32_t) * kRest);
        }
      }
    }
  }
}

// Sums start at what takes the bias off again: [groups][kTileCols], or [1] with wide sums.
constexpr int64_t correction_rows(int64_t groups) { return kWideSums ? 1 : groups; }

inline void find_corrections(const int32_t* panel, int64_t groups, int32_t* corrections) {
  const int64_t rows = correction_rows(groups), steps = groups * kLanes / (rows < 1 ? 1 : rows);
  for (int64_t g = 0; g < rows; ++g) {
    for (int v = 0; v < kTileVectors; ++v) {
      VecI acc{};
      for (int64_t s = 0; s < steps; ++s) {
        add_products(acc, splat_int(static_cast<int32_t>(kBias * 0x01010101u)),
                     load(panel + (g * steps + s) * kTileCols + v * kLanes));
      }
      store(corrections + g * kTileCols + v * kLanes, negated(acc));
    }
  }
}

// acc += the products of `Steps` words of a panel of queries and one of the gallery.
template <int Steps>
PW_INLINE void add_steps(const int32_t*& a, const int32_t*& b,
                         VecI (&acc)[kTileRows][kTileVectors]) {
#pragma GCC unroll 8
  for (int s = 0; s < Steps; ++s) {
    VecI column[kTileVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) column[v] = load(b + s * kTileCols + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const VecI row = splat_int(a[s * kTileRows + r]);
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) add_products(acc[r][v], row, column[v]);
    }
  }
  a += Steps * kTileRows;
  b += Steps * kTileCols;
}

// out[kTileRows][kTileCols] (+)= the products A B of `groups` groups of a panel of queries and one
// of the gallery. Corrections are those of the same groups, or of the whole panel with wide sums.
__attribute__((noinline)) void multiply_integers(const int32_t* a, const int32_t* b,
                                                 const int32_t* corrections, int64_t groups,
                                                 bool first, int32_t* out) {
  VecI acc[kTileRows][kTileVectors];
  const auto start = [&](const int32_t* from, int64_t pitch) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) acc[r][v] = load(from + r * pitch + v * kLanes);
    }
  };
  const auto finish = [&](bool add) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) {
        int32_t* const at = out + r * kTileCols + v * kLanes;
        const VecI sum = lane_sum(acc[r][v]);
        store(at, add ? load(at) + sum : sum);
      }
    }
  };
  if constexpr (kWideSums) {
    if (first) {
      start(corrections, 0);
    } else {
      start(out, kTileCols);
    }
    for (int64_t s = 0; s < groups * kLanes; s += 4) add_steps<4>(a, b, acc);
    finish(false);
  } else {
    for (int64_t g = 0; g < groups; ++g) {
      start(corrections + g * kTileCols, 0);
      for (int s = 0; s < kLanes; s += 4) add_steps<4>(a, b, acc);
      finish(!first || g > 0);
    }
  }
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
