// SPDX-License-Identifier: Apache-2.0
// How many copies of the histogram the CPU keeps, and how the pixels are shared out.
#pragma once

#include "kernels/common/portable.h"
#include "kernels/common/threads.h"
#include "kernels/confusion_counts/confusion_counts.h"

namespace patchword {

struct ConfusionPlan {
  int threads;
  int copies;    // per thread: neighbouring pixels of one class do not wait for each other's store
  int64_t bins;  // of one copy: the pairs of classes, and one for what is not counted
  int64_t room;  // for them: whole cache lines, so that no two threads write to the same one
};

PW_PORTABLE ConfusionPlan confusion_plan(const ConfusionCountsParams& p, int threads) {
  ConfusionPlan plan{};
  plan.bins = p.classes * p.classes + 1;
  plan.room = (plan.bins + 15) / 16 * 16;
  plan.copies = p.classes <= 128 ? 4 : 1;
  // Clearing and adding up the copies is work too, so large histograms take fewer threads.
  const double pixels = static_cast<double>(p.images) * static_cast<double>(p.pixels);
  int useful = useful_threads(threads, p.pixels, pixels);
  while (useful > 1 && static_cast<double>(useful * plan.copies * plan.bins) > pixels) --useful;
  plan.threads = useful;
  return plan;
}

}  // namespace patchword
