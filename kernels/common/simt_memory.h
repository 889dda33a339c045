// SPDX-License-Identifier: Apache-2.0
// Shared memory of the block that the host SIMT engine runs: poisoned, bounded, checked.
//
// Each array is a heap block of its own, so that AddressSanitizer sees an access outside it;
// without it, canaries on both sides catch writes. Included by simt_host.cpp only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/common/simt_fiber.h"

namespace patchword::simt::host {

// Which thread last wrote 16 bytes by cp_async, and how many proxy fences it had made by then.
struct CopyMark {
  unsigned thread = ~0u, fences = 0;
};

class SharedMemory {
 public:
  struct Array {
    const void* key;
    const char* name;
    std::size_t bytes;
    unsigned address;  // on the device that the host plays
    std::unique_ptr<unsigned char, decltype(&std::free)> storage;
    std::vector<CopyMark> marks;

    unsigned char* begin() const { return storage.get() + kCanaryBytes; }
    unsigned char* end() const { return begin() + bytes; }
  };

  void* add(const void* key, const char* name, std::size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, std::max<std::size_t>(bytes + 2 * kCanaryBytes, 1))) {
      std::abort();
    }
    arrays_.push_back(
        {key, name, bytes, next_, {static_cast<unsigned char*>(memory), &std::free}, {}});
    next_ += static_cast<unsigned>((bytes + kAlignment - 1) / kAlignment * kAlignment);
    fill(arrays_.back());
    return arrays_.back().begin();
  }

  // The array added under `key`, or null.
  void* find(const void* key) const {
    for (const Array& array : arrays_) {
      if (array.key == key) return array.begin();
    }
    return nullptr;
  }

  // The array that holds [pointer, pointer + bytes), or null.
  Array* array_of(const void* pointer, std::size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(pointer);
    for (Array& array : arrays_) {
      if (p >= array.begin() && p + bytes <= array.end()) return &array;
    }
    return nullptr;
  }

  // The array that holds `bytes` at a device address, or null.
  const Array* array_at(unsigned address, std::size_t bytes) const {
    for (const Array& array : arrays_) {
      if (address >= array.address && address + bytes <= array.address + array.bytes) return &array;
    }
    return nullptr;
  }

  void mark(const void* pointer, const CopyMark& mark) {
    Array* array = array_of(pointer, 1);
    const auto at =
        static_cast<std::size_t>(static_cast<const unsigned char*>(pointer) - array->begin());
    array->marks.resize((array->bytes + 15) / 16);
    array->marks[at / 16] = mark;
  }

  // Uninitialised again, for the next block.
  void poison() {
    for (Array& array : arrays_) {
      fill(array);
      array.marks.clear();
    }
  }

  // An array whose canary before (after) it was overwritten, or null.
  const Array* damaged(bool before) const {
    for (const Array& array : arrays_) {
      const unsigned char* canary = before ? array.begin() - kCanaryBytes : array.end();
      if (std::any_of(canary, canary + kCanaryBytes, [](auto byte) { return byte != kCanary; })) {
        return &array;
      }
    }
    return nullptr;
  }

 private:
  static constexpr std::size_t kAlignment = 128;
  static constexpr std::size_t kCanaryBytes = PW_ASAN ? 0 : kAlignment;
  // All ones is NaN in every floating-point format, so that unwritten shared memory shows.
  static constexpr int kPoison = 0xff;
  static constexpr int kCanary = 0xa5;

  static void fill(const Array& array) {
    std::memset(array.begin() - kCanaryBytes, kCanary, kCanaryBytes);
    std::memset(array.begin(), kPoison, array.bytes);
    std::memset(array.end(), kCanary, kCanaryBytes);
  }

  // The hardware keeps the first KB. Off the 1 KB grid, so that no kernel counts on that alignment.
  unsigned next_ = 1024 + kAlignment;
  std::vector<Array> arrays_;
};

}  // namespace patchword::simt::host
