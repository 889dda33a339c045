// SPDX-License-Identifier: Apache-2.0
// Sixteen sorted values per lane: a sorting network, and the merge that keeps the best sixteen.
//
// Included by level units only. Keys order like the floats they stand for; NaN is below everything.
#pragma once

#include "kernels/common/simd.h"

namespace patchword {
namespace PW_LEVEL {

constexpr int kList = 16;
constexpr int32_t kLowestKey = static_cast<int32_t>(0x80000000u);
constexpr int32_t kHighestKey = 0x7fffffff;

PW_INLINE VecI order_keys(VecF value) {
  const VecI bits = bit_cast<VecI>(value + 0.0f);  // -0 becomes +0
  const VecI key = bits ^ ((bits >> 31) & 0x7fffffff);
  return select(value == value, key, splat_int(kLowestKey));
}

// The lowest key comes back as NaN, which it stands for.
PW_INLINE VecF values_of(VecI key) { return bit_cast<VecF>(key ^ ((key >> 31) & 0x7fffffff)); }

PW_INLINE VecI larger(VecI a, VecI b) { return a > b ? a : b; }
PW_INLINE VecI smaller(VecI a, VecI b) { return a < b ? a : b; }

template <bool kDescending>
PW_INLINE void order_pair(VecI& a, VecI& b) {
  const VecI high = larger(a, b), low = smaller(a, b);
  a = kDescending ? high : low;
  b = kDescending ? low : high;
}

// Batcher's odd-even merge of every kStep-th of kCount keys from kFirst on.
template <int kFirst, int kCount, int kStep>
PW_INLINE void merge_halves(VecI (&keys)[kList]) {
  if constexpr (2 * kStep < kCount) {
    merge_halves<kFirst, kCount, 2 * kStep>(keys);
    merge_halves<kFirst + kStep, kCount, 2 * kStep>(keys);
#pragma GCC unroll 16
    for (int i = kFirst + kStep; i + kStep < kFirst + kCount; i += 2 * kStep) {
      order_pair<true>(keys[i], keys[i + kStep]);
    }
  } else {
    order_pair<true>(keys[kFirst], keys[kFirst + kStep]);
  }
}

// Largest first: 63 exchanges.
template <int kFirst = 0, int kCount = kList>
PW_INLINE void sort(VecI (&keys)[kList]) {
  if constexpr (kCount > 1) {
    sort<kFirst, kCount / 2>(keys);
    sort<kFirst + kCount / 2, kCount / 2>(keys);
    merge_halves<kFirst, kCount, 1>(keys);
  }
}

// Sorted lists of both sides, and what sixteen more keys per lane do to them. Not inlined: the
// networks are long, and every element type would carry its own.
struct Lists {
  VecI top[kList], bottom[kList];
};

// Keeps in `list` the sixteen that come first of both; `fresh` is sorted largest first, `list` in
// its own direction. Opposite ends are compared, which leaves a bitonic sequence to be sorted.
template <bool kDescending>
PW_INLINE void merge(VecI (&list)[kList], const VecI (&fresh)[kList]) {
#pragma GCC unroll 16
  for (int i = 0; i < kList; ++i) {
    list[i] = kDescending ? larger(list[i], fresh[kList - 1 - i]) : smaller(list[i], fresh[i]);
  }
#pragma GCC unroll 4
  for (int step = kList / 2; step > 0; step /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kList; ++i) {
      if ((i & step) == 0) order_pair<kDescending>(list[i], list[i + step]);
    }
  }
}

namespace {

__attribute__((noinline)) void absorb_top(Lists& lists, VecI (&keys)[kList]) {
  sort(keys);
  merge<true>(lists.top, keys);
}

__attribute__((noinline)) void absorb_bottom(Lists& lists, VecI (&keys)[kList]) {
  sort(keys);
  merge<false>(lists.bottom, keys);
}

__attribute__((noinline)) void absorb_both(Lists& lists, VecI (&keys)[kList]) {
  sort(keys);
  merge<true>(lists.top, keys);
  merge<false>(lists.bottom, keys);
}

}  // namespace

}  // namespace PW_LEVEL
}  // namespace patchword
