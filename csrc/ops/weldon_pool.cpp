// SPDX-License-Identifier: Apache-2.0
#include "kernels/weldon_pool/weldon_pool.h"

#include <pybind11/stl.h>

#include <array>

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

using Four = std::array<int64_t, 4>;

WeldonPoolParams make_params(uintptr_t maps, uintptr_t thresholds, const Four& shape,
                             const Four& stride, int dtype, const std::array<int64_t, 2>& counts,
                             const std::array<float, 2>& divisors) {
  WeldonPoolParams p{};
  p.maps = pointer<const void>(maps);
  p.thresholds = pointer<int32_t>(thresholds);
  p.dtype = static_cast<DType>(dtype);
  p.batch = shape[0];
  p.channels = shape[1];
  p.height = shape[2];
  p.width = shape[3];
  for (int i = 0; i < 4; ++i) p.maps_stride[i] = stride[i];
  p.top_count = counts[0];
  p.bottom_count = counts[1];
  p.top_divisor = divisors[0];
  p.bottom_divisor = divisors[1];
  return p;
}

double expected_ns(const WeldonPoolParams& p) {
  return 0.5 * static_cast<double>(p.batch * p.channels) * static_cast<double>(p.height * p.width);
}

// Returns 0 when the work is done, else the bytes of workspace to come back with.
int64_t forward(int device, uintptr_t stream, int threads, uintptr_t maps, uintptr_t out,
                uintptr_t thresholds, uintptr_t scratch, int64_t scratch_bytes, const Four& shape,
                const Four& stride, int dtype, const std::array<int64_t, 2>& counts,
                const std::array<float, 2>& divisors) {
  WeldonPoolParams p = make_params(maps, thresholds, shape, stride, dtype, counts, divisors);
  p.out = pointer<void>(out);
  p.workspace = pointer<void>(scratch);
  if (device == kCuda) {
    call_cuda("pw_cuda_weldon_pool", &p, stream);
    return 0;
  }
  const int64_t needed = weldon_pool_workspace(p, threads);
  if (needed > scratch_bytes) return needed;
  Status status;
  {
    MaybeUnlock unlock(expected_ns(p));
    status = weldon_pool_table().forward(p, threads);
  }
  raise_unless_ok(status, "weldon_pool");
  return 0;
}

void backward(int device, uintptr_t stream, int threads, uintptr_t maps, uintptr_t thresholds,
              uintptr_t grad_out, uintptr_t grad_maps, const Four& shape, const Four& stride,
              const Four& grad_stride, int dtype, const std::array<int64_t, 2>& counts,
              const std::array<float, 2>& divisors) {
  WeldonPoolBackwardParams q{};
  q.forward = make_params(maps, thresholds, shape, stride, dtype, counts, divisors);
  q.grad_out = pointer<const void>(grad_out);
  q.grad_maps = pointer<void>(grad_maps);
  for (int i = 0; i < 4; ++i) q.grad_stride[i] = grad_stride[i];
  if (device == kCuda) {
    call_cuda("pw_cuda_weldon_pool_backward", &q, stream);
    return;
  }
  Status status;
  {
    MaybeUnlock unlock(expected_ns(q.forward));
    status = weldon_pool_table().backward(q, threads);
  }
  raise_unless_ok(status, "weldon_pool");
}

}  // namespace

void bind_weldon_pool(py::module_& module) {
  module.def("weldon_pool_forward", &forward);
  module.def("weldon_pool_backward", &backward);
}

}  // namespace patchword::bindings
