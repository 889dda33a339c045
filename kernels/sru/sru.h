// SPDX-License-Identifier: Apache-2.0
// The elementwise recurrence of a simple recurrent unit: the contract shared by CPU, CUDA, binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

enum class SruActivation : int32_t { kTanh = 0, kIdentity = 1 };
// Where the mask of the cell output acts: r (m g(c)) + (1 - r) x, or r m (g(c) - x) + x.
enum class SruDropout : int32_t { kActivation = 0, kDifference = 1 };

struct SruParams {
  const void* gates;       // u [L, B, k, d], any strides, dtype `dtype`; k is 3 or 4
  const void* highway;     // x [L, B, d], any strides, dtype `dtype`; only with k = 3
  const float* bias;       // [2 d]: forget, then reset
  const float* weight;     // [2 d]: of the previous state in the forget, then the reset gate
  const float* initial;    // c before the first step [B, d], contiguous; or null for 0
  const float* mask;       // m [B, d], contiguous; or null for 1
  const int64_t* lengths;  // [B]; or null for L
  void* out;               // h [L, B, d], or [B, d] with last_only; contiguous, dtype `dtype`
  float* last_state;       // c after the last step [B, d], contiguous
  float* states;           // c after every step [L, B, d], contiguous; or null
  DType dtype;
  SruActivation activation;
  SruDropout dropout;
  int32_t bidirectional;  // units from d / 2 on run from the last step to the first
  int32_t last_only;
  float scale_x;
  int64_t steps, batch, units, gate_count;
  int64_t gates_stride[4];    // step, sample, gate, unit; elements
  int64_t highway_stride[3];  // step, sample, unit; elements
};

struct SruBackwardParams {
  SruParams forward;       // `states` is read; out and last_state are not used
  const void* grad_out;    // like out, contiguous
  const float* grad_last;  // [B, d], contiguous
  void* grad_gates;        // [L, B, k, d], dtype `dtype`, every element written
  int64_t grad_stride[4];  // of grad_gates
  void* grad_highway;      // [L, B, d], contiguous, dtype `dtype`; only with k = 3
  float* grad_bias;        // [2 d]
  float* grad_weight;      // [2 d]
  float* grad_initial;     // [B, d]
  float* partial;          // CUDA: [B, 4, d], sums of each sample before they are added up
};

struct SruTable {
  // Neither allocates.
  Status (*forward)(const SruParams& params, int threads);
  Status (*backward)(const SruBackwardParams& params, int threads);
};

const SruTable& sru_table();

}  // namespace patchword
