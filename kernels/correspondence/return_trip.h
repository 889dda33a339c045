// SPDX-License-Identifier: Apache-2.0
// Where set 0 comes back to through its nearest neighbours in set 1, on the CPU.
#pragma once

#include <cstdint>

namespace patchword {

struct ReturnTripParams {
  const int64_t* there;  // [P, count0] places in set 1, -1 for none
  const int64_t* back;   // [P, count1] places in set 0, -1 for none
  int64_t pairs, count0, count1;
  int64_t* ends;            // [P, count0], -1 where either step leads nowhere
  const float* points;      // [P, count0, 2], or null
  int64_t point_stride[3];  // pair, row, coordinate
  float* distance;          // [P, count0] from each point to that of its end, inf for none
};

void return_trip(const ReturnTripParams& params);

}  // namespace patchword
