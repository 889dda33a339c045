// SPDX-License-Identifier: Apache-2.0
// The scalars of one query: its loss, and the factors of the gradients of its vectors.
//
// A team is who works on the row: one CPU thread, or the lanes of a warp. It names the keys of a
// member (first, first + step, ...) and combines what the members found (sum, max).
#pragma once

#include <math.h>

#include "kernels/common/portable.h"
#include "kernels/point_infonce/point_infonce.h"

// A warp's team has device functions alone.
#if defined(__CUDACC__)
#define PW_TEAM static __device__ __forceinline__
#else
#define PW_TEAM PW_PORTABLE
#endif

namespace patchword {

PW_PORTABLE float vector_scale(float norm, bool normalize) {
  return normalize ? 1.0f / (norm + kInfonceNormEpsilon) : 1.0f;
}

// exp(logit - top), exactly 1 at the top, also where that is infinite.
PW_PORTABLE float above(float logit, float top) { return logit == top ? 1.0f : expf(logit - top); }

// Largest logit, which is a product times the sharpness; NaN never is.
template <class Team>
PW_TEAM float top_logit(const Team& team, const float* dots, int64_t keys, float sharpness) {
  float top = -INFINITY;
  for (int64_t j = team.first; j < keys; j += team.step) {
    const float logit = dots[j] * sharpness;
    top = logit > top ? logit : top;
  }
  return team.max(top);
}

// Scales the products `dots[keys]` by what the norms [1 + keys] say and returns the loss.
template <class Team>
PW_TEAM float row_loss(const Team& team, const float* norms, float* dots, int64_t keys,
                       float sharpness, bool normalize) {
  const float query = vector_scale(norms[0], normalize);
  for (int64_t j = team.first; j < keys; j += team.step) {
    dots[j] *= query * vector_scale(norms[1 + j], normalize);
  }
  const float top = top_logit(team, dots, keys, sharpness);
  // Without one of the ones: a small loss is then not lost beside it.
  float others = 0.0f, ones = 0.0f, right = 0.0f;
  for (int64_t j = team.first; j < keys; j += team.step) {
    const float logit = dots[j] * sharpness;
    if (logit == top) {
      ones += 1.0f;
    } else {
      others += expf(logit - top);
    }
    if (j == 0) right = logit;
  }
  right = team.sum(right);
  return (top - right) + log1pf(team.sum(others) + (team.sum(ones) - 1.0f));
}

// The gradient of a key's vector k is weights[1 + j] q - pulls[1 + j] k, that of the query's q
// the sum of all weights[1 + j] k less pulls[0] q. A vector of length 0 pulls at nothing.
template <class Team>
PW_TEAM void row_factors(const Team& team, const float* norms, const float* dots, int64_t keys,
                         float sharpness, bool normalize, float grad, float* weights,
                         float* pulls) {
  const float query = vector_scale(norms[0], normalize);
  const float top = top_logit(team, dots, keys, sharpness);
  float wrong = 0.0f, right = 0.0f;
  for (int64_t j = team.first; j < keys; j += team.step) {
    const float e = above(dots[j] * sharpness, top);
    wrong += j == 0 ? 0.0f : e;
    right += j == 0 ? e : 0.0f;
  }
  wrong = team.sum(wrong);
  right = team.sum(right);
  const float unit = grad * sharpness / (right + wrong);
  float along = 0.0f;
  for (int64_t j = team.first; j < keys; j += team.step) {
    // p - 1 of the positive is minus the sum of the other probabilities, without cancellation.
    const float slope = unit * (j == 0 ? -wrong : above(dots[j] * sharpness, top));
    const float norm = norms[1 + j];
    const float scale = vector_scale(norm, normalize);
    weights[1 + j] = slope * query * scale;
    pulls[1 + j] = normalize && norm != 0.0f ? slope * dots[j] * scale / norm : 0.0f;
    along += slope * dots[j];
  }
  along = team.sum(along);
  if (team.first == 0) {
    weights[0] = 0.0f;
    pulls[0] = normalize && norms[0] != 0.0f ? along * query / norms[0] : 0.0f;
  }
}

}  // namespace patchword

#undef PW_TEAM
