// SPDX-License-Identifier: Apache-2.0
// The compiled module: registers every file of csrc/ops/ and says what was built.
#include <pybind11/pybind11.h>

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
void bind_attention(py::module_& module);
void bind_sample_features(py::module_& module);
void bind_patch_similarity(py::module_& module);
void bind_correspondence(py::module_& module);
void bind_mask_upsample(py::module_& module);
void bind_match_score(py::module_& module);
void bind_pamr(py::module_& module);
void bind_point_infonce(py::module_& module);
void bind_weldon_pool(py::module_& module);
void bind_confusion_counts(py::module_& module);
void bind_folded_heatmap(py::module_& module);
void bind_sru(py::module_& module);
void bind_keypoint_join(py::module_& module);
void bind_retrieval_ranks(py::module_& module);
}  // namespace patchword::bindings

PYBIND11_MODULE(_C, module) {
  using namespace patchword::bindings;
  module.doc() = "Compiled kernels of patchword: addresses, sizes and strides in, status out.";
  bind_runtime(module);
  bind_attention(module);
  bind_sample_features(module);
  bind_patch_similarity(module);
  bind_correspondence(module);
  bind_mask_upsample(module);
  bind_match_score(module);
  bind_pamr(module);
  bind_point_infonce(module);
  bind_weldon_pool(module);
  bind_confusion_counts(module);
  bind_folded_heatmap(module);
  bind_sru(module);
  bind_keypoint_join(module);
  bind_retrieval_ranks(module);
  module.def("build_info", [] {
    py::dict info;
    info["version"] = PATCHWORD_VERSION;
    info["cuda"] = PATCHWORD_CUDA_STATE;
    info["cpu_levels"] = PATCHWORD_LEVELS_BUILT;
    info["compiler"] = __VERSION__;
    return info;
  });
}
