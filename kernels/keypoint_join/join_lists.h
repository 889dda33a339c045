// SPDX-License-Identifier: Apache-2.0
// Ids of an image and where to look an id up in them: shared by the CPU levels and CUDA.
#pragma once

#include <cstdint>

#include "kernels/common/portable.h"
#include "kernels/keypoint_join/keypoint_join.h"

namespace patchword {

struct IdList {
  const int64_t* ids;
  int64_t count;
};

PW_PORTABLE IdList no_ids() { return {nullptr, 0}; }

// Offsets that make no sense give a shorter list, never a read outside `ids`.
PW_PORTABLE IdList ids_of(const KeypointJoinParams& p, int64_t image) {
  if (image < 0 || image >= p.images) return no_ids();
  const int64_t first = p.offsets[image], last = p.offsets[image + 1];
  const int64_t begin = first < 0 ? 0 : (first > p.total ? p.total : first);
  const int64_t end = last < begin ? begin : (last > p.total ? p.total : last);
  return {p.ids + begin, end - begin};
}

// The first place in [low, high) whose id is not below `id`.
PW_PORTABLE int64_t lower_bound(const int64_t* ids, int64_t low, int64_t high, int64_t id) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (ids[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace patchword
