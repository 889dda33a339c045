// SPDX-License-Identifier: Apache-2.0
#include "kernels/sample_features/sample_features.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

SampleFeaturesParams make_params(uintptr_t features, uintptr_t points, const Launch& on,
                                 const Integers<4>& shape, const Integers<4>& stride, int64_t count,
                                 const Integers<3>& points_stride, const Reals<4>& affine,
                                 int dtype, int mode, int padding, bool align_corners) {
  SampleFeaturesParams p{};
  p.features = pointer<const void>(features);
  p.points = pointer<const float>(points);
  p.workspace = pointer<void>(on.scratch);
  p.dtype = static_cast<DType>(dtype);
  p.mode = static_cast<SampleMode>(mode);
  p.padding = static_cast<SamplePadding>(padding);
  p.align_corners = align_corners ? 1 : 0;
  p.batch = shape[0];
  p.channels = shape[1];
  p.height = shape[2];
  p.width = shape[3];
  p.num_points = count;
  stride.copy_to(p.features_stride);
  points_stride.copy_to(p.points_stride);
  p.scale_x = affine[0];
  p.shift_x = affine[1];
  p.scale_y = affine[2];
  p.shift_y = affine[3];
  return p;
}

double expected_ns(const SampleFeaturesParams& p) {
  return 0.5 * static_cast<double>(p.batch * p.num_points) * static_cast<double>(p.channels);
}

int64_t forward(const Launch& on, uintptr_t features, uintptr_t points, uintptr_t out,
                const Integers<4>& shape, const Integers<4>& stride, int64_t count,
                const Integers<3>& points_stride, const Reals<4>& affine, int dtype, int mode,
                int padding, bool align_corners, bool normalize) {
  SampleFeaturesParams p = make_params(features, points, on, shape, stride, count, points_stride,
                                       affine, dtype, mode, padding, align_corners);
  p.out = pointer<void>(out);
  p.normalize = normalize ? 1 : 0;
  if (on.device == kCuda) {
    call_cuda("pw_cuda_sample_features", &p, on.stream);
    return 0;
  }
  const int64_t needed = sample_features_workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  run_on_cpu("sample_features", expected_ns(p),
             [&] { return sample_features_table().forward(p, on.threads); });
  return 0;
}

// A gradient that is not wanted has address 0.
int64_t backward(const Launch& on, uintptr_t features, uintptr_t points, uintptr_t grad_out,
                 uintptr_t grad_features, uintptr_t grad_points, uintptr_t order, uintptr_t starts,
                 const Integers<4>& shape, const Integers<4>& stride,
                 const Integers<4>& grad_stride, int64_t count, const Integers<3>& points_stride,
                 const Reals<4>& affine, int dtype, int mode, int padding, bool align_corners) {
  SampleFeaturesBackwardParams q{};
  q.forward = make_params(features, points, on, shape, stride, count, points_stride, affine, dtype,
                          mode, padding, align_corners);
  q.grad_out = pointer<const void>(grad_out);
  q.grad_features = pointer<void>(grad_features);
  q.grad_points = pointer<float>(grad_points);
  q.order = pointer<const int64_t>(order);
  q.starts = pointer<const int64_t>(starts);
  grad_stride.copy_to(q.grad_stride);
  if (on.device == kCuda) {
    call_cuda("pw_cuda_sample_features_backward", &q, on.stream);
    return 0;
  }
  const int64_t needed = sample_features_backward_workspace(q.forward, on.threads);
  if (needed > on.scratch_bytes) return needed;
  run_on_cpu("sample_features", expected_ns(q.forward),
             [&] { return sample_features_table().backward(q, on.threads); });
  return 0;
}

// CUDA only: the cell that each point belongs to, for the sort before the backward.
void cells(uintptr_t stream, uintptr_t points, uintptr_t cells_out, const Integers<4>& shape,
           int64_t count, const Integers<3>& points_stride, const Reals<4>& affine, int mode,
           int padding, bool align_corners) {
  SampleFeaturesCellsParams q{};
  q.forward = make_params(0, points, Launch{}, shape, shape, count, points_stride, affine, 0, mode,
                          padding, align_corners);
  q.cells = pointer<int64_t>(cells_out);
  call_cuda("pw_cuda_sample_features_cells", &q, stream);
}

}  // namespace

void bind_sample_features(py::module_& module) {
  module.def("sample_features_forward", &forward);
  module.def("sample_features_backward", &backward);
  module.def("sample_features_cells", &cells);
}

}  // namespace patchword::bindings
