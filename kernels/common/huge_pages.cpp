// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/huge_pages.h"

#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace patchword {

void expect_writes(void* begin, int64_t bytes) {
#if defined(__linux__)
  if (bytes < kHugePagesFrom) return;
  static const bool wanted = [] {
    const char* value = std::getenv("PATCHWORD_HUGE_PAGES");
    return value == nullptr || std::strcmp(value, "0") != 0;
  }();
  if (!wanted) return;
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  // Whole pages of the range alone: what lies beside it belongs to others.
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(begin) + static_cast<uintptr_t>(bytes)) / page * page;
  // Advice: a kernel without huge pages refuses it, and nothing is lost.
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  static_cast<void>(begin);
  static_cast<void>(bytes);
#endif
}

}  // namespace patchword
