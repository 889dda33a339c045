// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/sample_features/sample_features.h"
#include "kernels/sample_features/sample_plan.h"

namespace patchword {

PW_SELECT_TABLE(SampleFeaturesTable, kSampleFeatures, sample_features_table)

int64_t sample_features_workspace(const SampleFeaturesParams& p, int threads) {
  return sample_plan(p, threads).bytes;
}

int64_t sample_features_backward_workspace(const SampleFeaturesParams& p, int threads) {
  // The two gradients are worked out one after the other in the same memory.
  const int64_t features = gradient_plan(p, threads).bytes;
  const int64_t points = sample_plan(p, threads).bytes;
  return features > points ? features : points;
}

}  // namespace patchword
