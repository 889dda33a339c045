// SPDX-License-Identifier: Apache-2.0
// A few queries against many keys: keys in lanes for the scores, elements in lanes for the output.
// Nothing is packed, since each key is read once. For level units only.
//
// Every sum is the same chain of additions as in the form with queries in lanes, so that a query
// gets the same bits alone as among others.
#pragma once

#include "kernels/attention/attention_pack.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// More queries pay for packing the keys.
constexpr int kFewQueries = 4;

// a * b + c with one rounding. GCC splits a lone chain of these into products and sums when it
// tunes for processors that add faster than they fuse; the bits would then depend on the form.
PW_INLINE VecF fused(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return bit_cast<VecF>(
      _mm512_fmadd_ps(bit_cast<__m512>(a), bit_cast<__m512>(b), bit_cast<__m512>(c)));
#elif defined(__FMA__)
  VecF result;
  for (int i = 0; i < kVectorBytes; i += 32) {
    __m256 x, y, z;
    __builtin_memcpy(&x, reinterpret_cast<const char*>(&a) + i, 32);
    __builtin_memcpy(&y, reinterpret_cast<const char*>(&b) + i, 32);
    __builtin_memcpy(&z, reinterpret_cast<const char*>(&c) + i, 32);
    z = _mm256_fmadd_ps(x, y, z);
    __builtin_memcpy(reinterpret_cast<char*>(&result) + i, &z, 32);
  }
  return result;
#else
  return fma(a, b, c);
#endif
}

// Scores of kLanes * Groups keys from `first` on; of the last ones only `count` are meant.
// `queries` are [Queries][wide], 0 behind `dim`; `scores` are [Queries][kBlockKeys].
template <typename Element, int Queries, int Groups>
PW_INLINE void few_scores(const RowList<typename Element::Storage>& keys, int64_t first, int count,
                          int64_t dim, int64_t wide, const float* queries, float* scores) {
  typedef Words<Element, FloatProduct> W;
  const typename Element::Storage* rows[Groups * kLanes];
  for (int i = 0; i < Groups * kLanes; ++i) rows[i] = keys.row(first + (i < count ? i : 0));
  VecF sums[Groups][Queries] = {};
  for (int64_t w = 0; w < dim; w += kLanes) {
#pragma GCC unroll 2
    for (int g = 0; g < Groups; ++g) {
      VecF block[kLanes];
      if (w + kLanes <= dim) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) block[i] = W::load_whole(rows[g * kLanes + i], w);
      } else {
        for (int i = 0; i < kLanes; ++i) block[i] = W::load(rows[g * kLanes + i], w, dim);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
#pragma GCC unroll 4
        for (int q = 0; q < Queries; ++q) {
          sums[g][q] = fused(block[j], splat(queries[q * wide + w + j]), sums[g][q]);
        }
      }
    }
  }
  for (int g = 0; g < Groups; ++g) {
    for (int q = 0; q < Queries; ++q) store(scores + q * kBlockKeys + g * kLanes, sums[g][q]);
  }
}

// sums[d, d + Vectors * kLanes) of one query: what they were times `shrink`, plus the values of
// `count` keys from `first` on, times their probabilities.
template <typename Element, int Vectors>
PW_INLINE void few_values(const RowList<typename Element::Storage>& values, int64_t first,
                          int count, int64_t d, int64_t dim, const float* probabilities,
                          float shrink, float* sums) {
  typedef Words<Element, FloatProduct> W;
  VecF totals[Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) totals[v] = load(sums + d + v * kLanes) * splat(shrink);
  for (int j = 0; j < count; ++j) {
    const typename Element::Storage* row = values.row(first + j);
    const VecF p = splat(probabilities[j]);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const VecF x = Vectors == 1 ? W::load(row, d, dim) : W::load_whole(row, d + v * kLanes);
      totals[v] = fused(x, p, totals[v]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) store(sums + d + v * kLanes, totals[v]);
}

// Scores of one query in place to probabilities; updates its maximum and the sum of them, and
// returns by what earlier sums shrink.
PW_INLINE float few_softmax(int count, float* scores, float& top, float& total) {
  const float before = top;
  const int whole = count - count % kLanes;
  VecF most = splat(top);
  for (int j = 0; j < whole; j += kLanes) most = larger(load(scores + j), most);
  for (int i = 0; i < kLanes; ++i) top = most[i] > top ? most[i] : top;
  for (int j = whole; j < count; ++j) top = scores[j] > top ? scores[j] : top;
  const Exponential exponential;
  const float shrink = exponential(splat(before - top))[0];
  for (int j = 0; j < count; j += kLanes) {
    store(scores + j, exponential(load(scores + j) - splat(top)));
  }
  float sum = total * shrink;
  for (int j = 0; j < count; ++j) sum += scores[j];
  total = sum;
  return shrink;
}

// Queries [Queries][wide] against `count` keys: sums [Queries][wide], and per query its maximum
// and the sum of its probabilities. `scores` holds [Queries][kBlockKeys].
template <typename Element, int Queries>
__attribute__((noinline)) void attend_few(const RowList<typename Element::Storage>& keys,
                                          const RowList<typename Element::Storage>& values,
                                          int64_t count, int64_t dim, const float* queries,
                                          float* scores, float* sums, float (&top)[kFewQueries],
                                          float (&total)[kFewQueries]) {
  const int64_t wide = padded(dim, kLanes);
  for (int q = 0; q < Queries; ++q) {
    // Not -inf: a block of keys with scores of -inf must not make NaN of those to come.
    top[q] = -__FLT_MAX__;
    total[q] = 0.0f;
    for (int64_t d = 0; d < wide; d += kLanes) store(sums + q * wide + d, VecF{});
  }
  for (int64_t k0 = 0; k0 < count; k0 += kBlockKeys) {
    const int n = count - k0 < kBlockKeys ? static_cast<int>(count - k0) : kBlockKeys;
    int j = 0;
    for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
      few_scores<Element, Queries, 2>(keys, k0 + j, 2 * kLanes, dim, wide, queries, scores + j);
    }
    for (; j < n; j += kLanes) {
      few_scores<Element, Queries, 1>(keys, k0 + j, n - j, dim, wide, queries, scores + j);
    }
    for (int q = 0; q < Queries; ++q) {
      float* mine = scores + q * kBlockKeys;
      float* to = sums + q * wide;
      const float shrink = few_softmax(n, mine, top[q], total[q]);
      int64_t d = 0;
      for (; d + 8 * kLanes <= dim; d += 8 * kLanes) {
        few_values<Element, 8>(values, k0, n, d, dim, mine, shrink, to);
      }
      if (d + 4 * kLanes <= dim) {
        few_values<Element, 4>(values, k0, n, d, dim, mine, shrink, to);
        d += 4 * kLanes;
      }
      if (d + 2 * kLanes <= dim) {
        few_values<Element, 2>(values, k0, n, d, dim, mine, shrink, to);
        d += 2 * kLanes;
      }
      for (; d < dim; d += kLanes) {
        few_values<Element, 1>(values, k0, n, d, dim, mine, shrink, to);
      }
    }
  }
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
