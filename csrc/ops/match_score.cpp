// SPDX-License-Identifier: Apache-2.0
#include "kernels/match_score/match_score.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

template <int kCount>
void read(const py::tuple& values, int64_t (&target)[kCount]) {
  if (PyTuple_GET_SIZE(values.ptr()) != kCount) throw py::value_error("match_score: wrong rank");
  for (int i = 0; i < kCount; ++i) {
    target[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(values.ptr(), i));
  }
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
}

// Returns 0 when the work is done, else the bytes of workspace to come back with (CPU only).
int64_t forward(int device, uintptr_t stream, int threads, uintptr_t features0, uintptr_t features1,
                uintptr_t points, uintptr_t weights, uintptr_t mask, uintptr_t out,
                uintptr_t workspace, int64_t workspace_bytes, const py::tuple& shape0,
                const py::tuple& stride0, const py::tuple& stride1, const py::tuple& points_stride,
                const py::tuple& weights_stride, const py::tuple& mask_stride, int64_t height,
                int64_t width, int dtype, int rounding) {
  MatchScoreParams p{};
  p.features0 = pointer<const void>(features0);
  p.features1 = pointer<const void>(features1);
  p.points = pointer<const float>(points);
  p.weights = pointer<const float>(weights);
  p.mask = pointer<const float>(mask);
  p.out = pointer<float>(out);
  p.workspace = pointer<void>(workspace);
  p.dtype = static_cast<DType>(dtype);
  p.rounding = static_cast<CellRounding>(rounding);
  int64_t sizes[3];
  read(shape0, sizes);
  p.batch = sizes[0];
  p.queries = sizes[1];
  p.channels = sizes[2];
  p.height = height;
  p.width = width;
  read(stride0, p.features0_stride);
  read(stride1, p.features1_stride);
  read(points_stride, p.points_stride);
  read(weights_stride, p.weights_stride);
  read(mask_stride, p.mask_stride);
  if (device == kCuda) {
    call_cuda("pw_cuda_match_score", &p, stream);
    return 0;
  }
  const int64_t needed = match_score_workspace(p, threads);
  if (needed > workspace_bytes) return needed;
  Status status;
  {
    MaybeUnlock unlock(0.1 * static_cast<double>(p.batch * p.queries) *
                       static_cast<double>(p.channels));
    status = match_score_table().forward(p, threads);
  }
  raise_unless_ok(status, "match_score");
  return 0;
}

}  // namespace

void bind_match_score(py::module_& module) { module.def("match_score_forward", &forward); }

}  // namespace patchword::bindings
