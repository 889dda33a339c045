// SPDX-License-Identifier: Apache-2.0
// How many candidates come before the true one: the contract shared by CPU, CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

// What a candidate with exactly the true one's score does.
enum class RankTies : int32_t {
  kOptimistic = 0,   // comes after it
  kPessimistic = 1,  // comes before it
  kLegacy = 2,       // comes before it if its index is larger: a reversed stable ascending sort
};

struct RetrievalRanksParams {
  const void* queries;   // [N, D], any strides, dtype `dtype`
  const void* gallery;   // [M, D], any strides, dtype `dtype`
  const int64_t* truth;  // [N, P], contiguous; an index outside [0, M) names nobody
  int64_t* ranks0;       // [N]: candidates before the best true one; -1 where none is named
  int64_t* ranks1;       // [M]: the same for the other direction; or null
  void* workspace;       // the bytes that the workspace function asks for
  DType dtype;
  RankTies ties;
  int64_t rows, columns, dim, truths;  // N, M, D, P
  int64_t queries_stride[2], gallery_stride[2];
};

// The same from scores that are there already, one direction.
struct ScoreRanksParams {
  const void* scores;  // [N, M], neighbours of a row contiguous, dtype `dtype`
  const int64_t* truth;
  int64_t* ranks;
  DType dtype;
  RankTies ties;
  int64_t rows, columns, truths;
  int64_t row_stride;
};

struct RetrievalRanksTable {
  // None allocates. `threads` is what the workspace function was asked with.
  Status (*from_embeddings)(const RetrievalRanksParams& params, int threads);
  Status (*from_scores)(const ScoreRanksParams& params, int threads);
  int64_t (*workspace)(const RetrievalRanksParams& params, int threads);
};

const RetrievalRanksTable& retrieval_ranks_table();

}  // namespace patchword
