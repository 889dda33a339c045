// SPDX-License-Identifier: Apache-2.0
// What a block makes of a tile of logits in shared memory, and what it keeps between tiles.
#pragma once

#include "kernels/common/simt.cuh"
#include "kernels/patch_similarity/patch_similarity.h"
#include "kernels/patch_similarity/similarity_product.cuh"

namespace patchword {
namespace {

constexpr int kWarps = kThreads / simt::kWarpSize;
constexpr int kPerLane = kMaxColumns / simt::kWarpSize;
constexpr float kLog2E = 1.4426950408889634f;

PW_DEVICE float infinity() { return bit_cast<float>(0x7f800000u); }
PW_DEVICE bool is_finite(float x) { return x - x == 0.0f; }

// Orders like the float, with -0 as 0 and every NaN at the bottom; a larger class index makes the
// word smaller, so the maximum is "largest logit, lowest class". 0 stands for no candidate.
PW_DEVICE std::uint64_t candidate(float z, std::uint32_t index) {
  if (z != z) return 0;
  const std::uint32_t bits = bit_cast<std::uint32_t>(z + 0.0f);
  const std::uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<std::uint64_t>(key) << 32 | static_cast<std::uint32_t>(~index);
}
PW_DEVICE float candidate_value(std::uint64_t word) {
  const std::uint32_t key = static_cast<std::uint32_t>(word >> 32);
  return word == 0 ? -infinity() : bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
PW_DEVICE std::int64_t candidate_index(std::uint64_t word) {
  return word == 0 ? -1 : static_cast<std::int64_t>(~static_cast<std::uint32_t>(word));
}

// A tile of logits and the patches and classes it belongs to.
struct LogitTile {
  float* z;
  int step;  // floats from row to row; odd, so that columns are read without bank conflicts
  int rows, columns;
  int64_t batch, first_patch, first_class, classes;
  const std::uint8_t* take_part;  // of this tile's classes, or null when all do

  PW_DEVICE float at(int row, int column) const { return z[row * step + column]; }
  PW_DEVICE bool excluded(int column) const {
    return take_part != nullptr && take_part[column] == 0;
  }
};

// What a row keeps while class tiles pass; in shared memory, one of each per row.
struct RowState {
  float* maximum;       // of the classes that take part, and the background
  float* sum;           // of exponentials, relative to shift_of(maximum)
  std::uint64_t* best;  // [row][k] candidates, best first; k is 1 without top-k
  int kept;
};

// An infinite maximum is not subtracted: a row of -inf then has the log-sum-exp -inf.
PW_DEVICE float shift_of(float maximum) { return is_finite(maximum) ? maximum : 0.0f; }

template <class T, class Value>
PW_DEVICE void write_map(const LogitTile& t, void* map, bool channels_last, int64_t num_patches,
                         Value value) {
  T* out = static_cast<T*>(map);
  if (channels_last) {
    for (int row = static_cast<int>(simt::warp_id()); row < t.rows; row += kWarps) {
      T* target = out + (t.batch * num_patches + t.first_patch + row) * t.classes + t.first_class;
      for (int c = static_cast<int>(simt::lane_id()); c < t.columns; c += simt::kWarpSize) {
        target[c] = from_float<T>(value(row, c));
      }
    }
  } else {
    const int row = static_cast<int>(threadIdx.x) % kTileRows;
    if (row < t.rows) {
      for (int c = static_cast<int>(threadIdx.x) / kTileRows; c < t.columns;
           c += kThreads / kTileRows) {
        out[(t.batch * t.classes + t.first_class + c) * num_patches + t.first_patch + row] =
            from_float<T>(value(row, c));
      }
    }
  }
}

// Takes one row of the tile into its state; one warp, all lanes.
PW_DEVICE void update_row(const LogitTile& t, int row, const RowState& state, bool wants_sum) {
  const int lane = static_cast<int>(simt::lane_id());
  std::uint64_t candidates[kPerLane];
  float largest = -infinity();
  PW_UNROLL
  for (int j = 0; j < kPerLane; ++j) {
    const int c = lane + j * simt::kWarpSize;
    const bool counts = c < t.columns && !t.excluded(c);
    const float z = counts ? t.at(row, c) : -infinity();
    candidates[j] = counts ? candidate(z, static_cast<std::uint32_t>(t.first_class + c)) : 0;
    largest = z > largest ? z : largest;
  }
  if (wants_sum) {
    largest = simt::warp_reduce(largest, simt::Max{});
    const float before = state.maximum[row];
    const float maximum = before < largest ? largest : before;
    const float shift = shift_of(maximum);
    float sum = 0.0f;
    PW_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      const int c = lane + j * simt::kWarpSize;
      if (c < t.columns && !t.excluded(c)) sum += simt::fast_exp2((t.at(row, c) - shift) * kLog2E);
    }
    sum = simt::warp_reduce(sum, simt::Sum{});
    const float old = state.sum[row];
    simt::sync_warp();  // every lane has read the state before lane 0 changes it
    if (lane == 0) {
      // Nothing rescaled stays nothing, even by an infinite factor.
      const float kept =
          old == 0.0f ? 0.0f : old * simt::fast_exp2((shift_of(before) - shift) * kLog2E);
      state.sum[row] = kept + sum;
      state.maximum[row] = maximum;
    }
  }
  // The k best of the tile and of what was kept: lane r holds the r-th kept one.
  std::uint64_t* best = state.best + row * state.kept;
  std::uint64_t mine = lane < state.kept ? best[lane] : 0;
  std::uint64_t chosen = 0;
  for (int r = 0; r < state.kept; ++r) {
    std::uint64_t top = mine;
    PW_UNROLL
    for (int j = 0; j < kPerLane; ++j) top = candidates[j] > top ? candidates[j] : top;
    top = simt::warp_reduce(top, simt::Max{});
    if (mine == top) mine = 0;
    PW_UNROLL
    for (int j = 0; j < kPerLane; ++j) candidates[j] = candidates[j] == top ? 0 : candidates[j];
    if (lane == r) chosen = top;
  }
  simt::sync_warp();
  if (lane < state.kept) best[lane] = chosen;
}

// Floats as signed integers that order alike, for atomic minimum and maximum.
PW_DEVICE std::int32_t ordered(float x) {
  const std::int32_t bits = bit_cast<std::int32_t>(x + 0.0f);
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}
PW_DEVICE float from_ordered(std::int32_t key) {
  return bit_cast<float>(key < 0 ? key ^ 0x7fffffff : key);
}

PW_DEVICE void update_extremes(const LogitTile& t, float* minimum, float* maximum) {
  for (int c = static_cast<int>(threadIdx.x); c < t.columns; c += kThreads) {
    float low = infinity(), high = -infinity();
    for (int row = 0; row < t.rows; ++row) {
      const float z = t.at(row, c);
      low = z < low ? z : low;
      high = z > high ? z : high;
    }
    const int64_t at = t.batch * t.classes + t.first_class + c;
    simt::atomic_min(reinterpret_cast<std::int32_t*>(minimum) + at, ordered(low));
    simt::atomic_max(reinterpret_cast<std::int32_t*>(maximum) + at, ordered(high));
  }
}

// Outputs that are complete once every class tile has passed; one thread per row.
PW_DEVICE void write_rows(const PatchSimilarityParams& p, const LogitTile& t, const RowState& state,
                          bool anything) {
  const int row = static_cast<int>(threadIdx.x);
  if (row < t.rows) {
    const int64_t at = t.batch * p.num_patches + t.first_patch + row;
    const std::uint64_t* best = state.best + row * state.kept;
    const float maximum = state.maximum[row], sum = state.sum[row];
    if (p.logsumexp) p.logsumexp[at] = shift_of(maximum) + logf(sum);
    if (p.argmax) {
      const bool background = p.has_background && p.background > candidate_value(best[0]);
      p.argmax[at] = background ? -1 : candidate_index(best[0]);
      const float confidence = is_finite(maximum) ? 1.0f / sum : bit_cast<float>(0x7fc00000u);
      p.confidence[at] = anything ? confidence : 0.0f;
    }
    if (p.topk_values) {
      for (int r = 0; r < p.top_k; ++r) {
        p.topk_values[at * p.top_k + r] = candidate_value(best[r]);
        p.topk_indices[at * p.top_k + r] = candidate_index(best[r]);
      }
    }
  }
}

}  // namespace
}  // namespace patchword
