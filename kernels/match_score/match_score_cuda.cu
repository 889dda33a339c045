// SPDX-License-Identifier: Apache-2.0
// Match scores on CUDA: a warp per few queries, the best value of a target cell by an atomic
// maximum on the bits of non-negative floats, then an ordered sum.

#include "kernels/common/half.h"
#include "kernels/common/simt.cuh"
#include "kernels/match_score/match_score.h"
#include "kernels/match_score/target_cell.h"

namespace patchword {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
// Lanes work out the targets of their warp side by side: float64 is slow on many GPUs.
constexpr int kQueriesPerWarp = 8;

template <class T, int kPack>
PW_DEVICE float dot(const T* a, const T* b, int64_t channels, int lane) {
  float sum = 0.0f;
  for (int64_t c = lane * kPack; c < channels; c += 32 * kPack) {
    const auto left = simt::load_pack<kPack>(a + c);
    const auto right = simt::load_pack<kPack>(b + c);
    PW_UNROLL
    for (int k = 0; k < kPack; ++k) sum = fmaf(to_float(left[k]), to_float(right[k]), sum);
  }
  return simt::warp_reduce(sum, simt::Sum{});
}

// `chunks` blocks share a pair. Maxima commute exactly, so the order of the warps does not matter.
template <class T, int kPack>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) best_per_cell(const MatchScoreParams p, int64_t chunks) {
  const int lane = static_cast<int>(simt::lane_id());
  const int64_t b = static_cast<int64_t>(blockIdx.x) / chunks;
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) % chunks;
  const int64_t first = (chunk * kWarps + simt::warp_id()) * kQueriesPerWarp;
  Target mine{};
  if (lane < kQueriesPerWarp && first + lane < p.queries) mine = target_of(p, b, first + lane);
  const T* map0 = static_cast<const T*>(p.features0) + b * p.features0_stride[0];
  const T* map1 = static_cast<const T*>(p.features1) + b * p.features1_stride[0];
  int32_t* best = static_cast<int32_t*>(p.workspace) + b * p.height * p.width;
  for (int i = 0; i < kQueriesPerWarp; ++i) {
    const float weight = simt::shuffle(mine.weight, i);
    const int32_t cell = simt::shuffle(mine.cell, i);
    if (weight == 0.0f) continue;  // the same for the whole warp
    const float value =
        weight * dot<T, kPack>(map0 + (first + i) * p.features0_stride[1],
                               map1 + cell * p.features1_stride[1], p.channels, lane);
    if (lane == 0 && value > 0.0f) simt::atomic_max(best + cell, bit_cast<int32_t>(value));
  }
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) add_cells(const MatchScoreParams p) {
  PW_SHARED(double, scratch, kWarps);
  const int64_t cells = p.height * p.width;
  const int32_t* best = static_cast<const int32_t*>(p.workspace) + blockIdx.x * cells;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < cells; i += kThreads) {
    sum += static_cast<double>(bit_cast<float>(best[i]));
  }
  sum = simt::block_reduce(sum, simt::Sum{}, scratch);
  if (threadIdx.x == 0) p.out[blockIdx.x] = static_cast<float>(sum);
}

bool packs(const MatchScoreParams& p, int64_t pack, int64_t element_bytes) {
  const int64_t* stride0 = p.features0_stride;
  const int64_t* stride1 = p.features1_stride;
  return simt::packs_at(p.features0, element_bytes, pack, {p.channels, stride0[0], stride0[1]}) &&
         simt::packs_at(p.features1, element_bytes, pack, {stride1[0], stride1[1]});
}

template <class T>
simt::Status forward_as(const MatchScoreParams& p, void* stream) {
  constexpr int kPack = 16 / sizeof(T);
  simt::Status status;
  const int64_t chunks = simt::ceil_div<int64_t>(p.queries, kWarps * kQueriesPerWarp);
  const dim3 grid(static_cast<unsigned>(p.batch * chunks));
  if (chunks > 0 && p.channels > 0) {
    status = packs(p, kPack, sizeof(T))
                 ? PW_LAUNCH((best_per_cell<T, kPack>), grid, dim3(kThreads), 0, stream, p, chunks)
                 : PW_LAUNCH((best_per_cell<T, 1>), grid, dim3(kThreads), 0, stream, p, chunks);
  }
  if (!status.ok()) return status;
  const dim3 pairs(static_cast<unsigned>(p.batch));
  return PW_LAUNCH((add_cells), pairs, dim3(kThreads), 0, stream, p);
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_match_score(const patchword::MatchScoreParams* p, void* stream, char* message,
                                  size_t length) {
  using namespace patchword;
  if (p->batch == 0) return 0;
  return simt::report_for_dtype(p->dtype, "match_score: features", message, length, [&](auto type) {
    return forward_as<typename decltype(type)::type>(*p, stream);
  });
}
