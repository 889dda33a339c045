// SPDX-License-Identifier: Apache-2.0
// Similarity of patches to queries and what is made of it: the contract shared by the CPU levels,
// CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

constexpr int kMaxTopK = 32;

// z[b, n, c] = scale * <x, w> / (max(|x|, eps) max(|w|, eps)) + bias[c]; without the norms unless
// `cosine`. Prompts c are reduced to classes when there are groups. Outputs that are null are not
// wanted; the others are written whole. Sizes: B batch, N num_patches, D dim, C num_queries,
// G num_classes (C without groups), k top_k.
struct PatchSimilarityParams {
  const void* patches;  // [B, N, D], any strides, dtype `dtype`
  const void* queries;  // [C, D] or [B, C, D], any strides, dtype `query_dtype`
  // CPU: what `pack` wrote for this level, or null. CUDA: null.
  const float* packed;
  const float* scale;         // one value, or null for `scale_value`
  const float* bias;          // [C], or null for `bias_value`
  const uint8_t* class_mask;  // [C] or [B, C], 0 = excluded; null: none is
  const int64_t*
      group_order;  // [C]: prompts sorted by class, ascending within one; null: no groups
  const int64_t* group_offsets;  // [G + 1] into group_order
  void* logits;                  // [B, G, N], or [B, N, G] when channels_last; dtype `dtype`
  void* softmax;                 // as logits
  void* sigmoid;                 // as logits
  float* topk_values;            // [B, N, k], descending
  int64_t* topk_indices;         // [B, N, k]; -1 where fewer than k classes take part
  int64_t* argmax;               // [B, N]; -1: nothing takes part, or the background wins
  float* confidence;             // [B, N], probability of the winner; goes with argmax
  float* logsumexp;              // [B, N]
  float* minimum;                // [B, G] over the patches; goes with maximum
  float* maximum;                // [B, G]
  void* workspace;               // as many bytes as the size function says, 64-byte aligned
  DType dtype, query_dtype;
  int32_t cosine, shared_queries, group_mean, channels_last, top_k, has_background;
  float scale_value, bias_value, background, eps;
  int64_t batch, num_patches, dim, num_queries, num_classes;
  int64_t patches_stride[3];  // b, n, d; elements
  int64_t queries_stride[3];  // b (0 when shared), c, d; elements
  int64_t mask_stride;        // elements between batches, 0 when shared
};

struct PatchSimilarityTable {
  // Never allocates.
  Status (*forward)(const PatchSimilarityParams& params, int threads);
  // Writes packed_size floats from `queries`; reads queries, cosine, eps, dtypes and sizes only.
  Status (*pack)(const PatchSimilarityParams& params, float* packed, int threads);
  // Floats of the packed form of the queries; it starts with one factor per query.
  int64_t (*packed_size)(const PatchSimilarityParams& params);
  // Bytes of workspace that `forward` needs.
  int64_t (*workspace)(const PatchSimilarityParams& params, int threads);
};

const PatchSimilarityTable& patch_similarity_table();

}  // namespace patchword
