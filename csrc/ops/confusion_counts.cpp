// SPDX-License-Identifier: Apache-2.0
#include "kernels/confusion_counts/confusion_counts.h"

#include <pybind11/stl.h>

#include <array>

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

// Returns 0 when the work is done, else the bytes of workspace to come back with.
int64_t count(int device, uintptr_t stream, int threads, uintptr_t prediction, uintptr_t target,
              uintptr_t counts, uintptr_t scratch, int64_t scratch_bytes,
              const std::array<int, 2>& dtypes, const std::array<int64_t, 3>& sizes,
              int64_t ignore_index) {
  ConfusionCountsParams p{};
  p.prediction = pointer<const void>(prediction);
  p.target = pointer<const void>(target);
  p.counts = pointer<int64_t>(counts);
  p.workspace = pointer<void>(scratch);
  p.prediction_dtype = static_cast<DType>(dtypes[0]);
  p.target_dtype = static_cast<DType>(dtypes[1]);
  p.images = sizes[0];
  p.pixels = sizes[1];
  p.classes = sizes[2];
  p.ignore_index = ignore_index;
  if (device == kCuda) {
    call_cuda("pw_cuda_confusion_counts", &p, stream);
    return 0;
  }
  const int64_t needed = confusion_counts_workspace(p, threads);
  if (needed > scratch_bytes) return needed;
  Status status;
  {
    MaybeUnlock unlock(static_cast<double>(p.images) * static_cast<double>(p.pixels));
    status = confusion_counts_table().count(p, threads);
  }
  raise_unless_ok(status, "confusion_counts");
  return 0;
}

}  // namespace

void bind_confusion_counts(py::module_& module) { module.def("confusion_counts", &count); }

}  // namespace patchword::bindings
