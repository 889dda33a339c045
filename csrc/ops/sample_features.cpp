// SPDX-License-Identifier: Apache-2.0
#include "kernels/sample_features/sample_features.h"

#include <pybind11/stl.h>

#include <array>

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

using Sizes = std::array<int64_t, 5>;    // B, C, h, w, M
using Affine = std::array<float, 4>;     // scale_x, shift_x, scale_y, shift_y
using Pointers = std::array<uintptr_t, 4>;  // features, points, out, workspace

SampleFeaturesParams make_params(const Pointers& pointers, int dtype, int mode, int padding,
                                 bool align_corners, const Sizes& sizes,
                                 const std::array<int64_t, 4>& features_stride,
                                 const std::array<int64_t, 3>& points_stride,
                                 const Affine& affine) {
  SampleFeaturesParams p{};
  p.features = pointer<const void>(pointers[0]);
  p.points = pointer<const float>(pointers[1]);
  p.out = pointer<void>(pointers[2]);
  p.workspace = pointer<void>(pointers[3]);
  p.dtype = static_cast<DType>(dtype);
  p.mode = static_cast<SampleMode>(mode);
  p.padding = static_cast<SamplePadding>(padding);
  p.align_corners = align_corners ? 1 : 0;
  p.batch = sizes[0];
  p.channels = sizes[1];
  p.height = sizes[2];
  p.width = sizes[3];
  p.num_points = sizes[4];
  for (int i = 0; i < 4; ++i) p.features_stride[i] = features_stride[i];
  for (int i = 0; i < 3; ++i) p.points_stride[i] = points_stride[i];
  p.scale_x = affine[0];
  p.shift_x = affine[1];
  p.scale_y = affine[2];
  p.shift_y = affine[3];
  return p;
}

void forward(int device, uintptr_t stream, int threads, const Pointers& pointers, int dtype,
             int mode, int padding, bool align_corners, const Sizes& sizes,
             const std::array<int64_t, 4>& features_stride,
             const std::array<int64_t, 3>& points_stride, const Affine& affine) {
  const SampleFeaturesParams p = make_params(pointers, dtype, mode, padding, align_corners, sizes,
                                             features_stride, points_stride, affine);
  if (device == kCuda) {
    call_cuda("pw_cuda_sample_features", &p, stream);
    return;
  }
  Status status;
  {
    MaybeUnlock unlock(0.5 * static_cast<double>(p.batch * p.num_points * p.channels));
    status = sample_features_table().forward(p, threads);
  }
  raise_unless_ok(status, "sample_features");
}

int64_t workspace(int threads, const Sizes& sizes, int64_t channel_stride) {
  SampleFeaturesParams p{};
  p.height = sizes[2];
  p.width = sizes[3];
  p.features_stride[1] = channel_stride;
  return sample_features_workspace(p, threads);
}

}  // namespace

void bind_sample_features(py::module_& module) {
  module.def("sample_features_forward", &forward);
  module.def("sample_features_workspace", &workspace);
}

}  // namespace patchword::bindings
