// SPDX-License-Identifier: Apache-2.0
// Joint counts of two label maps: the contract shared by the CPU levels, CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

struct ConfusionCountsParams {
  const void* prediction;  // [images, pixels] contiguous, dtype `prediction_dtype`
  const void* target;      // [images, pixels] contiguous, dtype `target_dtype`
  int64_t* counts;         // [images, classes, classes], rows are target classes. CUDA: zeros
  void* workspace;         // CPU: the bytes that the workspace function asks for
  DType prediction_dtype, target_dtype;
  int64_t images, pixels, classes;
  int64_t ignore_index;  // a target that is not counted even where it is a class
};

struct ConfusionCountsTable {
  // Does not allocate. `threads` is what the workspace function was asked with.
  Status (*count)(const ConfusionCountsParams& params, int threads);
};

const ConfusionCountsTable& confusion_counts_table();
int64_t confusion_counts_workspace(const ConfusionCountsParams& params, int threads);

}  // namespace patchword
