// SPDX-License-Identifier: Apache-2.0
// Match scores on the CPU: a pair per thread; nothing is gathered, every candidate row that is
// asked for is read once where it lies.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/simd.h"
#include "kernels/match_score/match_score.h"
#include "kernels/match_score/score_plan.h"
#include "kernels/match_score/target_cell.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Queries whose candidate rows are fetched ahead: a row is 2 to 4 KB at a place nobody can guess.
constexpr int64_t kAhead = 2;

template <typename Element>
PW_INLINE void prefetch_row(const typename Element::Storage* row, int64_t channels) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t size = channels * static_cast<int64_t>(sizeof(*row));
  for (int64_t at = 0; at < size; at += 64) __builtin_prefetch(bytes + at);
}

// Four sums, so that additions do not wait for each other.
template <typename Element>
PW_INLINE float dot(const typename Element::Storage* a, const typename Element::Storage* b,
                    int64_t channels) {
  VecF sum[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      sum[k] = fma(Element::load(a + c + k * kLanes), Element::load(b + c + k * kLanes), sum[k]);
    }
  }
  for (; c + kLanes <= channels; c += kLanes) {
    sum[0] = fma(Element::load(a + c), Element::load(b + c), sum[0]);
  }
  if (c < channels) {
    const int n = static_cast<int>(channels - c);
    sum[1] = fma(load_tail<Element>(a + c, n), load_tail<Element>(b + c, n), sum[1]);
  }
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Channels contiguous on both sides.
template <typename Element>
void dots_of_rows(const MatchScoreParams& p, const typename Element::Storage* map0,
                  const typename Element::Storage* map1, const Target* targets, float* dots) {
  const auto row1 = [&](int64_t q) { return map1 + targets[q].cell * p.features1_stride[1]; };
  for (int64_t q = 0; q < p.queries; ++q) {
    if (q + kAhead < p.queries && targets[q + kAhead].weight != 0.0f) {
      prefetch_row<Element>(row1(q + kAhead), p.channels);
    }
    if (targets[q].weight == 0.0f) continue;
    dots[q] = dot<Element>(map0 + q * p.features0_stride[1], row1(q), p.channels);
  }
}

// Any strides, channel by channel: with planes of cells, as a backbone leaves them, both planes of
// a channel stay in the first cache while all queries look into them.
template <typename Element>
void dots_of_planes(const MatchScoreParams& p, const typename Element::Storage* map0,
                    const typename Element::Storage* map1, const Target* targets, float* dots) {
  for (int64_t q = 0; q < p.queries; ++q) dots[q] = 0.0f;
  for (int64_t c = 0; c < p.channels; ++c) {
    const auto* plane0 = map0 + c * p.features0_stride[2];
    const auto* plane1 = map1 + c * p.features1_stride[2];
    for (int64_t q = 0; q < p.queries; ++q) {
      const float a = load_scalar<Element>(plane0 + q * p.features0_stride[1]);
      dots[q] += a * load_scalar<Element>(plane1 + targets[q].cell * p.features1_stride[1]);
    }
  }
}

template <typename Element>
void score_pair(const MatchScoreParams& p, int64_t b, float* best, Target* targets, float* dots) {
  typedef typename Element::Storage T;
  const T* map0 = static_cast<const T*>(p.features0) + b * p.features0_stride[0];
  const T* map1 = static_cast<const T*>(p.features1) + b * p.features1_stride[0];
  for (int64_t q = 0; q < p.queries; ++q) targets[q] = target_of(p, b, q);
  if (p.features0_stride[2] == 1 && p.features1_stride[2] == 1) {
    dots_of_rows<Element>(p, map0, map1, targets, dots);
  } else {
    dots_of_planes<Element>(p, map0, map1, targets, dots);
  }
  const int64_t cells = p.height * p.width;
  for (int64_t i = 0; i < cells; ++i) best[i] = 0.0f;
  for (int64_t q = 0; q < p.queries; ++q) {
    if (targets[q].weight == 0.0f) continue;
    const float value = targets[q].weight * dots[q];
    float& held = best[targets[q].cell];
    held = value > held ? value : held;  // false for NaN
  }
  double sum = 0.0;
  for (int64_t i = 0; i < cells; ++i) sum += static_cast<double>(best[i]);
  p.out[b] = static_cast<float>(sum);
}

template <typename Element>
Status forward_as(const MatchScoreParams& p, int threads) {
  const ScorePlan plan = score_plan(p, threads);
  parallel_for(plan.threads, p.batch, [&](int64_t begin, int64_t end, int thread) {
    char* own = static_cast<char*>(p.workspace) + thread * plan.thread_bytes;
    for (int64_t b = begin; b < end; ++b) {
      score_pair<Element>(p, b, reinterpret_cast<float*>(own),
                          reinterpret_cast<Target*>(own + plan.targets_at),
                          reinterpret_cast<float*>(own + plan.dots_at));
    }
  });
  return ok_status();
}

Status forward(const MatchScoreParams& p, int threads) {
  if (p.batch == 0) return ok_status();
  if (p.height <= 0 || p.width <= 0) return invalid("features1 must have at least one cell");
  if (p.height > kMatchScoreMaxSide || p.width > kMatchScoreMaxSide) {
    return unsupported("the grid must have at most 2^24 cells along each axis");
  }
  switch (p.dtype) {
    case DType::kFloat32: return forward_as<Float32>(p, threads);
    case DType::kFloat16: return forward_as<Float16>(p, threads);
    case DType::kBFloat16: return forward_as<BFloat16>(p, threads);
    default: return unsupported("features must be float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace PW_LEVEL

extern const MatchScoreTable PW_LEVEL_TABLE(kMatchScore);
const MatchScoreTable PW_LEVEL_TABLE(kMatchScore) = {&PW_LEVEL::forward};

}  // namespace patchword
