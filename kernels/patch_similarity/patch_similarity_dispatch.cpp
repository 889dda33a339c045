// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/patch_similarity/patch_similarity.h"

namespace patchword {

PW_SELECT_TABLE(PatchSimilarityTable, kPatchSimilarity, patch_similarity_table)

}  // namespace patchword
