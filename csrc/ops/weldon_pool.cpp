// SPDX-License-Identifier: Apache-2.0
#include "kernels/weldon_pool/weldon_pool.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

WeldonPoolParams make_params(uintptr_t maps, uintptr_t thresholds, const Integers<4>& shape,
                             const Integers<4>& stride, int dtype, const Integers<2>& counts,
                             const Reals<2>& divisors) {
  WeldonPoolParams p{};
  p.maps = pointer<const void>(maps);
  p.thresholds = pointer<int32_t>(thresholds);
  p.dtype = static_cast<DType>(dtype);
  p.batch = shape[0];
  p.channels = shape[1];
  p.height = shape[2];
  p.width = shape[3];
  stride.copy_to(p.maps_stride);
  p.top_count = counts[0];
  p.bottom_count = counts[1];
  p.top_divisor = static_cast<float>(divisors[0]);
  p.bottom_divisor = static_cast<float>(divisors[1]);
  return p;
}

double expected_ns(const WeldonPoolParams& p) {
  return 0.5 * static_cast<double>(p.batch * p.channels) * static_cast<double>(p.height * p.width);
}

int64_t forward(const Launch& on, uintptr_t maps, uintptr_t out, uintptr_t thresholds,
                const Integers<4>& shape, const Integers<4>& stride, int dtype,
                const Integers<2>& counts, const Reals<2>& divisors) {
  WeldonPoolParams p = make_params(maps, thresholds, shape, stride, dtype, counts, divisors);
  p.out = pointer<void>(out);
  p.workspace = pointer<void>(on.scratch);
  if (on.device == kCuda) {
    call_cuda("pw_cuda_weldon_pool", &p, on.stream);
    return 0;
  }
  const int64_t needed = weldon_pool_workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  run_on_cpu("weldon_pool", expected_ns(p),
             [&] { return weldon_pool_table().forward(p, on.threads); });
  return 0;
}

int64_t backward(const Launch& on, uintptr_t maps, uintptr_t thresholds, uintptr_t grad_out,
                 uintptr_t grad_maps, const Integers<4>& shape, const Integers<4>& stride,
                 const Integers<4>& grad_stride, int dtype, const Integers<2>& counts,
                 const Reals<2>& divisors) {
  WeldonPoolBackwardParams q{};
  q.forward = make_params(maps, thresholds, shape, stride, dtype, counts, divisors);
  q.grad_out = pointer<const void>(grad_out);
  q.grad_maps = pointer<void>(grad_maps);
  grad_stride.copy_to(q.grad_stride);
  if (on.device == kCuda) {
    call_cuda("pw_cuda_weldon_pool_backward", &q, on.stream);
    return 0;
  }
  run_on_cpu("weldon_pool", expected_ns(q.forward),
             [&] { return weldon_pool_table().backward(q, on.threads); });
  return 0;
}

}  // namespace

void bind_weldon_pool(py::module_& module) {
  module.def("weldon_pool_forward", &forward);
  module.def("weldon_pool_backward", &backward);
}

}  // namespace patchword::bindings
