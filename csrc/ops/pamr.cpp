// SPDX-License-Identifier: Apache-2.0
#include "kernels/pamr/pamr.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

using Strides = std::array<int64_t, 4>;

PamrParams make_params(const std::array<int64_t, 5>& sizes, const std::vector<int64_t>& dilations,
                       int iterations) {
  if (dilations.empty() || dilations.size() > kPamrMostDilations) {
    throw py::value_error("pamr: dilations must be 1 to 16 numbers");
  }
  PamrParams p{};
  p.batch = sizes[0];
  p.colours = sizes[1];
  p.channels = sizes[2];
  p.height = sizes[3];
  p.width = sizes[4];
  p.iterations = iterations;
  p.dilation_count = static_cast<int32_t>(dilations.size());
  for (size_t i = 0; i < dilations.size(); ++i) p.dilations[i] = dilations[i];
  return p;
}

// Bytes that `refine` wants for B, K, C, h, w.
int64_t workspace(int device, int threads, const std::array<int64_t, 5>& sizes,
                  const std::vector<int64_t>& dilations, int iterations) {
  const PamrParams p = make_params(sizes, dilations, iterations);
  return device == kCuda ? pamr_cuda_workspace(p) : pamr_workspace(p, threads);
}

void refine(int device, uintptr_t stream, int threads, uintptr_t image, uintptr_t masks,
            uintptr_t live, uintptr_t out, uintptr_t scratch, const std::array<int64_t, 5>& sizes,
            const Strides& image_stride, const Strides& masks_stride,
            const std::vector<int64_t>& dilations, int iterations) {
  PamrParams p = make_params(sizes, dilations, iterations);
  p.image = pointer<const float>(image);
  p.masks = pointer<const float>(masks);
  p.live = pointer<const uint8_t>(live);
  p.out = pointer<float>(out);
  p.workspace = pointer<void>(scratch);
  for (int i = 0; i < 4; ++i) {
    p.image_stride[i] = image_stride[i];
    p.masks_stride[i] = masks_stride[i];
  }
  if (device == kCuda) {
    call_cuda("pw_cuda_pamr", &p, stream);
    return;
  }
  Status status;
  {
    MaybeUnlock unlock(static_cast<double>(p.batch * p.channels * p.height * p.width));
    status = pamr_table().refine(p, threads);
  }
  raise_unless_ok(status, "pamr");
}

}  // namespace

void bind_pamr(py::module_& module) {
  module.def("pamr_workspace", &workspace);
  module.def("pamr_refine", &refine);
}

}  // namespace patchword::bindings
