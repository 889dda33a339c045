// SPDX-License-Identifier: Apache-2.0
#include "kernels/match_score/match_score.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

// `cells` is scratch of zeros that CUDA alone needs, [B, h * w].
int64_t forward(const Launch& on, uintptr_t features0, uintptr_t features1, uintptr_t points,
                uintptr_t weights, uintptr_t mask, uintptr_t out, uintptr_t cells,
                const Integers<3>& shape0, const Integers<3>& stride0, const Integers<3>& stride1,
                const Integers<3>& points_stride, const Integers<2>& weights_stride,
                const Integers<3>& mask_stride, int64_t height, int64_t width, int dtype,
                int rounding) {
  MatchScoreParams p{};
  p.features0 = pointer<const void>(features0);
  p.features1 = pointer<const void>(features1);
  p.points = pointer<const float>(points);
  p.weights = pointer<const float>(weights);
  p.mask = pointer<const float>(mask);
  p.out = pointer<float>(out);
  p.dtype = static_cast<DType>(dtype);
  p.rounding = static_cast<CellRounding>(rounding);
  p.batch = shape0[0];
  p.queries = shape0[1];
  p.channels = shape0[2];
  p.height = height;
  p.width = width;
  stride0.copy_to(p.features0_stride);
  stride1.copy_to(p.features1_stride);
  points_stride.copy_to(p.points_stride);
  weights_stride.copy_to(p.weights_stride);
  mask_stride.copy_to(p.mask_stride);
  if (on.device == kCuda) {
    p.workspace = pointer<void>(cells);
    call_cuda("pw_cuda_match_score", &p, on.stream);
    return 0;
  }
  const int64_t needed = match_score_workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  p.workspace = pointer<void>(on.scratch);
  run_on_cpu("match_score",
             0.1 * static_cast<double>(p.batch * p.queries) * static_cast<double>(p.channels),
             [&] { return match_score_table().forward(p, on.threads); });
  return 0;
}

}  // namespace

void bind_match_score(py::module_& module) { module.def("match_score_forward", &forward); }

}  // namespace patchword::bindings
