// SPDX-License-Identifier: Apache-2.0
// Joint counts on CUDA: a histogram per block in shared memory, or straight into the result where
// the classes are too many. Integer atomics commute, so the counts do not depend on the order.
#include "kernels/common/simt.cuh"
#include "kernels/confusion_counts/confusion_counts.h"

namespace patchword {
namespace {

constexpr int kThreads = 256;
constexpr int kSharedBins = 8192;         // 32 KB: up to 90 classes
constexpr int64_t kPixelsPerThread = 32;  // of one block: well below what 32-bit bins hold

PW_DEVICE int64_t label_at(const void* labels, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kUInt8: return static_cast<const uint8_t*>(labels)[i];
    case DType::kInt16: return static_cast<const int16_t*>(labels)[i];
    case DType::kInt32: return static_cast<const int32_t*>(labels)[i];
    default: return static_cast<const int64_t*>(labels)[i];
  }
}

// The bin of pixel i, or -1.
PW_DEVICE int64_t bin_of(const ConfusionCountsParams& p, int64_t i) {
  const int64_t target = label_at(p.target, p.target_dtype, i);
  const int64_t predicted = label_at(p.prediction, p.prediction_dtype, i);
  const bool counts = target >= 0 && target < p.classes && target != p.ignore_index &&
                      predicted >= 0 && predicted < p.classes;
  return counts ? target * p.classes + predicted : -1;
}

// A block counts kThreads * kPixelsPerThread pixels of image first_image + blockIdx.y.
template <bool kShared>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    count_pixels(const ConfusionCountsParams p, int64_t first_image) {
  PW_SHARED(uint32_t, bins, kShared ? kSharedBins : 1);
  const int64_t image = first_image + blockIdx.y;
  const int pairs = static_cast<int>(p.classes * p.classes);
  int64_t* counts = p.counts + image * pairs;
  if constexpr (kShared) {
    for (int k = static_cast<int>(threadIdx.x); k < pairs; k += kThreads) bins[k] = 0;
    simt::sync_block();
  }
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kPixelsPerThread;
  const int64_t last = simt::min<int64_t>(first + kThreads * kPixelsPerThread, p.pixels);
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    const int64_t bin = bin_of(p, image * p.pixels + i);
    if (bin < 0) continue;
    if constexpr (kShared) {
      simt::atomic_add(bins + bin, 1u);
    } else {
      simt::atomic_add(counts + bin, int64_t{1});
    }
  }
  if constexpr (kShared) {
    simt::sync_block();
    for (int k = static_cast<int>(threadIdx.x); k < pairs; k += kThreads) {
      if (bins[k] != 0) simt::atomic_add(counts + k, static_cast<int64_t>(bins[k]));
    }
  }
}

simt::Status run(const ConfusionCountsParams& p, void* stream) {
  const unsigned blocks = simt::blocks_for(p.pixels, kThreads * kPixelsPerThread);
  simt::Status status;
  for (int64_t image = 0; image < p.images && status.ok(); image += simt::kMostBlocksYZ) {
    const dim3 grid(blocks,
                    static_cast<unsigned>(simt::min(p.images - image, simt::kMostBlocksYZ)));
    status = p.classes * p.classes <= kSharedBins
                 ? PW_LAUNCH((count_pixels<true>), grid, dim3(kThreads), 0, stream, p, image)
                 : PW_LAUNCH((count_pixels<false>), grid, dim3(kThreads), 0, stream, p, image);
  }
  return status;
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_confusion_counts(const patchword::ConfusionCountsParams* p, void* stream,
                                       char* message, size_t length) {
  if (p->images == 0 || p->pixels == 0 || p->classes == 0) return 0;
  return patchword::run(*p, stream).report(message, length);
}
