// SPDX-License-Identifier: Apache-2.0
// What a candidate must exceed to come before the true one: shared by the CPU levels and CUDA.
#pragma once

#include <cstdint>

#include "kernels/common/portable.h"
#include "kernels/retrieval_ranks/retrieval_ranks.h"

namespace patchword {

// A candidate with score s and index i comes first when s > score, or s == score and i > bound.
// The true item itself is counted with `pessimistic` ties and taken off again.
struct RankLimit {
  float score;
  int32_t bound;
  int32_t item;  // the best true item; -1: nobody is named, -2: all named have NaN for a score
};

PW_PORTABLE RankLimit nobody() { return {0.0f, 0, -1}; }

// Takes one more true item into account: the one that a sort puts first stays.
PW_PORTABLE void offer_truth(RankLimit& limit, float score, int32_t item) {
  if (score != score) {
    if (limit.item == -1) limit.item = -2;
    return;
  }
  if (limit.item < 0 || score > limit.score || (score == limit.score && item > limit.item)) {
    limit.score = score;
    limit.item = item;
  }
}

PW_PORTABLE void settle(RankLimit& limit, RankTies ties) {
  if (limit.item >= 0) {
    limit.bound = ties == RankTies::kOptimistic ? 0x7fffffff
                  : ties == RankTies::kLegacy   ? limit.item
                                                : -1;
  } else if (limit.item == -2) {
    limit.score = -__builtin_inff();  // NaN comes last: every number is before it
    limit.bound = -1;
  } else {
    limit.score = __builtin_inff();
    limit.bound = 0x7fffffff;
  }
}

// The rank from the number of candidates that came first.
PW_PORTABLE int64_t rank_of(const RankLimit& limit, RankTies ties, int64_t counted) {
  if (limit.item == -1) return -1;
  return limit.item >= 0 && ties == RankTies::kPessimistic ? counted - 1 : counted;
}

}  // namespace patchword
