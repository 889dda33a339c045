// SPDX-License-Identifier: Apache-2.0
// What is made of the logits of kLanes patches while they are in L1. For level units only.
#pragma once

#include "kernels/common/simd.h"
#include "kernels/common/transpose.h"
#include "kernels/patch_similarity/patch_similarity.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kInfinity = __builtin_inff();

PW_INLINE VecF exp(VecF x) { return exp2(x * splat(kLog2E)); }

// Logits of kLanes neighbouring patches: class c lies at z + c * step.
struct Column {
  float* z;
  int64_t step;
  int64_t classes;
  const uint8_t* take_part;  // per class, or null when all do
  int64_t batch, first;      // the patches are [first, first + count) of this batch entry
  int count;

  PW_INLINE VecF at(int64_t c) const { return load(z + c * step); }
  PW_INLINE bool excluded(int64_t c) const { return take_part != nullptr && take_part[c] == 0; }
};

// out[class, patch] = value(class) in the layout that the caller asked for.
template <typename Element, typename Value>
PW_INLINE void write_map(const PatchSimilarityParams& p, const Column& column, void* map,
                         Value value) {
  typedef typename Element::Storage T;
  const int64_t classes = column.classes;
  if (!p.channels_last) {
    T* out = static_cast<T*>(map) + column.batch * classes * p.num_patches + column.first;
    for (int64_t c = 0; c < classes; ++c, out += p.num_patches) {
      if (column.count == kLanes) {
        Element::store(out, value(c));
      } else {
        store_tail<Element>(out, value(c), column.count);
      }
    }
    return;
  }
  T* out = static_cast<T*>(map) + (column.batch * p.num_patches + column.first) * classes;
  int64_t c0 = 0;
  VecF block[kLanes];
  for (; c0 + kLanes <= classes; c0 += kLanes) {
    for (int j = 0; j < kLanes; ++j) block[j] = value(c0 + j);
    transpose(block);
    for (int i = 0; i < column.count; ++i) Element::store(out + i * classes + c0, block[i]);
  }
  if (const int n = static_cast<int>(classes - c0); n > 0) {
    for (int j = 0; j < kLanes; ++j) block[j] = j < n ? value(c0 + j) : VecF{};
    transpose(block);
    for (int i = 0; i < column.count; ++i) store_tail<Element>(out + i * classes + c0, block[i], n);
  }
}

// Best class per lane; -1 where none takes part, holds a number, or beats the background.
struct Winner {
  VecF value;
  VecI index;
};

PW_INLINE Winner find_winner(const PatchSimilarityParams& p, const Column& column) {
  Winner best{splat(-kInfinity), splat_int(-1)};
  for (int64_t c = 0; c < column.classes; ++c) {
    if (column.excluded(c)) continue;
    const VecF z = column.at(c);
    // A first candidate of -inf wins over nothing.
    const VecI better = (z > best.value) | ((best.index < 0) & (z == z));
    best.index = select(better, splat_int(static_cast<int32_t>(c)), best.index);
    best.value = select(better, z, best.value);
  }
  if (p.has_background) {
    const VecI better = splat(p.background) > best.value;
    best.index = select(better, splat_int(-1), best.index);
    best.value = select(better, splat(p.background), best.value);
  }
  return best;
}

PW_INLINE VecF find_maximum(const PatchSimilarityParams& p, const Column& column) {
  VecF best = splat(p.has_background ? p.background : -kInfinity);
  for (int64_t c = 0; c < column.classes; ++c) {
    if (!column.excluded(c)) best = max(column.at(c), best);
  }
  return best;
}

// `probability` is the winner's: its exponential is 1, so the inverse of the sum.
PW_INLINE void write_winner(const PatchSimilarityParams& p, const Column& column, VecI winner,
                            VecF probability) {
  bool anything = p.has_background != 0 || (column.take_part == nullptr && column.classes > 0);
  for (int64_t c = 0; !anything && c < column.classes; ++c) anything = !column.excluded(c);
  const int64_t row = column.batch * p.num_patches + column.first;
  for (int i = 0; i < column.count; ++i) {
    p.argmax[row + i] = winner[i];
    p.confidence[row + i] = anything ? probability[i] : 0.0f;
  }
}

// Insertion into sorted lane-wise lists; a class only enters above what stands there already, so
// that the lower index stays first among equals.
PW_INLINE void write_topk(const PatchSimilarityParams& p, const Column& column) {
  VecF values[kMaxTopK];
  VecI indices[kMaxTopK];
  const int k = p.top_k;
  for (int r = 0; r < k; ++r) {
    values[r] = splat(-kInfinity);
    indices[r] = splat_int(-1);
  }
  for (int64_t c = 0; c < column.classes; ++c) {
    if (column.excluded(c)) continue;
    VecF z = column.at(c);
    VecI index = splat_int(static_cast<int32_t>(c));
    const VecI enters = (z > values[k - 1]) | ((indices[k - 1] < 0) & (z == z));
    if (!any(enters)) continue;
    VecI above{};
    for (int r = 0; r < k; ++r) {
      // Below the place of entry everything moves down by one, equal or not.
      above |= (z > values[r]) | ((indices[r] < 0) & (z == z));
      const VecF value = values[r];
      const VecI at = indices[r];
      values[r] = select(above, z, value);
      indices[r] = select(above, index, at);
      z = select(above, value, z);
      index = select(above, at, index);
    }
  }
  const int64_t row = (column.batch * p.num_patches + column.first) * k;
  for (int r = 0; r < k; ++r) {
    for (int i = 0; i < column.count; ++i) {
      p.topk_values[row + i * k + r] = values[r][i];
      p.topk_indices[row + i * k + r] = indices[r][i];
    }
  }
}

// Running extremes over the patches, one pair per class; NaN never wins.
PW_INLINE void update_extremes(const Column& column, float* minimum, float* maximum) {
  for (int64_t c = 0; c < column.classes; ++c) {
    float lanes[kLanes];
    store(lanes, column.at(c));
    float low = minimum[c], high = maximum[c];
    for (int i = 0; i < column.count; ++i) {
      low = lanes[i] < low ? lanes[i] : low;
      high = lanes[i] > high ? lanes[i] : high;
    }
    minimum[c] = low;
    maximum[c] = high;
  }
}

// All wanted outputs of one column. Overwrites z when exponentials are needed.
template <typename Element>
void finish_column(const PatchSimilarityParams& p, const Column& column, float* minimum,
                   float* maximum) {
  if (p.logits) {
    write_map<Element>(p, column, p.logits, [&](int64_t c) { return column.at(c); });
  }
  if (p.minimum) update_extremes(column, minimum, maximum);
  if (p.sigmoid) {
    write_map<Element>(p, column, p.sigmoid, [&](int64_t c) {
      return column.excluded(c) ? VecF{} : splat(1.0f) / (splat(1.0f) + exp(-column.at(c)));
    });
  }
  if (p.topk_values) write_topk(p, column);
  if (!p.softmax && !p.argmax && !p.logsumexp) return;

  Winner winner{};
  if (p.argmax) {
    winner = find_winner(p, column);
  } else {
    winner.value = find_maximum(p, column);
  }
  // As torch does: an infinite maximum is not subtracted, so that a row of -inf has the
  // log-sum-exp -inf, while its softmax is NaN.
  const VecI finite = abs(winner.value) < splat(kInfinity);
  const VecF shift = select(finite, winner.value, VecF{});
  VecF sum{};
  for (int64_t c = 0; c < column.classes; ++c) {
    if (column.excluded(c)) continue;
    const VecF e = exp(column.at(c) - shift);
    store(column.z + c * column.step, e);
    sum += e;
  }
  if (p.has_background) sum += exp(splat(p.background) - shift);
  if (p.logsumexp) {
    float* out = p.logsumexp + column.batch * p.num_patches + column.first;
    for (int i = 0; i < column.count; ++i) out[i] = shift[i] + __builtin_logf(sum[i]);
  }
  const VecF inverse = select(finite, splat(1.0f) / sum, splat(__builtin_nanf("")));
  if (p.argmax) write_winner(p, column, winner.index, inverse);
  if (p.softmax) {
    write_map<Element>(p, column, p.softmax, [&](int64_t c) {
      return column.excluded(c) ? VecF{} : column.at(c) * inverse;
    });
  }
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
