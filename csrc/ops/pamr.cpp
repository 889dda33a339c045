// SPDX-License-Identifier: Apache-2.0
#include "kernels/pamr/pamr.h"

#include <pybind11/stl.h>

#include <vector>

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

PamrParams make_params(const Integers<5>& sizes, const std::vector<int64_t>& dilations,
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

// `sizes` are B, K, C, h, w.
int64_t refine(const Launch& on, uintptr_t image, uintptr_t masks, uintptr_t live, uintptr_t out,
               const Integers<5>& sizes, const Integers<4>& image_stride,
               const Integers<4>& masks_stride, const std::vector<int64_t>& dilations,
               int iterations) {
  PamrParams p = make_params(sizes, dilations, iterations);
  p.image = pointer<const float>(image);
  p.masks = pointer<const float>(masks);
  p.live = pointer<const uint8_t>(live);
  p.out = pointer<float>(out);
  p.workspace = pointer<void>(on.scratch);
  image_stride.copy_to(p.image_stride);
  masks_stride.copy_to(p.masks_stride);
  const bool cuda = on.device == kCuda;
  const int64_t needed = cuda ? pamr_cuda_workspace(p) : pamr_workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  if (cuda) {
    call_cuda("pw_cuda_pamr", &p, on.stream);
    return 0;
  }
  run_on_cpu("pamr", static_cast<double>(p.batch * p.channels * p.height * p.width),
             [&] { return pamr_table().refine(p, on.threads); });
  return 0;
}

}  // namespace

void bind_pamr(py::module_& module) { module.def("pamr_refine", &refine); }

}  // namespace patchword::bindings
