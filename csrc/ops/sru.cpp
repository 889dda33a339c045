// SPDX-License-Identifier: Apache-2.0
#include "kernels/sru/sru.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

template <int kCount>
void read(const py::tuple& values, int64_t (&target)[kCount]) {
  if (PyTuple_GET_SIZE(values.ptr()) != kCount) throw py::value_error("sru: wrong rank");
  for (int i = 0; i < kCount; ++i) {
    target[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(values.ptr(), i));
  }
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
}

// addresses: gates, highway, bias, weight, initial, mask, lengths, states; 0 for what is absent.
// options: dtype, activation, dropout, bidirectional, last_only.
SruParams make_params(const py::tuple& addresses, const py::tuple& shape,
                      const py::tuple& gates_stride, const py::tuple& highway_stride,
                      const py::tuple& options, double scale_x) {
  int64_t at[8], sizes[4], choice[5];
  read(addresses, at);
  read(shape, sizes);
  read(options, choice);
  SruParams p{};
  p.gates = pointer<const void>(static_cast<uintptr_t>(at[0]));
  p.highway = pointer<const void>(static_cast<uintptr_t>(at[1]));
  p.bias = pointer<const float>(static_cast<uintptr_t>(at[2]));
  p.weight = pointer<const float>(static_cast<uintptr_t>(at[3]));
  p.initial = pointer<const float>(static_cast<uintptr_t>(at[4]));
  p.mask = pointer<const float>(static_cast<uintptr_t>(at[5]));
  p.lengths = pointer<const int64_t>(static_cast<uintptr_t>(at[6]));
  p.states = pointer<float>(static_cast<uintptr_t>(at[7]));
  p.steps = sizes[0];
  p.batch = sizes[1];
  p.gate_count = sizes[2];
  p.units = sizes[3];
  read(gates_stride, p.gates_stride);
  read(highway_stride, p.highway_stride);
  p.dtype = static_cast<DType>(choice[0]);
  p.activation = static_cast<SruActivation>(choice[1]);
  p.dropout = static_cast<SruDropout>(choice[2]);
  p.bidirectional = static_cast<int32_t>(choice[3]);
  p.last_only = static_cast<int32_t>(choice[4]);
  p.scale_x = static_cast<float>(scale_x);
  return p;
}

double expected_ns(const SruParams& p) {
  return static_cast<double>(p.steps * p.batch) * static_cast<double>(p.units);
}

void forward(int device, uintptr_t stream, int threads, const py::tuple& addresses,
             const py::tuple& shape, const py::tuple& gates_stride, const py::tuple& highway_stride,
             const py::tuple& options, double scale_x, uintptr_t out, uintptr_t last_state) {
  SruParams p = make_params(addresses, shape, gates_stride, highway_stride, options, scale_x);
  p.out = pointer<void>(out);
  p.last_state = pointer<float>(last_state);
  if (device == kCuda) return call_cuda("pw_cuda_sru", &p, stream);
  Status status;
  {
    MaybeUnlock unlock(expected_ns(p));
    status = sru_table().forward(p, threads);
  }
  raise_unless_ok(status, "sru");
}

// gradients: of out, of the last state; then to be written: gates, highway, bias, weight, initial,
// and the partial sums that CUDA needs.
void backward(int device, uintptr_t stream, int threads, const py::tuple& addresses,
              const py::tuple& shape, const py::tuple& gates_stride,
              const py::tuple& highway_stride, const py::tuple& options, double scale_x,
              const py::tuple& gradients, const py::tuple& grad_stride) {
  SruBackwardParams q{};
  q.forward = make_params(addresses, shape, gates_stride, highway_stride, options, scale_x);
  int64_t at[8];
  read(gradients, at);
  read(grad_stride, q.grad_stride);
  q.grad_out = pointer<const void>(static_cast<uintptr_t>(at[0]));
  q.grad_last = pointer<const float>(static_cast<uintptr_t>(at[1]));
  q.grad_gates = pointer<void>(static_cast<uintptr_t>(at[2]));
  q.grad_highway = pointer<void>(static_cast<uintptr_t>(at[3]));
  q.grad_bias = pointer<float>(static_cast<uintptr_t>(at[4]));
  q.grad_weight = pointer<float>(static_cast<uintptr_t>(at[5]));
  q.grad_initial = pointer<float>(static_cast<uintptr_t>(at[6]));
  q.partial = pointer<float>(static_cast<uintptr_t>(at[7]));
  if (device == kCuda) return call_cuda("pw_cuda_sru_backward", &q, stream);
  Status status;
  {
    MaybeUnlock unlock(2 * expected_ns(q.forward));
    status = sru_table().backward(q, threads);
  }
  raise_unless_ok(status, "sru");
}

}  // namespace

void bind_sru(py::module_& module) {
  module.def("sru_forward", &forward);
  module.def("sru_backward", &backward);
}

}  // namespace patchword::bindings
