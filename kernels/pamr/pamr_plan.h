// SPDX-License-Identifier: Apache-2.0
// Where things lie in PAMR's workspace, and the neighbours of a pixel. README.md says why.
#pragma once

#include "kernels/common/portable.h"
#include "kernels/common/threads.h"
#include "kernels/pamr/pamr.h"

namespace patchword {

// Row and column step of neighbour `n` (row-major ring of its dilation), kept inside a map of this
// size: beyond the border every step reads the border, so a longer one changes nothing.
struct PamrStep {
  int32_t dy, dx;
};

PW_PORTABLE PamrStep pamr_step(const PamrParams& p, int n) {
  const int place = n % kPamrRing < 4 ? n % kPamrRing : n % kPamrRing + 1;  // skips the centre
  const int64_t dilation = p.dilations[n / kPamrRing];
  const int64_t most_y = p.height - 1, most_x = p.width - 1;
  PamrStep step;
  step.dy = (place / 3 - 1) * static_cast<int32_t>(dilation < most_y ? dilation : most_y);
  step.dx = (place % 3 - 1) * static_cast<int32_t>(dilation < most_x ? dilation : most_x);
  return step;
}

// CPU workspace of one image, in floats from its start: two sets of padded rows [h, planes, pitch]
// between which the steps go to and fro, and weights [h, columns / lanes, neighbours, lanes].
struct PamrPlan {
  int workers;  // images worked on side by side, each with its own workspace
  int threads;  // inside one image
  int neighbours;
  int64_t planes;   // most rows per y: channels, or the colours while weights are made
  int64_t pad;      // floats before and after a row: at least the largest step
  int64_t columns;  // width, rounded up to the widest vector
  int64_t pitch;
  int64_t weights_at, floats;
};

PW_PORTABLE PamrPlan pamr_plan(const PamrParams& p, int threads) {
  PamrPlan plan{};
  plan.neighbours = kPamrRing * p.dilation_count;
  // About 0.03 ns per weight and channel with 256-bit vectors.
  const double work = 0.03 * static_cast<double>(p.height * p.width) * plan.neighbours *
                      static_cast<double>(p.channels * p.iterations + 4 * p.colours + 8);
  const int useful =
      useful_threads(threads, p.batch * p.height, work * static_cast<double>(p.batch));
  // Whole images side by side need no barrier between steps; few images share the threads.
  plan.workers = p.batch >= 2 * useful ? useful : 1;
  plan.threads = plan.workers > 1 ? 1 : useful;
  plan.planes = p.channels > p.colours ? p.channels : p.colours;
  for (int i = 0; i < p.dilation_count; ++i) {
    const int64_t step = p.dilations[i] < p.width - 1 ? p.dilations[i] : p.width - 1;
    if (step > plan.pad) plan.pad = step;
  }
  plan.pad = (plan.pad + 15) / 16 * 16;
  plan.columns = (p.width + 15) / 16 * 16;
  plan.pitch = plan.columns + 2 * plan.pad;
  plan.weights_at = 2 * p.height * plan.planes * plan.pitch;
  plan.floats = plan.weights_at + p.height * plan.columns * plan.neighbours;
  return plan;
}

}  // namespace patchword
