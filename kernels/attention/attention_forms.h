// SPDX-License-Identifier: Apache-2.0
// The form of the CUDA kernels for tiny sets (attention_warps_cuda.cu), which needs no workspace.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/common/simt.cuh"

namespace patchword {

simt::Status attention_warps_forward(const AttentionParams& p, void* stream);
simt::Status attention_warps_backward(const AttentionBackwardParams& p, void* stream);

}  // namespace patchword
