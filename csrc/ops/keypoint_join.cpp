// SPDX-License-Identifier: Apache-2.0
#include "kernels/keypoint_join/keypoint_join.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

using Inputs = Addresses<3>;  // ids, offsets, pairs
using Sizes = Integers<3>;    // T, I, P

KeypointJoinParams make_params(const Inputs& inputs, const Sizes& sizes) {
  KeypointJoinParams p{};
  p.ids = pointer<const int64_t>(inputs[0]);
  p.offsets = pointer<const int64_t>(inputs[1]);
  p.pairs = pointer<const int64_t>(inputs[2]);
  p.total = sizes[0];
  p.images = sizes[1];
  p.pair_count = sizes[2];
  return p;
}

double expected_ns(const KeypointJoinParams& p) {
  return static_cast<double>(p.total + 100 * p.pair_count);
}

// Writes the number of matches of every part behind starts[0], and the flags. On the CPU the
// numbers become their sums from the front and the flags two arrays of bool too, [I] each, which
// CUDA leaves to the caller.
int64_t count(const Launch& on, const Inputs& inputs, const Sizes& sizes, uintptr_t starts,
              uintptr_t flags, uintptr_t duplicates, uintptr_t unsorted) {
  KeypointJoinCountParams q{};
  q.join = make_params(inputs, sizes);
  int64_t* sums = pointer<int64_t>(starts);
  q.counts = sums + 1;
  q.flags = pointer<uint8_t>(flags);
  if (on.device == kCuda) {
    call_cuda("pw_cuda_keypoint_join_count", &q, on.stream);
    return 0;
  }
  run_on_cpu("keypoint_join", expected_ns(q.join), [&] {
    const Status status = keypoint_join_table().count(q, on.threads);
    sums[0] = 0;
    for (int64_t i = 0; i < kJoinParts * q.join.pair_count; ++i) sums[i + 1] += sums[i];
    for (int64_t i = 0; i < q.join.images; ++i) {
      pointer<bool>(duplicates)[i] = (q.flags[i] & kJoinDuplicates) != 0;
      pointer<bool>(unsorted)[i] = (q.flags[i] & kJoinUnsorted) != 0;
    }
    return status;
  });
  return 0;
}

int64_t fill(const Launch& on, const Inputs& inputs, const Sizes& sizes, uintptr_t flags,
             uintptr_t starts, uintptr_t rows0, uintptr_t rows1, int64_t capacity) {
  KeypointJoinFillParams q{};
  q.join = make_params(inputs, sizes);
  q.flags = pointer<const uint8_t>(flags);
  q.starts = pointer<const int64_t>(starts);
  q.rows0 = pointer<int64_t>(rows0);
  q.rows1 = pointer<int64_t>(rows1);
  q.capacity = capacity;
  if (on.device == kCuda) {
    call_cuda("pw_cuda_keypoint_join_fill", &q, on.stream);
    return 0;
  }
  run_on_cpu("keypoint_join", expected_ns(q.join),
             [&] { return keypoint_join_table().fill(q, on.threads); });
  return 0;
}

}  // namespace

void bind_keypoint_join(py::module_& module) {
  module.def("keypoint_join_count", &count);
  module.def("keypoint_join_fill", &fill);
}

}  // namespace patchword::bindings
