// SPDX-License-Identifier: Apache-2.0
// Which classes of a group a tile has to look at: the live ones, less those that cannot win.
#pragma once

#include "kernels/mask_upsample/upsample_tile.cuh"

namespace patchword {
namespace {

constexpr int kWarps = kThreads / 32;

struct CandidateScratch {
  float* warp_values;    // [kWarps]
  int32_t* warp_counts;  // [kWarps]
  int32_t* unbounded;    // [1]
  uint16_t* list;        // [kGroup] classes, counted from the group's first
};

PW_DEVICE bool takes_part(const MaskUpsampleParams& p, int64_t image, int64_t c) {
  return p.class_mask == nullptr || p.class_mask[image * p.class_mask_stride + c] != 0;
}

// Bounds of one class over the cells of the tile; false where a cell is too large, infinite or NaN.
PW_DEVICE bool bound_class(const MaskUpsampleParams& p, const Tile& tile, const TileTables& tables,
                           int64_t c, float& low, float& high) {
  const int64_t base = tile.image * p.logits_stride[0] + c * p.logits_stride[1];
  low = INFINITY;
  high = -INFINITY;
  bool moderate = true;
  for (int row = 0; row < tile.row_cells; ++row) {
    const int64_t at = base + tables.source_row[row] * p.logits_stride[2];
    for (int column = 0; column < tile.column_cells; ++column) {
      const float v = load_value(p, at + tables.source_column[column] * p.logits_stride[3]);
      moderate = moderate && fabsf(v) <= kModerate;
      low = fminf(low, v);
      high = fmaxf(high, v);
    }
  }
  return moderate;
}

// Bounds of the mixed values: bicubic weights may reach outside the taps by 0.44532 of the spread.
PW_DEVICE void widen_for_mode(const MaskUpsampleParams& p, float& low, float& high) {
  if (p.mode == UpsampleMode::kBilinear) return;
  const float spread = 0.44533f * (high - low);
  low -= spread;
  high += spread;
}

// Writes the candidates of classes [begin, end) in ascending order to scratch.list and returns
// their number. With `prune`, classes that lie below another everywhere in the tile, by more than
// the rounding guard and `margin`, are left out. In step before and after.
PW_DEVICE int list_candidates(const MaskUpsampleParams& p, const Tile& tile,
                              const TileTables& tables, int64_t begin, int64_t end, bool prune,
                              float margin, const CandidateScratch& scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  float cutoff = -INFINITY;
  if (prune) {
    if (thread == 0) *scratch.unbounded = 0;
    simt::sync_block();
    float lowest = -INFINITY, magnitude = 0.0f;
    for (int64_t c = begin + thread; c < end; c += kThreads) {
      if (!takes_part(p, tile.image, c)) continue;
      float low, high;
      if (!bound_class(p, tile, tables, c, low, high)) *scratch.unbounded = 1;
      magnitude = fmaxf(magnitude, fmaxf(fabsf(low), fabsf(high)));
      widen_for_mode(p, low, high);
      lowest = fmaxf(lowest, low);
    }
    lowest = simt::block_reduce(lowest, simt::Max{}, scratch.warp_values);
    magnitude = simt::block_reduce(magnitude, simt::Max{}, scratch.warp_values);
    const float guard = p.mode == UpsampleMode::kBilinear ? kBilinearGuard : kBicubicGuard;
    if (*scratch.unbounded == 0) cutoff = lowest - guard * magnitude - margin;
  }
  int total = 0;
  for (int64_t first = begin; first < end; first += kThreads) {
    const int64_t c = first + thread;
    bool keep = c < end && takes_part(p, tile.image, c);
    if (keep && cutoff > -INFINITY) {
      float low, high;
      bound_class(p, tile, tables, c, low, high);
      widen_for_mode(p, low, high);
      keep = high >= cutoff;
    }
    const unsigned votes = simt::ballot(keep);
    if (simt::lane_id() == 0) scratch.warp_counts[simt::warp_id()] = simt::set_bits(votes);
    simt::sync_block();
    int before = total;
    for (int w = 0; w < kWarps; ++w) {
      if (w < static_cast<int>(simt::warp_id())) before += scratch.warp_counts[w];
      total += scratch.warp_counts[w];
    }
    if (keep) {
      const int place = before + simt::set_bits(votes & ((1u << simt::lane_id()) - 1u));
      scratch.list[place] = static_cast<uint16_t>(c - begin);
    }
    simt::sync_block();
  }
  return total;
}

}  // namespace
}  // namespace patchword
