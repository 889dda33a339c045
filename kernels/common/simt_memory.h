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

class SharedMemory {
 public:
  struct Array {
    const void* key;
    const char* name;
    std::size_t bytes;
    std::unique_ptr<unsigned char, decltype(&std::free)> storage;

    unsigned char* begin() const { return storage.get() + kCanaryBytes; }
    unsigned char* end() const { return begin() + bytes; }
  };

  void* add(const void* key, const char* name, std::size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, std::max<std::size_t>(bytes + 2 * kCanaryBytes, 1))) {
      std::abort();
    }
    arrays_.push_back({key, name, bytes, {static_cast<unsigned char*>(memory), &std::free}});
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

  bool contains(const void* pointer, std::size_t bytes) const {
    const auto* p = static_cast<const unsigned char*>(pointer);
    return std::any_of(arrays_.begin(), arrays_.end(), [&](const Array& array) {
      return p >= array.begin() && p + bytes <= array.end();
    });
  }

  // Uninitialised again, for the next block.
  void poison() const {
    for (const Array& array : arrays_) fill(array);
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

  std::vector<Array> arrays_;
};

}  // namespace patchword::simt::host
