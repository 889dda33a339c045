// SPDX-License-Identifier: Apache-2.0
#include "csrc/common/runtime.h"

namespace patchword::bindings {

void bind_patch_similarity(pybind11::module_& module) { (void)module; }

}  // namespace patchword::bindings
