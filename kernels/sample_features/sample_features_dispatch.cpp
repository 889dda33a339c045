// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/sample_features/sample_features.h"
#include "kernels/sample_features/sample_point.h"

namespace patchword {

PW_SELECT_TABLE(SampleFeaturesTable, kSampleFeatures, sample_features_table)

int64_t sample_features_workspace(const SampleFeaturesParams& p, int threads) {
  if (p.features_stride[1] == 1) return 0;
  return static_cast<int64_t>(threads) * p.height * p.width * kTransposedChannels *
         static_cast<int64_t>(sizeof(float));
}

}  // namespace patchword
