// SPDX-License-Identifier: Apache-2.0
#include "kernels/folded_heatmap/folded_heatmap.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

int64_t fold(const Launch& on, uintptr_t text, uintptr_t projection, uintptr_t folded,
             const Integers<4>& sizes, int64_t projection_stride) {
  FoldUnitsParams p{};
  p.text = pointer<const float>(text);
  p.projection = pointer<const float>(projection);
  p.folded = pointer<float>(folded);
  p.workspace = pointer<void>(on.scratch);
  p.projection_stride = projection_stride;
  p.texts = sizes[0];
  p.units = sizes[1];
  p.channels = sizes[2];
  p.top = sizes[3];
  const int64_t needed = fold_units_workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  if (on.device == kCuda) {
    call_cuda("pw_cuda_fold_units", &p, on.stream);
    return 0;
  }
  run_on_cpu("fold_units", static_cast<double>(p.texts * p.top) * static_cast<double>(p.channels),
             [&] { return folded_heatmap_table().fold(p, on.threads); });
  return 0;
}

int64_t heat(const Launch& on, const Addresses<5>& addresses, const Integers<5>& sizes,
             const Integers<4>& strides, int dtype, float threshold, bool from_minimum,
             bool columns_first) {
  FoldedHeatmapParams p{};
  p.maps = pointer<const void>(addresses[0]);
  p.folded = pointer<const float>(addresses[1]);
  p.heat = pointer<float>(addresses[2]);
  p.location = pointer<int64_t>(addresses[3]);
  p.mask = pointer<uint8_t>(addresses[4]);
  p.workspace = pointer<void>(on.scratch);
  p.dtype = static_cast<DType>(dtype);
  p.batch = sizes[0];
  p.channels = sizes[1];
  p.height = sizes[2];
  p.width = sizes[3];
  p.texts = sizes[4];
  for (int i = 0; i < 3; ++i) p.maps_stride[i] = strides[i];
  p.folded_stride = strides[3];
  p.threshold = threshold;
  p.from_minimum = from_minimum ? 1 : 0;
  p.columns_first = columns_first ? 1 : 0;
  if (on.device == kCuda) {
    call_cuda("pw_cuda_folded_heatmap", &p, on.stream);
    return 0;
  }
  const int64_t needed = folded_heatmap_workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  const double products = static_cast<double>(p.batch * p.texts) *
                          static_cast<double>(p.height * p.width) * static_cast<double>(p.channels);
  run_on_cpu("folded_heatmap", products,
             [&] { return folded_heatmap_table().heat(p, on.threads); });
  return 0;
}

}  // namespace

void bind_folded_heatmap(py::module_& module) {
  module.def("fold_units", &fold);
  module.def("folded_heatmap", &heat);
}

}  // namespace patchword::bindings
