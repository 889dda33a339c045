// SPDX-License-Identifier: Apache-2.0
// Rows of queries, keys and values in the forms that the product tiles read. For level units only.
#pragma once

#include "kernels/attention/attention_tile.h"
#include "kernels/common/transpose.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

constexpr int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
constexpr int64_t padded(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// Words of a row: floats for FloatProduct, pairs of bfloat16 as they lie in memory for PairProduct.
template <typename Element, typename Product>
struct Words {
  typedef typename Element::Storage T;
  static constexpr int kPerWord = Product::kStep;

  // Words [w, w + kLanes) of a row that has them all.
  static PW_INLINE VecF load_whole(const T* row, int64_t w) {
    if constexpr (kPerWord == 1) {
      return Element::load(row + w);
    } else {
      VecF words;
      __builtin_memcpy(&words, row + 2 * w, sizeof(words));
      return words;
    }
  }

  // The same of a row of `dim` elements, 0 behind its end.
  static PW_INLINE VecF load(const T* row, int64_t w, int64_t dim) {
    const int64_t left = dim - w * kPerWord;
    if (left >= kLanes * kPerWord) return load_whole(row, w);
    T lanes[kLanes * kPerWord] = {};
    for (int64_t i = 0; i < left; ++i) lanes[i] = row[w * kPerWord + i];
    return load_whole(lanes, 0);
  }
};

// Rows of a set, with gaps where keys take no part: row i is at rows[index ? index[i] : i].
template <typename T>
struct RowList {
  const T* rows;
  int64_t stride;
  const int32_t* index;

  PW_INLINE const T* row(int64_t i) const {
    return rows + (index == nullptr ? i : static_cast<int64_t>(index[i])) * stride;
  }
};

// Up to kLanes rows from `first` on, into lanes: panel[w * width + i] is word w of row first + i.
// Lanes without a row are 0. Floats are multiplied by `factor`.
template <typename Element, typename Product>
__attribute__((noinline)) void pack_lanes_of(const RowList<typename Element::Storage>& list,
                                             int64_t first, int64_t count, int64_t dim,
                                             float factor, int64_t width, float* panel) {
  typedef Words<Element, Product> W;
  const typename Element::Storage* rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = i < count ? list.row(first + i) : nullptr;
  const int64_t words = ceil_div(dim, W::kPerWord);
  for (int64_t w = 0; w < words; w += kLanes) {
    VecF block[kLanes];
    if (count == kLanes && (w + kLanes) * W::kPerWord <= dim) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) block[i] = W::load_whole(rows[i], w);
    } else {
#pragma GCC unroll 1
      for (int i = 0; i < kLanes; ++i) block[i] = i < count ? W::load(rows[i], w, dim) : VecF{};
    }
    transpose(block);
    const int n = words - w < kLanes ? static_cast<int>(words - w) : kLanes;
    for (int j = 0; j < n; ++j) {
      store(panel + (w + j) * width, W::kPerWord == 1 ? block[j] * splat(factor) : block[j]);
    }
  }
}

// All rows as groups of kLanes: [group][word][kLanes].
template <typename Element, typename Product>
void pack_groups(const RowList<typename Element::Storage>& list, int64_t count, int64_t dim,
                 float* panels) {
  const int64_t words = ceil_div(dim, Product::kStep);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    pack_lanes_of<Element, Product>(list, i, n, dim, 1.0f, kLanes, panels + i * words);
  }
}

// One row's elements [d, d + kLanes) next to those of the row behind it, as pairs.
template <typename Element>
PW_INLINE VecF interleaved(const typename Element::Storage* row,
                           const typename Element::Storage* next, int64_t d, int64_t dim) {
  const int64_t left = dim - d;
  const int n = left < kLanes ? static_cast<int>(left) : kLanes;
  typename Element::Storage low[kLanes] = {}, high[kLanes] = {};
  for (int i = 0; i < n; ++i) low[i] = row[d + i];
  if (next != nullptr) {
    for (int i = 0; i < n; ++i) high[i] = next[d + i];
  }
  VecHalf a, b;
  __builtin_memcpy(&a, low, sizeof(a));
  __builtin_memcpy(&b, high, sizeof(b));
  return bit_cast<VecF>(__builtin_convertvector(a, VecU) |
                        (__builtin_convertvector(b, VecU) << 16));
}

// All rows in slices of kRows elements: [d / kRows][step][kRows], a step being one row, or for
// pairs two. `steps` is the length of a slice. The last slices are filled up to kLanes with 0.
template <typename Element, typename Product>
void pack_slices(const RowList<typename Element::Storage>& list, int64_t count, int64_t dim,
                 int64_t steps, float* panels) {
  for (int64_t s = 0; s < ceil_div(count, Product::kStep); ++s) {
    const typename Element::Storage* row = list.row(s * Product::kStep);
    for (int64_t d = 0; d < dim; d += kLanes) {
      VecF values;
      if constexpr (Product::kStep == 1) {
        values = Words<Element, Product>::load(row, d, dim);
      } else {
        values =
            interleaved<Element>(row, 2 * s + 1 < count ? list.row(2 * s + 1) : nullptr, d, dim);
      }
      float lanes[kLanes];
      store(lanes, values);
      for (int part = 0; part < kLanes; part += kRows) {
        __builtin_memcpy(panels + ((d + part) / kRows * steps + s) * kRows, lanes + part,
                         kRows * sizeof(float));
      }
    }
  }
}

// The block [dim][kBlockQueries] with `count` queries in lanes, each lane times its factor, as
// rows.
template <typename Element>
__attribute__((noinline)) void store_rows(const float* block, const float* factors, int64_t count,
                                          int64_t dim, typename Element::Storage* out,
                                          int64_t out_stride) {
  for (int64_t q = 0; q < count; q += kLanes) {
    const VecF factor = load(factors + q);
    const int rows = count - q < kLanes ? static_cast<int>(count - q) : kLanes;
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int n = dim - d < kLanes ? static_cast<int>(dim - d) : kLanes;
      VecF square[kLanes];
      // Rows behind `dim` belong to the block too; what they hold is not stored.
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j)
        square[j] = load(block + (d + j) * kBlockQueries + q) * factor;
      transpose(square);
      typename Element::Storage* target = out + q * out_stride + d;
      for (int i = 0; i < rows; ++i, target += out_stride) {
        if (n == kLanes) {
          Element::store(target, square[i]);
        } else {
          store_tail<Element>(target, square[i], n);
        }
      }
    }
  }
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
