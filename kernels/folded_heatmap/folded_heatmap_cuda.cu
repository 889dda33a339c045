// SPDX-License-Identifier: Apache-2.0
// Folding and heat maps on CUDA: a block chooses the units of a text, threads add projection rows
// by column, a tiled product makes the maps, a warp judges each map.
#include "kernels/common/half.h"
#include "kernels/common/packed_argmax.h"
#include "kernels/common/simt.cuh"
#include "kernels/folded_heatmap/folded_heatmap.h"
#include "kernels/folded_heatmap/folded_heatmap_plan.h"

namespace patchword {
namespace {

constexpr int kThreads = 256;
constexpr int kCells = 32;  // columns of a product tile, one lane each
constexpr int kTexts = 16;  // rows of a product tile, two per warp
constexpr int kDepth = 32;  // channels staged at a time

// The units of text blockIdx.x: the `top` largest values, of equal ones the first, in rising order.
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) choose_units(const FoldUnitsParams p) {
  PW_SHARED(int32_t, scratch, kThreads / 32);
  const int64_t t = blockIdx.x;
  const float* text = p.text + t * p.units;
  const UnitLists lists = unit_lists(p);
  uint32_t threshold = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t tried = threshold | (1u << bit);
    int32_t reached = 0;
    for (int64_t u = threadIdx.x; u < p.units; u += kThreads) {
      reached += order_key(text[u]) >= tried ? 1 : 0;
    }
    if (simt::block_reduce(reached, simt::Sum{}, scratch) >= p.top) threshold = tried;
  }
  int32_t above = 0;
  for (int64_t u = threadIdx.x; u < p.units; u += kThreads) {
    above += order_key(text[u]) > threshold ? 1 : 0;
  }
  const int missing = static_cast<int>(p.top) - simt::block_reduce(above, simt::Sum{}, scratch);
  if (simt::warp_id() != 0) return;  // no barrier follows
  const unsigned lane = simt::lane_id();
  int64_t chosen = 0;
  int equals = 0;
  for (int64_t first = 0; first < p.units; first += 32) {
    const int64_t u = first + lane;
    const uint32_t key = u < p.units ? order_key(text[u]) : 0;
    const bool equal = u < p.units && key == threshold;
    const unsigned ties = simt::ballot(equal);
    const bool takes_part =
        (u < p.units && key > threshold) ||
        (equal && equals + simt::set_bits(ties & ((1u << lane) - 1u)) < missing);
    const unsigned votes = simt::ballot(takes_part);
    if (takes_part) {
      const int64_t at = t * p.top + chosen + simt::set_bits(votes & ((1u << lane) - 1u));
      lists.units[at] = static_cast<int32_t>(u);
      lists.weights[at] = fabsf(text[u]);
    }
    chosen += simt::set_bits(votes);
    equals += simt::set_bits(ties);
  }
}

// A thread owns one column of the folded vector of text first_text + blockIdx.y.
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) add_rows(const FoldUnitsParams p, int64_t first_text) {
  const int64_t t = first_text + blockIdx.y;
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (d >= p.channels) return;
  const UnitLists lists = unit_lists(p);
  float sum = 0.0f;
  for (int64_t n = t * p.top; n < (t + 1) * p.top; ++n) {
    sum = fmaf(lists.weights[n], p.projection[lists.units[n] * p.projection_stride + d], sum);
  }
  p.folded[t * p.channels + d] = sum;
}

// kTexts x kCells products of image first_image + blockIdx.z.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    multiply(const FoldedHeatmapParams p, int64_t first_image) {
  PW_SHARED(float, cells, kDepth* kCells);
  PW_SHARED(float, texts, kTexts*(kDepth + 1));
  const int64_t b = first_image + blockIdx.z;
  const int64_t size = p.height * p.width;
  const int64_t cell0 = static_cast<int64_t>(blockIdx.x) * kCells;
  const int64_t text0 = static_cast<int64_t>(blockIdx.y) * kTexts;
  const T* maps = static_cast<const T*>(p.maps) + b * p.maps_stride[0];
  const float* folded = p.folded + b * p.folded_stride;
  const int lane = static_cast<int>(simt::lane_id()), warp = static_cast<int>(simt::warp_id());
  float sum[2] = {};
  for (int64_t d0 = 0; d0 < p.channels; d0 += kDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kDepth * kCells; i += kThreads) {
      const int64_t d = d0 + i / kCells, cell = cell0 + i % kCells;
      cells[i] = d < p.channels && cell < size
                     ? to_float(maps[d * p.maps_stride[1] + cell * p.maps_stride[2]])
                     : 0.0f;
    }
    for (int i = static_cast<int>(threadIdx.x); i < kTexts * kDepth; i += kThreads) {
      const int64_t t = text0 + i / kDepth, d = d0 + i % kDepth;
      texts[i / kDepth * (kDepth + 1) + i % kDepth] =
          t < p.texts && d < p.channels ? folded[t * p.channels + d] : 0.0f;
    }
    simt::sync_block();
    PW_UNROLL
    for (int d = 0; d < kDepth; ++d) {
      const float value = cells[d * kCells + lane];
      PW_UNROLL
      for (int j = 0; j < 2; ++j) {
        sum[j] = fmaf(texts[(2 * warp + j) * (kDepth + 1) + d], value, sum[j]);
      }
    }
    simt::sync_block();
  }
  const int64_t cell = cell0 + lane;
  PW_UNROLL
  for (int j = 0; j < 2; ++j) {
    const int64_t t = text0 + 2 * warp + j;
    if (t < p.texts && cell < size) p.heat[(b * p.texts + t) * size + cell] = sum[j];
  }
}

// Place of the largest value and the mask of a map, one warp each.
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) judge(const FoldedHeatmapParams p) {
  const int64_t map = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + simt::warp_id();
  if (map >= p.batch * p.texts) return;  // the same for the whole warp
  const int64_t size = p.height * p.width;
  const float* heat = p.heat + map * size;
  const float infinity = bit_cast<float>(0x7f800000u);
  uint64_t best = 0;
  float low = infinity;
  for (int64_t i = simt::lane_id(); i < size; i += 32) {
    const int64_t place = p.columns_first != 0 ? i % p.width * p.height + i / p.width : i;
    const uint64_t packed = pack_argmax(order_key(heat[i]), static_cast<uint32_t>(place));
    best = packed > best ? packed : best;
    low = heat[i] < low ? heat[i] : low;
  }
  best = simt::warp_reduce(best, simt::Max{});
  low = simt::warp_reduce(low, simt::Min{});
  const float high = value_of_argmax(best);
  if (simt::lane_id() == 0) {
    const int64_t place = index_of_argmax(best);
    const int64_t along = p.columns_first != 0 ? p.height : p.width;
    const int64_t major = place < 0 ? -1 : place / along, minor = place < 0 ? -1 : place % along;
    p.location[2 * map] = p.columns_first != 0 ? major : minor;
    p.location[2 * map + 1] = p.columns_first != 0 ? minor : major;
  }
  if (p.mask == nullptr) return;
  const float limit = (p.from_minimum != 0 ? low : 0.0f) + p.threshold * (high - low);
  for (int64_t i = simt::lane_id(); i < size; i += 32) {
    p.mask[map * size + i] = heat[i] > limit ? 1 : 0;
  }
}

simt::Status fold(const FoldUnitsParams& p, void* stream) {
  simt::Status status =
      PW_LAUNCH((choose_units), dim3(static_cast<unsigned>(p.texts)), dim3(kThreads), 0, stream, p);
  for (int64_t t = 0; t < p.texts && status.ok(); t += simt::kMostBlocksYZ) {
    const dim3 grid(simt::blocks_for(p.channels, kThreads),
                    static_cast<unsigned>(simt::min(p.texts - t, simt::kMostBlocksYZ)));
    status = PW_LAUNCH((add_rows), grid, dim3(kThreads), 0, stream, p, t);
  }
  return status;
}

template <class T>
simt::Status heat_as(const FoldedHeatmapParams& p, void* stream) {
  simt::Status status;
  for (int64_t b = 0; b < p.batch && status.ok(); b += simt::kMostBlocksYZ) {
    const dim3 grid(simt::blocks_for(p.height * p.width, kCells), simt::blocks_for(p.texts, kTexts),
                    static_cast<unsigned>(simt::min(p.batch - b, simt::kMostBlocksYZ)));
    status = PW_LAUNCH((multiply<T>), grid, dim3(kThreads), 0, stream, p, b);
  }
  if (!status.ok()) return status;
  return PW_LAUNCH((judge), dim3(simt::blocks_for(p.batch * p.texts, kThreads / 32)),
                   dim3(kThreads), 0, stream, p);
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_fold_units(const patchword::FoldUnitsParams* p, void* stream, char* message,
                                 size_t length) {
  using namespace patchword;
  if (p->texts == 0 || p->channels == 0) return 0;
  return fold(*p, stream).report(message, length);
}

PW_EXPORT int pw_cuda_folded_heatmap(const patchword::FoldedHeatmapParams* p, void* stream,
                                     char* message, size_t length) {
  using namespace patchword;
  if (p->batch == 0 || p->texts == 0) return 0;
  return simt::report_for_dtype(p->dtype, "folded_heatmap: maps", message, length, [&](auto type) {
    return heat_as<typename decltype(type)::type>(*p, stream);
  });
}
