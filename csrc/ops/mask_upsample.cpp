// SPDX-License-Identifier: Apache-2.0
#include "kernels/mask_upsample/mask_upsample.h"

#include <pybind11/stl.h>

#include <array>

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

using Sizes = std::array<int64_t, 6>;    // B, C, h, w, H, W
using Tags = std::array<int, 5>;         // dtype, label dtype, mode, output, align_corners
using Strides = std::array<int64_t, 8>;  // logits (4), class mask, region, thresholds (2)
// logits, out, confidence, confusion, target, class mask, region, thresholds, workspace
using Pointers = std::array<uintptr_t, 9>;
using Numbers = std::array<double, 2>;  // threshold, scale

MaskUpsampleParams sized(const Tags& tags, const Sizes& sizes) {
  MaskUpsampleParams p{};
  p.dtype = static_cast<DType>(tags[0]);
  p.label_dtype = static_cast<DType>(tags[1]);
  p.mode = static_cast<UpsampleMode>(tags[2]);
  p.output = static_cast<UpsampleOutput>(tags[3]);
  p.align_corners = tags[4];
  p.batch = sizes[0];
  p.channels = sizes[1];
  p.height = sizes[2];
  p.width = sizes[3];
  p.out_height = sizes[4];
  p.out_width = sizes[5];
  return p;
}

MaskUpsampleGradParams grad_sized(const Tags& tags, const Sizes& sizes) {
  MaskUpsampleGradParams p{};
  p.dtype = static_cast<DType>(tags[0]);
  p.mode = static_cast<UpsampleMode>(tags[2]);
  p.align_corners = tags[4];
  p.batch = sizes[0];
  p.channels = sizes[1];
  p.height = sizes[2];
  p.width = sizes[3];
  p.out_height = sizes[4];
  p.out_width = sizes[5];
  return p;
}

// About 0.1 ns per pixel and class on one core; pruning only makes it less.
double expected_ns(const Sizes& s) {
  return 0.1 * static_cast<double>(s[0] * s[1]) * static_cast<double>(s[4] * s[5]);
}

void forward(int device, uintptr_t stream, int threads, const Pointers& pointers, const Tags& tags,
             const Sizes& sizes, const Strides& strides, const Numbers& numbers,
             int64_t ignore_index) {
  MaskUpsampleParams p = sized(tags, sizes);
  p.logits = pointer<const void>(pointers[0]);
  p.out = pointer<void>(pointers[1]);
  p.confidence = pointer<float>(pointers[2]);
  p.confusion = pointer<int64_t>(pointers[3]);
  p.target = pointer<const void>(pointers[4]);
  p.class_mask = pointer<const uint8_t>(pointers[5]);
  p.region = pointer<const uint8_t>(pointers[6]);
  p.thresholds = pointer<const float>(pointers[7]);
  p.workspace = pointer<void>(pointers[8]);
  for (int i = 0; i < 4; ++i) p.logits_stride[i] = strides[i];
  p.class_mask_stride = strides[4];
  p.region_stride = strides[5];
  p.thresholds_stride[0] = strides[6];
  p.thresholds_stride[1] = strides[7];
  p.threshold = static_cast<float>(numbers[0]);
  p.scale = static_cast<float>(numbers[1]);
  p.ignore_index = ignore_index;
  if (device == kCuda) {
    call_cuda("pw_cuda_mask_upsample", &p, stream);
    return;
  }
  Status status;
  {
    MaybeUnlock unlock(expected_ns(sizes));
    status = mask_upsample_cpu(p, threads);
  }
  raise_unless_ok(status, "mask_upsample");
}

void backward(int device, uintptr_t stream, int threads, uintptr_t grad_out, uintptr_t grad_logits,
              uintptr_t workspace, const Tags& tags, const Sizes& sizes) {
  MaskUpsampleGradParams p = grad_sized(tags, sizes);
  p.grad_out = pointer<const void>(grad_out);
  p.grad_logits = pointer<void>(grad_logits);
  p.workspace = pointer<void>(workspace);
  if (device == kCuda) {
    call_cuda("pw_cuda_mask_upsample_grad", &p, stream);
    return;
  }
  Status status;
  {
    MaybeUnlock unlock(expected_ns(sizes));
    status = mask_upsample_grad_cpu(p, threads);
  }
  raise_unless_ok(status, "mask_upsample");
}

int64_t workspace(int threads, const Tags& tags, const Sizes& sizes) {
  return mask_upsample_workspace(sized(tags, sizes), threads);
}

int64_t grad_workspace(int threads, const Tags& tags, const Sizes& sizes) {
  return mask_upsample_grad_workspace(grad_sized(tags, sizes), threads);
}

}  // namespace

void bind_mask_upsample(py::module_& module) {
  module.def("mask_upsample_forward", &forward);
  module.def("mask_upsample_backward", &backward);
  module.def("mask_upsample_workspace", &workspace);
  module.def("mask_upsample_grad_workspace", &grad_workspace);
}

}  // namespace patchword::bindings
