// SPDX-License-Identifier: Apache-2.0
// Softmax attention of one or two independent streams: the contract shared by the CPU levels, CUDA
// and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

// A call carries up to this many streams: both directions of a pair, or the ordinary and the
// value-value path.
constexpr int kAttentionMaxStreams = 2;
constexpr int64_t kAttentionMaxDim = 128;

// out = softmax(scale q k^T) v for each batch element and head, over the keys that take part; a
// query without such a key gets zeros and the log-sum-exp -inf. Keys that take no part are never
// read into a result: NaN in them does not matter. Streams may share tensors (q = k = v, or one v
// for both streams).
//
// Padded sets are [B, H, N, d]. A ragged set is [T, H, d]: batch element b owns the rows
// offsets[b] ... offsets[b + 1] of T, and its batch stride is 0. Strides are in elements and may be
// 0; the last dimension is contiguous everywhere.
struct AttentionStream {
  const void* q;
  const void* k;
  const void* v;
  void* out;   // as q; every row of every batch element is written
  float* lse;  // natural log-sum-exp of the scaled scores, one per query; may be null (forward)
  const int64_t* query_offsets;  // [B + 1], ascending from 0, in the memory of the device; or null
  const int64_t* key_offsets;    // likewise, for k and v
  const int64_t* key_lengths;    // [B]: only that many first keys take part; null: all. Padded only
  const uint8_t* key_mask;  // [B, Nk] with mask_stride, or [T] for ragged keys; 0: takes no part
  int64_t num_queries;      // Nq; ragged: T
  int64_t num_keys;         // Nk; ragged: T
  int64_t mask_stride;      // elements between batch elements; 0 for ragged keys or a shared mask
  int64_t q_stride[3];      // batch, head, row
  int64_t k_stride[3];
  int64_t v_stride[3];
  int64_t out_stride[3];
  int64_t lse_stride[3];
  float scale;
};

struct AttentionParams {
  AttentionStream streams[kAttentionMaxStreams];
  int32_t num_streams;
  DType dtype;                // of q, k, v and out
  int64_t batch, heads, dim;  // shared by the streams; dim at most kAttentionMaxDim
  void* workspace;            // as many bytes as the size function says, 64-byte aligned
  int64_t workspace_bytes;
};

// With p = softmax(scale q k^T), dp = grad_out v^T and delta = rowsum(grad_out * out) - grad_lse:
// grad_v = p^T grad_out, ds = scale p (dp - delta), grad_q = ds k, grad_k = ds^T q.
struct AttentionGradStream {
  const void* grad_out;   // as out
  const float* grad_lse;  // as lse, same strides; or null
  // As q, k and v, without overlap; every element is written, 0 for what takes no part. The caller
  // adds them up where q, k and v are the same tensor.
  void* grad_q;
  void* grad_k;
  void* grad_v;
  int64_t grad_out_stride[3];  // batch, head, row
  int64_t grad_q_stride[3];
  int64_t grad_k_stride[3];
  int64_t grad_v_stride[3];
};

struct AttentionBackwardParams {
  AttentionParams forward;  // `out` and `lse` of the streams are read
  AttentionGradStream streams[kAttentionMaxStreams];
};

struct AttentionTable {
  // Never allocates. `threads` is what the workspace function was asked with. Both are bitwise
  // repeatable, whatever the number of threads.
  Status (*forward)(const AttentionParams& params, int threads);
  Status (*backward)(const AttentionBackwardParams& params, int threads);
  // Bytes of workspace of the two.
  int64_t (*forward_workspace)(const AttentionParams& params, int threads);
  int64_t (*backward_workspace)(const AttentionBackwardParams& params, int threads);
};

const AttentionTable& attention_table();

// CUDA: pw_cuda_attention(const AttentionParams*, stream, message, size) and
// pw_cuda_attention_backward(const AttentionBackwardParams*, ...). Bytes of workspace in device
// memory: pw_cuda_attention_workspace(const AttentionParams*) and
// pw_cuda_attention_backward_workspace(const AttentionBackwardParams*), both returning int64_t from
// sizes and the current device alone, since offsets and lengths lie in device memory.

}  // namespace patchword
