// SPDX-License-Identifier: Apache-2.0
// Joint counts on the CPU: bins of a chunk of pixels by plain vectorised loops, then several
// histograms in turn.
#include <type_traits>

#include "kernels/common/cpu_levels.h"
#include "kernels/common/simd.h"
#include "kernels/common/threads.h"
#include "kernels/confusion_counts/confusion_counts.h"
#include "kernels/confusion_counts/confusion_counts_plan.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

constexpr int64_t kChunk = 2048;  // pixels whose classes and bins stay in L1
// Histograms are 32-bit: they are added to the result before any can overflow.
constexpr int64_t kMostPixels = int64_t{1} << 31;
constexpr uint32_t kNone = 0xffffffffu;

// Labels as classes, or kNone where they are none.
template <typename Label>
PW_INLINE void classes_of(const Label* labels, int64_t count, int64_t classes, int64_t ignored,
                          uint32_t* out) {
  // 32 bits hold all classes; only int64 labels need more to tell that they are none.
  typedef std::conditional_t<(sizeof(Label) < sizeof(int64_t)), int32_t, int64_t> Wide;
  const Wide end = static_cast<Wide>(classes);
  const Wide hidden = static_cast<Wide>(ignored >= 0 && ignored < classes ? ignored : -1);
  for (int64_t i = 0; i < count; ++i) {
    const Wide label = labels[i];
    const bool counts = label >= 0 && label < end && label != hidden;
    out[i] = counts ? static_cast<uint32_t>(label) : kNone;
  }
}

void read_classes(const void* labels, DType dtype, int64_t first, int64_t count, int64_t classes,
                  int64_t ignored, uint32_t* out) {
  switch (dtype) {
    case DType::kUInt8:
      return classes_of(static_cast<const uint8_t*>(labels) + first, count, classes, ignored, out);
    case DType::kInt16:
      return classes_of(static_cast<const int16_t*>(labels) + first, count, classes, ignored, out);
    case DType::kInt32:
      return classes_of(static_cast<const int32_t*>(labels) + first, count, classes, ignored, out);
    default:
      return classes_of(static_cast<const int64_t*>(labels) + first, count, classes, ignored, out);
  }
}

template <int kCopies>
void count_bins(const uint32_t* bins, int64_t count, uint32_t* histograms, int64_t size) {
  int64_t i = 0;
  for (; i + kCopies <= count; i += kCopies) {
#pragma GCC unroll 4
    for (int k = 0; k < kCopies; ++k) ++histograms[k * size + bins[i + k]];
  }
  for (; i < count; ++i) ++histograms[bins[i]];
}

// Pixels [first, last), numbered over all images, into one thread's histograms.
void count_span(const ConfusionCountsParams& p, const ConfusionPlan& plan, int64_t first,
                int64_t last, uint32_t* histograms) {
  uint32_t target[kChunk], bins[kChunk];
  const uint32_t classes = static_cast<uint32_t>(p.classes);
  const uint32_t nowhere = classes * classes;
  for (int64_t at = first; at < last; at += kChunk) {
    const int64_t n = last - at < kChunk ? last - at : kChunk;
    read_classes(p.target, p.target_dtype, at, n, p.classes, p.ignore_index, target);
    // Every prediction counts: -1 is no class, so it ignores nothing more.
    read_classes(p.prediction, p.prediction_dtype, at, n, p.classes, -1, bins);
    for (int64_t i = 0; i < n; ++i) {
      const bool counts = target[i] != kNone && bins[i] != kNone;
      bins[i] = counts ? target[i] * classes + bins[i] : nowhere;
    }
    if (plan.copies == 4) {
      count_bins<4>(bins, n, histograms, plan.room);
    } else {
      count_bins<1>(bins, n, histograms, plan.room);
    }
  }
}

Status count(const ConfusionCountsParams& p, int threads) {
  const ConfusionPlan plan = confusion_plan(p, threads);
  const int64_t pairs = plan.bins - 1;
  const int64_t copies = static_cast<int64_t>(plan.threads) * plan.copies;
  uint32_t* histograms = static_cast<uint32_t*>(p.workspace);
  for (int64_t image = 0; image < p.images; ++image) {
    int64_t* counts = p.counts + image * pairs;
    __builtin_memset(counts, 0, static_cast<size_t>(pairs) * sizeof(int64_t));
    for (int64_t start = 0; start < p.pixels; start += kMostPixels) {
      const int64_t rest = p.pixels - start;
      const int64_t base = image * p.pixels + start;
      __builtin_memset(histograms, 0, static_cast<size_t>(copies * plan.room) * sizeof(uint32_t));
      parallel_for(plan.threads, rest < kMostPixels ? rest : kMostPixels,
                   [&](int64_t begin, int64_t end, int thread) {
                     count_span(p, plan, base + begin, base + end,
                                histograms + thread * plan.copies * plan.room);
                   });
      for (int64_t copy = 0; copy < copies; ++copy) {
        const uint32_t* from = histograms + copy * plan.room;
        for (int64_t bin = 0; bin < pairs; ++bin) counts[bin] += from[bin];
      }
    }
  }
  return ok_status();
}

}  // namespace
}  // namespace PW_LEVEL

extern const ConfusionCountsTable PW_LEVEL_TABLE(kConfusionCounts);
const ConfusionCountsTable PW_LEVEL_TABLE(kConfusionCounts) = {&PW_LEVEL::count};

}  // namespace patchword
