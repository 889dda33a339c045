// SPDX-License-Identifier: Apache-2.0
#include "kernels/sample_features/sample_features.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

// Tuples are read item by item: a small call is dominated by what happens to its arguments.
template <int kCount>
void read(const py::tuple& values, int64_t (&target)[kCount]) {
  if (PyTuple_GET_SIZE(values.ptr()) != kCount)
    throw py::value_error("sample_features: wrong rank");
  for (int i = 0; i < kCount; ++i) {
    target[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(values.ptr(), i));
  }
}

double real(const py::tuple& values, int i) {
  return PyFloat_AsDouble(PyTuple_GET_ITEM(values.ptr(), i));
}

SampleFeaturesParams make_params(uintptr_t features, uintptr_t points, uintptr_t workspace,
                                 const py::tuple& shape, const py::tuple& stride, int64_t count,
                                 const py::tuple& points_stride, const py::tuple& affine, int dtype,
                                 int mode, int padding, bool align_corners) {
  SampleFeaturesParams p{};
  p.features = pointer<const void>(features);
  p.points = pointer<const float>(points);
  p.workspace = pointer<void>(workspace);
  p.dtype = static_cast<DType>(dtype);
  p.mode = static_cast<SampleMode>(mode);
  p.padding = static_cast<SamplePadding>(padding);
  p.align_corners = align_corners ? 1 : 0;
  int64_t sizes[4];
  read(shape, sizes);
  p.batch = sizes[0];
  p.channels = sizes[1];
  p.height = sizes[2];
  p.width = sizes[3];
  p.num_points = count;
  read(stride, p.features_stride);
  read(points_stride, p.points_stride);
  if (PyTuple_GET_SIZE(affine.ptr()) != 4) throw py::value_error("sample_features: affine of 4");
  p.scale_x = real(affine, 0);
  p.shift_x = real(affine, 1);
  p.scale_y = real(affine, 2);
  p.shift_y = real(affine, 3);
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return p;
}

double expected_ns(const SampleFeaturesParams& p) {
  return 0.5 * static_cast<double>(p.batch * p.num_points) * static_cast<double>(p.channels);
}

// Returns 0 when the work is done, else the bytes of workspace to come back with.
int64_t forward(int device, uintptr_t stream, int threads, uintptr_t features, uintptr_t points,
                uintptr_t out, uintptr_t workspace, int64_t workspace_bytes, const py::tuple& shape,
                const py::tuple& stride, int64_t count, const py::tuple& points_stride,
                const py::tuple& affine, int dtype, int mode, int padding, bool align_corners,
                bool normalize) {
  SampleFeaturesParams p = make_params(features, points, workspace, shape, stride, count,
                                       points_stride, affine, dtype, mode, padding, align_corners);
  p.out = pointer<void>(out);
  p.normalize = normalize ? 1 : 0;
  if (device == kCuda) {
    call_cuda("pw_cuda_sample_features", &p, stream);
    return 0;
  }
  const int64_t needed = sample_features_workspace(p, threads);
  if (needed > workspace_bytes) return needed;
  Status status;
  {
    MaybeUnlock unlock(expected_ns(p));
    status = sample_features_table().forward(p, threads);
  }
  raise_unless_ok(status, "sample_features");
  return 0;
}

// As forward; a gradient that is not wanted has address 0.
int64_t backward(int device, uintptr_t stream, int threads, uintptr_t features, uintptr_t points,
                 uintptr_t grad_out, uintptr_t grad_features, uintptr_t grad_points,
                 uintptr_t workspace, int64_t workspace_bytes, uintptr_t order, uintptr_t starts,
                 const py::tuple& shape, const py::tuple& stride, const py::tuple& grad_stride,
                 int64_t count, const py::tuple& points_stride, const py::tuple& affine, int dtype,
                 int mode, int padding, bool align_corners) {
  SampleFeaturesBackwardParams q{};
  q.forward = make_params(features, points, workspace, shape, stride, count, points_stride, affine,
                          dtype, mode, padding, align_corners);
  q.grad_out = pointer<const void>(grad_out);
  q.grad_features = pointer<void>(grad_features);
  q.grad_points = pointer<float>(grad_points);
  q.order = pointer<const int64_t>(order);
  q.starts = pointer<const int64_t>(starts);
  read(grad_stride, q.grad_stride);
  if (device == kCuda) {
    call_cuda("pw_cuda_sample_features_backward", &q, stream);
    return 0;
  }
  const int64_t needed = sample_features_backward_workspace(q.forward, threads);
  if (needed > workspace_bytes) return needed;
  Status status;
  {
    MaybeUnlock unlock(expected_ns(q.forward));
    status = sample_features_table().backward(q, threads);
  }
  raise_unless_ok(status, "sample_features");
  return 0;
}

// CUDA only: the cell that each point belongs to, for the sort before the backward.
void cells(uintptr_t stream, uintptr_t points, uintptr_t cells_out, const py::tuple& shape,
           int64_t count, const py::tuple& points_stride, const py::tuple& affine, int mode,
           int padding, bool align_corners) {
  SampleFeaturesCellsParams q{};
  q.forward = make_params(0, points, 0, shape, shape, count, points_stride, affine, 0, mode,
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
