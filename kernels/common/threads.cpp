// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/threads.h"

namespace patchword {

void run_parallel(int threads, int64_t tasks, TaskSpan span, void* context) {
  if (tasks <= 0) return;
  if (threads > tasks) threads = static_cast<int>(tasks);
#ifdef PATCHWORD_OPENMP
  if (threads > 1) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int t = 0; t < threads; ++t) {
      span(context, tasks * t / threads, tasks * (t + 1) / threads, t);
    }
    return;
  }
#endif
  // Without OpenMP the spans still run one by one, so per-thread partial results keep their order.
  for (int t = 0; t < (threads < 1 ? 1 : threads); ++t) {
    int64_t n = threads < 1 ? 1 : threads;
    span(context, tasks * t / n, tasks * (t + 1) / n, t);
  }
}

}  // namespace patchword
