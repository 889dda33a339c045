// SPDX-License-Identifier: Apache-2.0
// Matching two sets of descriptors: the contract shared by the CPU levels, CUDA and the binding.
//
//   score(i, j) = scale * <a_i, b_j> + bias0[i] + bias1[j]            kDot
//   the same with a_i and b_j of length one (zero stays zero)          kCosine
//   min(0, 2 <a_i, b_j> - |a_i|^2 - |b_j|^2)                           kL2
//
// A row takes part when it lies below its pair's length and its mask is true. NaN never wins, equal
// scores go to the lowest index, and "none" is index -1 with score -inf.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

enum class MatchMetric : int32_t { kDot = 0, kCosine = 1, kL2 = 2 };

// One of the two sets. Strides are in elements.
struct MatchSide {
  const void* descriptors;  // [P, count, dim]
  const int64_t* lengths;   // [P] or null
  const uint8_t* valid;     // [P, count] bool or null
  const float* bias;        // [P, count], contiguous, or null
  int64_t count;
  int64_t stride[3];        // pair, row, column
  int64_t valid_stride[2];  // pair, row
};

struct MatchParams {
  MatchSide side0, side1;
  DType dtype;
  MatchMetric metric;
  int64_t pairs, dim;
  float scale;
  // Best: all of [P, count], contiguous; null where not wanted. Side 1 is all or nothing.
  int64_t* indices0;  // [P, count0], or [P, count0, k] when k > 1
  float* scores0;     // like indices0
  float* second0;     // second-best score, duplicates of the best included
  int64_t* indices1;
  float* scores1;
  float* second1;
  int64_t k;  // best candidates per row of side 0; 1 when side 1 or `second0` is wanted
  // Log-sum-exp of the scores over the other side: [P, count], contiguous.
  float* logsumexp0;
  float* logsumexp1;
  void* workspace;
};

constexpr int64_t kMaxTopK = 32;

struct MatchTable {
  // Bytes of workspace for either function below, with these sizes and threads.
  int64_t (*workspace)(const MatchParams& params, int threads);
  // Writes every element of the outputs that are not null. Never allocates.
  Status (*best)(const MatchParams& params, int threads);
  Status (*logsumexp)(const MatchParams& params, int threads);
};

const MatchTable& match_table();

}  // namespace patchword
