// SPDX-License-Identifier: Apache-2.0
#include "kernels/point_infonce/point_infonce.h"

#include <pybind11/stl.h>

#include <array>

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

using Two = std::array<int64_t, 2>;
using Three = std::array<int64_t, 3>;
using Four = std::array<int64_t, 4>;
// Addresses and strides of query_images, query_points, key_images, key_points.
using Addresses = std::array<uintptr_t, 4>;
using Strides = std::tuple<std::array<int64_t, 1>, Two, Two, Three>;

constexpr int64_t kNoSuchImage = -1;

PointInfonceParams make_params(uintptr_t features, const Four& shape, const Four& stride, int dtype,
                               const Addresses& points, const Strides& strides,
                               const Two& rows_and_keys, const std::array<double, 4>& affine,
                               double temperature, bool normalize) {
  PointInfonceParams p{};
  p.features = pointer<const void>(features);
  p.dtype = static_cast<DType>(dtype);
  p.batch = shape[0];
  p.channels = shape[1];
  p.height = shape[2];
  p.width = shape[3];
  for (int i = 0; i < 4; ++i) p.features_stride[i] = stride[i];
  p.query_images = pointer<const int64_t>(points[0]);
  p.query_points = pointer<const float>(points[1]);
  p.key_images = pointer<const int64_t>(points[2]);
  p.key_points = pointer<const float>(points[3]);
  p.query_images_stride = std::get<0>(strides)[0];
  for (int i = 0; i < 2; ++i) p.query_points_stride[i] = std::get<1>(strides)[i];
  for (int i = 0; i < 2; ++i) p.key_images_stride[i] = std::get<2>(strides)[i];
  for (int i = 0; i < 3; ++i) p.key_points_stride[i] = std::get<3>(strides)[i];
  p.queries = rows_and_keys[0];
  p.keys = rows_and_keys[1];
  p.scale_x = affine[0];
  p.shift_x = affine[1];
  p.scale_y = affine[2];
  p.shift_y = affine[3];
  p.sharpness = static_cast<float>(1.0 / temperature);
  p.normalize = normalize ? 1 : 0;
  return p;
}

double expected_ns(const PointInfonceParams& p) {
  return static_cast<double>(p.queries * (1 + p.keys)) * static_cast<double>(p.channels);
}

int64_t finish(const Status& status) {
  if (status.code == StatusCode::kInvalidArgument) return kNoSuchImage;
  raise_unless_ok(status, "point_infonce");
  return 0;
}

// Returns 0 when the work is done, the bytes of workspace to come back with, or kNoSuchImage.
int64_t forward(int device, uintptr_t stream, int threads, uintptr_t features, const Four& shape,
                const Four& stride, int dtype, const Addresses& points, const Strides& strides,
                const Two& rows_and_keys, const std::array<double, 4>& affine, double temperature,
                bool normalize, uintptr_t losses, uintptr_t dots, uintptr_t norms,
                uintptr_t workspace, int64_t workspace_bytes) {
  PointInfonceParams p = make_params(features, shape, stride, dtype, points, strides, rows_and_keys,
                                     affine, temperature, normalize);
  p.losses = pointer<float>(losses);
  p.dots = pointer<float>(dots);
  p.norms = pointer<float>(norms);
  p.workspace = pointer<void>(workspace);
  if (device == kCuda) {
    call_cuda("pw_cuda_point_infonce", &p, stream);
    return 0;
  }
  const int64_t needed = point_infonce_workspace(p, threads, false);
  if (needed > workspace_bytes) return needed;
  Status status;
  {
    MaybeUnlock unlock(expected_ns(p));
    status = point_infonce_table().forward(p, threads);
  }
  return finish(status);
}

// As forward; a gradient that is not wanted has address 0. `cuda`: weights, pulls, vectors, order
// and starts.
int64_t backward(int device, uintptr_t stream, int threads, uintptr_t features, const Four& shape,
                 const Four& stride, int dtype, const Addresses& points, const Strides& strides,
                 const Two& rows_and_keys, const std::array<double, 4>& affine, double temperature,
                 bool normalize, uintptr_t dots, uintptr_t norms, uintptr_t grad,
                 uintptr_t grad_features, const Four& grad_stride, uintptr_t grad_query_points,
                 uintptr_t grad_key_points, const std::array<uintptr_t, 5>& cuda,
                 uintptr_t workspace, int64_t workspace_bytes) {
  PointInfonceBackwardParams q{};
  q.forward = make_params(features, shape, stride, dtype, points, strides, rows_and_keys, affine,
                          temperature, normalize);
  q.forward.dots = pointer<float>(dots);
  q.forward.norms = pointer<float>(norms);
  q.forward.workspace = pointer<void>(workspace);
  q.grad = pointer<const float>(grad);
  q.grad_features = pointer<void>(grad_features);
  for (int i = 0; i < 4; ++i) q.grad_stride[i] = grad_stride[i];
  q.grad_query_points = pointer<float>(grad_query_points);
  q.grad_key_points = pointer<float>(grad_key_points);
  q.weights = pointer<float>(cuda[0]);
  q.pulls = pointer<float>(cuda[1]);
  q.vectors = pointer<float>(cuda[2]);
  q.order = pointer<const int64_t>(cuda[3]);
  q.starts = pointer<const int64_t>(cuda[4]);
  if (device == kCuda) {
    call_cuda("pw_cuda_point_infonce_backward", &q, stream);
    return 0;
  }
  const int64_t needed = point_infonce_workspace(q.forward, threads, true);
  if (needed > workspace_bytes) return needed;
  Status status;
  {
    MaybeUnlock unlock(expected_ns(q.forward));
    status = point_infonce_table().backward(q, threads);
  }
  return finish(status);
}

// CUDA only: the cell that each point belongs to, for the sort before the backward.
void cells(uintptr_t stream, const Four& shape, const Addresses& points, const Strides& strides,
           const Two& rows_and_keys, const std::array<double, 4>& affine, uintptr_t cells_out) {
  PointInfonceCellsParams q{};
  q.forward = make_params(0, shape, shape, 0, points, strides, rows_and_keys, affine, 1.0, false);
  q.cells = pointer<int64_t>(cells_out);
  call_cuda("pw_cuda_point_infonce_cells", &q, stream);
}

}  // namespace

void bind_point_infonce(py::module_& module) {
  module.def("point_infonce_forward", &forward);
  module.def("point_infonce_backward", &backward);
  module.def("point_infonce_cells", &cells);
}

}  // namespace patchword::bindings
