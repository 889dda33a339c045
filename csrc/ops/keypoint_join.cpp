// SPDX-License-Identifier: Apache-2.0
#include "kernels/keypoint_join/keypoint_join.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

KeypointJoinParams make_params(uintptr_t ids, uintptr_t offsets, uintptr_t pairs, int64_t total,
                               int64_t images, int64_t pair_count) {
  KeypointJoinParams p{};
  p.ids = pointer<const int64_t>(ids);
  p.offsets = pointer<const int64_t>(offsets);
  p.pairs = pointer<const int64_t>(pairs);
  p.total = total;
  p.images = images;
  p.pair_count = pair_count;
  return p;
}

void count(int device, uintptr_t stream, int threads, uintptr_t ids, uintptr_t offsets,
           uintptr_t pairs, int64_t total, int64_t images, int64_t pair_count, uintptr_t counts,
           uintptr_t flags) {
  KeypointJoinCountParams q{};
  q.join = make_params(ids, offsets, pairs, total, images, pair_count);
  q.counts = pointer<int64_t>(counts);
  q.flags = pointer<uint8_t>(flags);
  if (device == kCuda) return call_cuda("pw_cuda_keypoint_join_count", &q, stream);
  Status status;
  {
    MaybeUnlock unlock(static_cast<double>(total + 100 * pair_count));
    status = keypoint_join_table().count(q, threads);
  }
  raise_unless_ok(status, "keypoint_join");
}

void fill(int device, uintptr_t stream, int threads, uintptr_t ids, uintptr_t offsets,
          uintptr_t pairs, int64_t total, int64_t images, int64_t pair_count, uintptr_t flags,
          uintptr_t starts, uintptr_t rows0, uintptr_t rows1, int64_t capacity) {
  KeypointJoinFillParams q{};
  q.join = make_params(ids, offsets, pairs, total, images, pair_count);
  q.flags = pointer<const uint8_t>(flags);
  q.starts = pointer<const int64_t>(starts);
  q.rows0 = pointer<int64_t>(rows0);
  q.rows1 = pointer<int64_t>(rows1);
  q.capacity = capacity;
  if (device == kCuda) return call_cuda("pw_cuda_keypoint_join_fill", &q, stream);
  Status status;
  {
    MaybeUnlock unlock(static_cast<double>(total + 100 * pair_count));
    status = keypoint_join_table().fill(q, threads);
  }
  raise_unless_ok(status, "keypoint_join");
}

}  // namespace

void bind_keypoint_join(py::module_& module) {
  module.def("keypoint_join_count", &count);
  module.def("keypoint_join_fill", &fill);
}

}  // namespace patchword::bindings
