// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies from global to shared memory (cp.async) with commit groups.
//
// On the host a copy happens only in the wait that covers it, so data read without a wait is the
// poison of fresh shared memory.
#pragma once

#include "kernels/common/simt.cuh"

namespace patchword::simt {

// Starts a copy of Bytes (4, 8 or 16) to shared memory. The first `valid` bytes come from `from`,
// the rest of the destination becomes zero; with valid = 0 `from` is not read, though it must be
// aligned. Both addresses are aligned to Bytes.
template <int Bytes>
PW_DEVICE void cp_async(void* to, const void* from, int valid = Bytes PW_SITE_PARAM) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp_async copies 4, 8 or 16 bytes");
#if defined(PATCHWORD_SIMT_HOST)
  host::async_copy(to, from, Bytes, static_cast<std::size_t>(valid), site);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from),
                 "r"(valid), "n"(Bytes)
                 : "memory");
  }
#endif
}

// Closes the group of this thread's copies since the last commit.
PW_DEVICE void cp_async_commit() {
#if defined(PATCHWORD_SIMT_HOST)
  host::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most N of this thread's newest groups are under way. Other threads see the data
// only after a barrier that follows.
template <int N>
PW_DEVICE void cp_async_wait_group() {
#if defined(PATCHWORD_SIMT_HOST)
  host::async_wait(N, false);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Waits for all of this thread's copies, committed or not.
PW_DEVICE void cp_async_wait_all() {
#if defined(PATCHWORD_SIMT_HOST)
  host::async_wait(0, true);
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace patchword::simt
