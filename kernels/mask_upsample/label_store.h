// SPDX-License-Identifier: Apache-2.0
// Labels in and out of the caller's integer type. For level units only.
#pragma once

#include "kernels/common/simd.h"
#include "kernels/common/types.h"

namespace patchword {
namespace PW_LEVEL {

// Calls body(pointer to the type of `dtype` at element `offset`).
template <typename Body>
PW_INLINE void with_label_type(DType dtype, const void* base, int64_t offset, Body&& body) {
  switch (dtype) {
    case DType::kUInt8: return body(static_cast<const uint8_t*>(base) + offset);
    case DType::kInt16: return body(static_cast<const int16_t*>(base) + offset);
    case DType::kInt32: return body(static_cast<const int32_t*>(base) + offset);
    default: return body(static_cast<const int64_t*>(base) + offset);
  }
}

template <typename T>
PW_INLINE T* writable(const T* p) {
  return const_cast<T*>(p);
}

// A label below 0 is a pixel without a winner.
inline void store_labels(DType dtype, void* out, int64_t offset, const int32_t* labels, int64_t n,
                         int64_t ignore_index) {
  with_label_type(dtype, out, offset, [&]<typename T>(const T* first) {
    T* target = writable(first);
    const T ignore = static_cast<T>(ignore_index);
    for (int64_t i = 0; i < n; ++i) {
      target[i] = labels[i] < 0 ? ignore : static_cast<T>(labels[i]);
    }
  });
}

inline void fill_labels(DType dtype, void* out, int64_t offset, int64_t label, int64_t n) {
  with_label_type(dtype, out, offset, [&]<typename T>(const T* first) {
    T* target = writable(first);
    for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(label);
  });
}

// histogram[target][label] += 1 where both are classes and the target is not ignored.
inline void count_pairs(DType dtype, const void* target, int64_t offset, const int32_t* labels,
                        int64_t n, int64_t ignore_index, int64_t channels, int64_t* histogram) {
  with_label_type(dtype, target, offset, [&]<typename T>(const T* wanted) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = static_cast<int64_t>(wanted[i]);
      if (labels[i] < 0 || row == ignore_index || row < 0 || row >= channels) continue;
      ++histogram[row * channels + labels[i]];
    }
  });
}

}  // namespace PW_LEVEL
}  // namespace patchword
