// SPDX-License-Identifier: Apache-2.0
// Low-resolution maps read at full resolution: the contract of the CPU levels, CUDA and the
// binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

enum class UpsampleMode : int32_t { kBilinear = 0, kBicubic = 1 };

// What becomes of the upsampled value of every pixel and class.
enum class UpsampleOutput : int32_t {
  kLogits = 0,      // out [B, C, H, W], dtype of the maps
  kSigmoid = 1,     // the same
  kSoftmax = 2,     // the same
  kMinMax = 3,      // the same
  kBinary = 4,      // out [B, C, H, W] bool
  kLabels = 5,      // out [B, H, W] label_dtype
  kConfidence = 6,  // as kLabels, and confidence [B, H, W]
  kConfusion = 7,   // confusion [C, C]
};

struct MaskUpsampleParams {
  const void* logits;         // [B, C, h, w], any strides, dtype `dtype`
  void* out;                  // contiguous, see UpsampleOutput
  float* confidence;          // [B, H, W]
  int64_t* confusion;         // [C, C], rows are target classes; overwritten
  const void* target;         // [B, H, W] contiguous, dtype label_dtype; confusion only
  const uint8_t* class_mask;  // [B or 1, C], 1 = take part; may be null
  const uint8_t* region;      // [B or 1, H, W], 1 = evaluate; may be null
  const float* thresholds;    // [B or 1, C or 1]; null: `threshold`
  void* workspace;            // mask_upsample_workspace bytes
  DType dtype, label_dtype;
  UpsampleMode mode;
  UpsampleOutput output;
  int32_t align_corners;
  float threshold;
  float scale;           // multiplies values inside softmax and sigmoid
  int64_t ignore_index;  // label of a pixel without a winner; target value not counted
  int64_t batch, channels, height, width, out_height, out_width;
  int64_t logits_stride[4];   // b, c, y, x; elements
  int64_t class_mask_stride;  // per image; 0: one mask for all
  int64_t region_stride;      // per image; 0: one region for all
  int64_t thresholds_stride[2];
};

struct MaskUpsampleGradParams {
  const void* grad_out;  // [B, C, H, W] contiguous, dtype `dtype`
  void* grad_logits;     // [B, C, h, w] contiguous, dtype `dtype`
  void* workspace;       // mask_upsample_grad_workspace bytes
  DType dtype;
  UpsampleMode mode;
  int32_t align_corners;
  int64_t batch, channels, height, width, out_height, out_width;
};

// CPU entry points: check, tabulate the taps, run the level in force. Never allocate.
Status mask_upsample_cpu(const MaskUpsampleParams& params, int threads);
Status mask_upsample_grad_cpu(const MaskUpsampleGradParams& params, int threads);

// Bytes of workspace of the two, from sizes, mode, output and label type.
int64_t mask_upsample_workspace(const MaskUpsampleParams& params, int threads);
int64_t mask_upsample_grad_workspace(const MaskUpsampleGradParams& params, int threads);

}  // namespace patchword
