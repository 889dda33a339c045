// SPDX-License-Identifier: Apache-2.0
// From the best candidates of both sides to one-to-one matches, on the CPU.
#pragma once

#include "kernels/correspondence/correspondence.h"

namespace patchword {

// Best candidates of one side: all of [P, count], contiguous, as MatchTable::best writes them.
struct MutualSide {
  int64_t* indices;     // -1 for none; overwritten by the partner, or -1
  float* scores;        // overwritten by the score of the match, or -inf
  const float* second;  // null without a ratio test
  int64_t count;
};

struct MutualParams {
  MutualSide side0, side1;
  int64_t pairs;
  MatchMetric metric;
  bool has_threshold, has_ratio;
  double threshold;   // keep scores above it
  double ratio;       // keep what stands out from its second-best this far
  bool allow_single;  // whether a lone candidate passes the ratio test
};

// Keeps i -> j where j -> i too and both pass threshold and ratio test; in place. Both sides get
// the score of side 0. The same bits as the torch form, which compares in float32.
void mutual_tail(const MutualParams& params);

}  // namespace patchword
