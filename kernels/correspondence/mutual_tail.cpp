// SPDX-License-Identifier: Apache-2.0
#include "kernels/correspondence/mutual_tail.h"

#include <limits>

namespace patchword {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

// The thresholds, rounded once to the type that scores are compared in.
struct Rule {
  bool l2, has_threshold, has_ratio, allow_single, zero_passes;
  float threshold;
  float factor;  // the ratio, squared for distances, since scores are their negated squares

  explicit Rule(const MutualParams& p)
      : l2(p.metric == MatchMetric::kL2),
        has_threshold(p.has_threshold),
        has_ratio(p.has_ratio),
        allow_single(p.allow_single),
        zero_passes(p.ratio >= 1.0),
        threshold(static_cast<float>(p.threshold)),
        factor(static_cast<float>(l2 ? p.ratio * p.ratio : p.ratio)) {}

  bool keeps(const MutualSide& side, int64_t at) const {
    const float best = side.scores[at];
    if (has_threshold && !(best > threshold)) return false;
    if (!has_ratio) return true;
    const float second = side.second[at];
    if (second == kNone) return allow_single;
    if (!l2) return best > 0.0f && second <= factor * best;
    // Two zero distances have ratio 1.
    return second == 0.0f ? zero_passes : -best <= factor * -second;
  }
};

}  // namespace

void mutual_tail(const MutualParams& p) {
  const Rule rule(p);
  for (int64_t pair = 0; pair < p.pairs; ++pair) {
    const int64_t start0 = pair * p.side0.count, start1 = pair * p.side1.count;
    // Side 1 still holds its candidates while side 0 is confirmed, then follows side 0.
    for (int64_t i = 0; i < p.side0.count; ++i) {
      int64_t& match = p.side0.indices[start0 + i];
      const bool confirmed = match >= 0 && p.side1.indices[start1 + match] == i &&
                             rule.keeps(p.side0, start0 + i) && rule.keeps(p.side1, start1 + match);
      if (!confirmed) {
        match = -1;
        p.side0.scores[start0 + i] = kNone;
      }
    }
    for (int64_t j = 0; j < p.side1.count; ++j) {
      int64_t& match = p.side1.indices[start1 + j];
      const bool confirmed = match >= 0 && p.side0.indices[start0 + match] == j;
      p.side1.scores[start1 + j] = confirmed ? p.side0.scores[start0 + match] : kNone;
      if (!confirmed) match = -1;
    }
  }
}

}  // namespace patchword
