// SPDX-License-Identifier: Apache-2.0
#include "kernels/mask_upsample/mask_upsample.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

using Sizes = Integers<6>;    // B, C, h, w, H, W
using Tags = Integers<5>;     // dtype, label dtype, mode, output, align_corners
using Strides = Integers<8>;  // logits (4), class mask, region, thresholds (2)
// logits, out, confidence, confusion, target, class mask, region, thresholds
using Pointers = Addresses<8>;

// What forward and gradient have in common.
template <typename Params>
Params sized(const Tags& tags, const Sizes& sizes) {
  Params p{};
  p.dtype = static_cast<DType>(tags[0]);
  p.mode = static_cast<UpsampleMode>(tags[2]);
  p.align_corners = static_cast<int32_t>(tags[4]);
  p.batch = sizes[0];
  p.channels = sizes[1];
  p.height = sizes[2];
  p.width = sizes[3];
  p.out_height = sizes[4];
  p.out_width = sizes[5];
  return p;
}

MaskUpsampleParams forward_params(const Tags& tags, const Sizes& sizes) {
  MaskUpsampleParams p = sized<MaskUpsampleParams>(tags, sizes);
  p.label_dtype = static_cast<DType>(tags[1]);
  p.output = static_cast<UpsampleOutput>(tags[3]);
  return p;
}

// About 0.1 ns per pixel and class on one core; pruning only makes it less.
double expected_ns(const Sizes& s) {
  return 0.1 * static_cast<double>(s[0] * s[1]) * static_cast<double>(s[4] * s[5]);
}

// The GPU wants memory for the range of every map alone.
int64_t cuda_workspace(const MaskUpsampleParams& p) {
  const bool ranges = p.output == UpsampleOutput::kMinMax;
  return ranges ? 2 * p.batch * p.channels * static_cast<int64_t>(sizeof(int32_t)) : 0;
}

int64_t forward(const Launch& on, const Pointers& pointers, const Tags& tags, const Sizes& sizes,
                const Strides& strides, const Reals<2>& numbers, int64_t ignore_index) {
  MaskUpsampleParams p = forward_params(tags, sizes);
  p.logits = pointer<const void>(pointers[0]);
  p.out = pointer<void>(pointers[1]);
  p.confidence = pointer<float>(pointers[2]);
  p.confusion = pointer<int64_t>(pointers[3]);
  p.target = pointer<const void>(pointers[4]);
  p.class_mask = pointer<const uint8_t>(pointers[5]);
  p.region = pointer<const uint8_t>(pointers[6]);
  p.thresholds = pointer<const float>(pointers[7]);
  p.workspace = pointer<void>(on.scratch);
  for (int i = 0; i < 4; ++i) p.logits_stride[i] = strides[i];
  p.class_mask_stride = strides[4];
  p.region_stride = strides[5];
  p.thresholds_stride[0] = strides[6];
  p.thresholds_stride[1] = strides[7];
  p.threshold = static_cast<float>(numbers[0]);
  p.scale = static_cast<float>(numbers[1]);
  p.ignore_index = ignore_index;
  const bool cuda = on.device == kCuda;
  const int64_t needed = cuda ? cuda_workspace(p) : mask_upsample_workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  if (cuda) {
    call_cuda("pw_cuda_mask_upsample", &p, on.stream);
    return 0;
  }
  run_on_cpu("mask_upsample", expected_ns(sizes), [&] { return mask_upsample_cpu(p, on.threads); });
  return 0;
}

int64_t backward(const Launch& on, uintptr_t grad_out, uintptr_t grad_logits, const Tags& tags,
                 const Sizes& sizes) {
  MaskUpsampleGradParams p = sized<MaskUpsampleGradParams>(tags, sizes);
  p.grad_out = pointer<const void>(grad_out);
  p.grad_logits = pointer<void>(grad_logits);
  p.workspace = pointer<void>(on.scratch);
  if (on.device == kCuda) {
    call_cuda("pw_cuda_mask_upsample_grad", &p, on.stream);
    return 0;
  }
  const int64_t needed = mask_upsample_grad_workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  run_on_cpu("mask_upsample", expected_ns(sizes),
             [&] { return mask_upsample_grad_cpu(p, on.threads); });
  return 0;
}

int64_t workspace(int threads, const Tags& tags, const Sizes& sizes) {
  return mask_upsample_workspace(forward_params(tags, sizes), threads);
}

}  // namespace

void bind_mask_upsample(py::module_& module) {
  module.def("mask_upsample_forward", &forward);
  module.def("mask_upsample_backward", &backward);
  module.def("mask_upsample_workspace", &workspace);
}

}  // namespace patchword::bindings
