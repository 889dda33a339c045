// SPDX-License-Identifier: Apache-2.0
#include "kernels/correspondence/return_trip.h"

#include <cmath>
#include <limits>

namespace patchword {
namespace {

float distance_between(const ReturnTripParams& p, int64_t pair, int64_t i, int64_t end) {
  const float* points = p.points + pair * p.point_stride[0];
  const float* from = points + i * p.point_stride[1];
  const float* to = points + end * p.point_stride[1];
  const float dx = to[0] - from[0], dy = to[p.point_stride[2]] - from[p.point_stride[2]];
  return std::sqrt(dx * dx + dy * dy);
}

}  // namespace

void return_trip(const ReturnTripParams& p) {
  for (int64_t pair = 0; pair < p.pairs; ++pair) {
    for (int64_t i = 0; i < p.count0; ++i) {
      const int64_t at = pair * p.count0 + i;
      const int64_t there = p.there[at];
      const int64_t end = there < 0 ? -1 : p.back[pair * p.count1 + there];
      p.ends[at] = end;
      if (p.points == nullptr) continue;
      p.distance[at] =
          end < 0 ? std::numeric_limits<float>::infinity() : distance_between(p, pair, i, end);
    }
  }
}

}  // namespace patchword
