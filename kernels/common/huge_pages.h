// SPDX-License-Identifier: Apache-2.0
// Large outputs in huge pages: without them, most of a memory-bound call is page faults.
#pragma once

#include <cstdint>

namespace patchword {

// Below this an allocator hands out memory again that has been touched before (NumPy's bound).
constexpr int64_t kHugePagesFrom = int64_t{1} << 22;

// Says that [begin, begin + bytes) is about to be written, perhaps for the first time: the system
// may then map it by huge pages. Contents stay as they are. Does nothing for small ranges, on
// systems without such a call, and when PATCHWORD_HUGE_PAGES is 0 in the environment.
void expect_writes(void* begin, int64_t bytes);

}  // namespace patchword
