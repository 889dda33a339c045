// SPDX-License-Identifier: Apache-2.0
#include "kernels/sru/sru.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

// gates, highway, bias, weight, initial, mask, lengths, states; 0 for what is absent.
using Inputs = Addresses<8>;
// dtype, activation, dropout, bidirectional, last_only
using Options = Integers<5>;

SruParams make_params(const Inputs& inputs, const Integers<4>& shape,
                      const Integers<4>& gates_stride, const Integers<3>& highway_stride,
                      const Options& options, double scale_x) {
  SruParams p{};
  p.gates = pointer<const void>(inputs[0]);
  p.highway = pointer<const void>(inputs[1]);
  p.bias = pointer<const float>(inputs[2]);
  p.weight = pointer<const float>(inputs[3]);
  p.initial = pointer<const float>(inputs[4]);
  p.mask = pointer<const float>(inputs[5]);
  p.lengths = pointer<const int64_t>(inputs[6]);
  p.states = pointer<float>(inputs[7]);
  p.steps = shape[0];
  p.batch = shape[1];
  p.gate_count = shape[2];
  p.units = shape[3];
  gates_stride.copy_to(p.gates_stride);
  highway_stride.copy_to(p.highway_stride);
  p.dtype = static_cast<DType>(options[0]);
  p.activation = static_cast<SruActivation>(options[1]);
  p.dropout = static_cast<SruDropout>(options[2]);
  p.bidirectional = static_cast<int32_t>(options[3]);
  p.last_only = static_cast<int32_t>(options[4]);
  p.scale_x = static_cast<float>(scale_x);
  return p;
}

double expected_ns(const SruParams& p) {
  return static_cast<double>(p.steps * p.batch) * static_cast<double>(p.units);
}

int64_t forward(const Launch& on, const Inputs& inputs, const Integers<4>& shape,
                const Integers<4>& gates_stride, const Integers<3>& highway_stride,
                const Options& options, double scale_x, uintptr_t out, uintptr_t last_state) {
  SruParams p = make_params(inputs, shape, gates_stride, highway_stride, options, scale_x);
  p.out = pointer<void>(out);
  p.last_state = pointer<float>(last_state);
  if (on.device == kCuda) {
    call_cuda("pw_cuda_sru", &p, on.stream);
    return 0;
  }
  run_on_cpu("sru", expected_ns(p), [&] { return sru_table().forward(p, on.threads); });
  return 0;
}

// gradients: of out, of the last state; then to be written: gates, highway, bias, weight, initial.
int64_t backward(const Launch& on, const Inputs& inputs, const Integers<4>& shape,
                 const Integers<4>& gates_stride, const Integers<3>& highway_stride,
                 const Options& options, double scale_x, const Addresses<7>& gradients,
                 const Integers<4>& grad_stride) {
  SruBackwardParams q{};
  q.forward = make_params(inputs, shape, gates_stride, highway_stride, options, scale_x);
  grad_stride.copy_to(q.grad_stride);
  q.grad_out = pointer<const void>(gradients[0]);
  q.grad_last = pointer<const float>(gradients[1]);
  q.grad_gates = pointer<void>(gradients[2]);
  q.grad_highway = pointer<void>(gradients[3]);
  q.grad_bias = pointer<float>(gradients[4]);
  q.grad_weight = pointer<float>(gradients[5]);
  q.grad_initial = pointer<float>(gradients[6]);
  if (on.device == kCuda) {
    // Sums of the four parameter gradients of every sample, added up afterwards.
    const int64_t sums = q.forward.batch * 4 * q.forward.units;
    const int64_t needed = sums * static_cast<int64_t>(sizeof(float));
    if (needed > on.scratch_bytes) return needed;
    q.partial = pointer<float>(on.scratch);
    call_cuda("pw_cuda_sru_backward", &q, on.stream);
    return 0;
  }
  run_on_cpu("sru", 2 * expected_ns(q.forward),
             [&] { return sru_table().backward(q, on.threads); });
  return 0;
}

}  // namespace

void bind_sru(py::module_& module) {
  module.def("sru_forward", &forward);
  module.def("sru_backward", &backward);
}

}  // namespace patchword::bindings
