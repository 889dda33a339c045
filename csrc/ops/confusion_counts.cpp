// SPDX-License-Identifier: Apache-2.0
#include "kernels/confusion_counts/confusion_counts.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

int64_t count(const Launch& on, uintptr_t prediction, uintptr_t target, uintptr_t counts,
              const Integers<2>& dtypes, const Integers<3>& sizes, int64_t ignore_index) {
  ConfusionCountsParams p{};
  p.prediction = pointer<const void>(prediction);
  p.target = pointer<const void>(target);
  p.counts = pointer<int64_t>(counts);
  p.workspace = pointer<void>(on.scratch);
  p.prediction_dtype = static_cast<DType>(dtypes[0]);
  p.target_dtype = static_cast<DType>(dtypes[1]);
  p.images = sizes[0];
  p.pixels = sizes[1];
  p.classes = sizes[2];
  p.ignore_index = ignore_index;
  if (on.device == kCuda) {
    call_cuda("pw_cuda_confusion_counts", &p, on.stream);
    return 0;
  }
  const int64_t needed = confusion_counts_workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  run_on_cpu("confusion_counts", static_cast<double>(p.images) * static_cast<double>(p.pixels),
             [&] { return confusion_counts_table().count(p, on.threads); });
  return 0;
}

}  // namespace

void bind_confusion_counts(py::module_& module) { module.def("confusion_counts", &count); }

}  // namespace patchword::bindings
