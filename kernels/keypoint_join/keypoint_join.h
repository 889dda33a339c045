// SPDX-License-Identifier: Apache-2.0
// Points that two pictures share, by id, for many pairs: the contract of CPU, CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

// A join is cut into this many parts, each with its own place in the result, so that the CPU can
// walk all of them at once. CUDA puts everything into the first part.
constexpr int kJoinParts = 4;

// What an image's ids may be flagged with.
constexpr uint8_t kJoinDuplicates = 1;  // an id occurs again: its first occurrence is joined
constexpr uint8_t kJoinUnsorted = 2;    // ids descend somewhere: its joins mean nothing

struct KeypointJoinParams {
  const int64_t* ids;      // [T], ascending within each image
  const int64_t* offsets;  // [I + 1]: image i has ids [offsets[i], offsets[i + 1])
  const int64_t* pairs;    // [P, 2] images; a pair with one outside [0, I) is empty
  int64_t total, images, pair_count;
};

struct KeypointJoinCountParams {
  KeypointJoinParams join;
  int64_t* counts;  // [P, kJoinParts]
  uint8_t* flags;   // [I]
};

struct KeypointJoinFillParams {
  KeypointJoinParams join;
  const uint8_t* flags;   // [I], from the count
  const int64_t* starts;  // [P * kJoinParts + 1], prefix sums of the counts
  int64_t* rows0;         // [capacity], rows within the first image; -1 behind the last match
  int64_t* rows1;         // [capacity]
  int64_t capacity;       // matches that come after it are dropped
};

struct KeypointJoinTable {
  // Neither allocates.
  Status (*count)(const KeypointJoinCountParams& params, int threads);
  Status (*fill)(const KeypointJoinFillParams& params, int threads);
};

const KeypointJoinTable& keypoint_join_table();

}  // namespace patchword
