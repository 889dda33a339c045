// SPDX-License-Identifier: Apache-2.0
// Static partition of independent tasks over a given number of threads.
#pragma once

#include <cstdint>
#include <type_traits>

namespace patchword {

// A span of consecutive tasks [begin, end) done by thread `thread`.
using TaskSpan = void (*)(void* context, int64_t begin, int64_t end, int thread);

// Splits `tasks` into `threads` spans of nearly equal length. Deterministic: the same counts give
// the same spans. Runs inline when there is one thread or one task.
void run_parallel(int threads, int64_t tasks, TaskSpan span, void* context);

// Path of the OpenMP runtime in use, or "none".
const char* openmp_runtime();

// Threads worth waking for this much work: forking costs 2 to 10 us, so a call that one thread
// finishes in about 50 us stays on one.
inline int useful_threads(int threads, int64_t tasks, double estimated_ns) {
  int64_t by_work = static_cast<int64_t>(estimated_ns / 25000.0);
  int64_t n = threads;
  if (by_work < n) n = by_work;
  if (tasks < n) n = tasks;
  return n < 1 ? 1 : static_cast<int>(n);
}

// body(begin, end, thread) for each span.
template <typename Body>
inline void parallel_for(int threads, int64_t tasks, Body&& body) {
  auto call = [](void* context, int64_t begin, int64_t end, int thread) {
    (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end, thread);
  };
  run_parallel(threads, tasks, call, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace patchword
