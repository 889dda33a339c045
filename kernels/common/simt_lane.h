// SPDX-License-Identifier: Apache-2.0
// One thread of the block that the host SIMT engine runs, and how messages describe it.
//
// Included by simt_host.cpp only.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/common/simt_fiber.h"
#include "kernels/common/simt_host.h"
#include "kernels/common/simt_wgmma.h"

namespace patchword::simt::host {

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes, valid, group;
  bool performed;
};

inline void perform(const Copy& copy) {
  if (copy.valid > 0) std::memcpy(copy.to, copy.from, copy.valid);
  std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
}

enum class State { kReady, kBlockBarrier, kNamedBarrier, kCollective, kExited };

struct Lane : Indices {
  State state = State::kReady;
  unsigned linear = 0;
  Site site;
  const char* operation = "";
  unsigned mask = 0;
  int named = 0;
  void* slot = nullptr;
  Combine combine = nullptr;
  std::vector<Copy> copies;
  std::size_t group = 0;
  unsigned fences = 0;  // of the asynchronous proxy
  WgmmaLane wgmma;
  Context context;
};

struct Warp {
  std::size_t products = 0;  // wgmma that it has issued
  unsigned waiting = 0;      // lanes inside a collective
  unsigned gone = 0;         // lanes that exited or never existed
};

inline std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));
inline std::string format(const char* pattern, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof(text), pattern, arguments);
  va_end(arguments);
  return text;
}

inline std::string where(const Site& site) {
  const char* slash = std::strrchr(site.file_name(), '/');
  return format("%s:%u", slash == nullptr ? site.file_name() : slash + 1, site.line());
}

inline std::string triple(const dim3& d) { return format("(%u, %u, %u)", d.x, d.y, d.z); }

inline bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

inline std::string describe(const Lane& lane) {
  const std::string thread = "thread " + triple(lane.thread);
  switch (lane.state) {
    case State::kExited: return thread + " has exited";
    case State::kBlockBarrier: return thread + " waits in sync_block at " + where(lane.site);
    case State::kNamedBarrier:
      return thread + format(" waits at named barrier %d at ", lane.named) + where(lane.site);
    case State::kCollective:
      return thread + format(" waits in %s (mask 0x%08x) at ", lane.operation, lane.mask) +
             where(lane.site);
    case State::kReady: break;
  }
  return thread + " is running";
}

}  // namespace patchword::simt::host
