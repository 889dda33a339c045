// SPDX-License-Identifier: Apache-2.0
// The process's own OpenMP runtime, found at run time instead of linked.
//
// Two OpenMP runtimes in one process keep two pools of spinning threads that fight for the cores.
// Some torch wheels bring the system's libgomp.so.1, others a renamed private copy, others LLVM's;
// all of them export GOMP_parallel. Taking the one that is already loaded shares its pool whichever
// torch it is. Without any, libgomp.so.1 is loaded; without that, the spans run one after another.
#include "kernels/common/threads.h"

#include <dlfcn.h>
#if defined(__linux__)
#include <link.h>
#endif

#include <cstring>

namespace patchword {
namespace {

struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*thread_number)() = nullptr;
  int (*team_size)() = nullptr;
  char path[512] = "none";

  bool adopt(void* handle, const char* from) {
    if (handle == nullptr) return false;
    parallel = reinterpret_cast<decltype(parallel)>(dlsym(handle, "GOMP_parallel"));
    thread_number = reinterpret_cast<decltype(thread_number)>(dlsym(handle, "omp_get_thread_num"));
    team_size = reinterpret_cast<decltype(team_size)>(dlsym(handle, "omp_get_num_threads"));
    if (parallel == nullptr || thread_number == nullptr || team_size == nullptr) {
      parallel = nullptr;
      return false;
    }
    std::strncpy(path, from, sizeof(path) - 1);
    return true;
  }

  OpenMp() {
#if defined(__linux__)
    dl_iterate_phdr(
        [](dl_phdr_info* library, size_t, void* self) {
          const char* name = library->dlpi_name;
          const bool runtime = std::strstr(name, "libgomp") != nullptr ||
                               std::strstr(name, "libiomp") != nullptr ||
                               std::strstr(name, "libomp") != nullptr;
          if (!runtime) return 0;
          void* handle = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
          return static_cast<OpenMp*>(self)->adopt(handle, name) ? 1 : 0;
        },
        this);
    if (parallel == nullptr) adopt(dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL), "libgomp.so.1");
#else
    adopt(RTLD_DEFAULT, "the program itself");
#endif
  }
};

const OpenMp& openmp() {
  static const OpenMp runtime;
  return runtime;
}

struct Team {
  TaskSpan span;
  void* context;
  int64_t tasks;
  int threads;

  void run(int t) const { span(context, tasks * t / threads, tasks * (t + 1) / threads, t); }
};

}  // namespace

const char* openmp_runtime() { return openmp().path; }

void run_parallel(int threads, int64_t tasks, TaskSpan span, void* context) {
  if (tasks <= 0) return;
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads <= 1) {
    span(context, 0, tasks, 0);
    return;
  }
  Team team{span, context, tasks, threads};
  const OpenMp& runtime = openmp();
  if (runtime.parallel == nullptr) {
    // The spans keep their numbers, so per-thread partial results merge in the same order.
    for (int t = 0; t < threads; ++t) team.run(t);
    return;
  }
  // The runtime may give fewer threads than asked for; every span is done all the same.
  auto body = [](void* data) {
    const Team& self = *static_cast<const Team*>(data);
    const int step = openmp().team_size();
    for (int t = openmp().thread_number(); t < self.threads; t += step) self.run(t);
  };
  runtime.parallel(body, &team, static_cast<unsigned>(threads), 0);
}

}  // namespace patchword
