// SPDX-License-Identifier: Apache-2.0
// Keys of one tile of queries shared out over several blocks: who takes which, what each leaves in
// the workspace, and the launch that merges, always in the order of the splits.
#pragma once

#include "kernels/attention/attention_rows.cuh"

namespace patchword {
namespace {

constexpr int kMergeThreads = 256;
constexpr int kMergeColumns = 4;  // of a row, to a thread

// The keys of a split: from `first` up to the limit, whole runs but for the last one.
struct Share {
  Keys keys;
  std::int64_t first;
};

PW_DEVICE Share share_of(const Keys& keys, std::int64_t split, std::int64_t splits) {
  if (splits == 1) return Share{keys, 0};
  const std::int64_t runs = simt::ceil_div(keys.limit, std::int64_t{kKeyRun});
  const std::int64_t each = simt::ceil_div(runs, splits) * kKeyRun;
  const std::int64_t first = simt::min(split * each, keys.limit);
  return Share{Keys{simt::min(first + each, keys.limit), keys.mask}, first};
}

// The natural log-sum-exp of scores in base 2 with this maximum and sum of exponentials.
PW_DEVICE float natural_lse(float largest, float total) {
  return total == 0.0f ? -INFINITY : (largest + simt::fast_log2(total)) * kLn2;
}

// Leaves a warp's 16 rows from `first_row` on, up to `count`, at `slot` + row.
template <class State>
PW_DEVICE void store_partial(const AttentionParams& p, const AttentionPartials& partials,
                             std::int64_t slot, std::int64_t first_row, std::int64_t count,
                             const State& state) {
  const int group = static_cast<int>(simt::lane_id()) / 4;
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  float* const workspace = static_cast<float*>(p.workspace);
  const std::int64_t pitch = attention_pitch(p);
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row = first_row + group + 8 * half;
    if (row >= count) continue;
    float* const sums = workspace + partials.sums_at + (slot + row) * pitch;
    if (quad == 0) {
      simt::store_pack(workspace + partials.states_at + 2 * (slot + row),
                       simt::Pack<float, 2>{{state.largest[half], state.total[half]}});
    }
    if (state.total[half] == 0.0f) continue;  // no key: nobody reads the sums
    PW_UNROLL
    for (int n = 0; n < static_cast<int>(sizeof(state.acc) / sizeof(state.acc[0])); ++n) {
      if (n * 8 < pitch) {
        simt::store_pack(
            sums + n * 8 + 2 * quad,
            simt::Pack<float, 2>{{state.acc[n][2 * half], state.acc[n][2 * half + 1]}});
      }
    }
  }
}

struct MergePlan {
  AttentionPartials partials0, partials1;
  std::int64_t rows0, rows1;  // of all heads; 0 where keys were not split
  int lanes;                  // threads to a row
};

// A few threads a row, four columns each: they read the same states and do not meet.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kMergeThreads) merge_partials(AttentionParams p, MergePlan plan) {
  const int per_block = kMergeThreads / plan.lanes;
  std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * per_block +
                       static_cast<int>(threadIdx.x) / plan.lanes;
  if (index >= plan.rows0 + plan.rows1) return;
  const int stream = index >= plan.rows0 ? 1 : 0;
  if (stream == 1) index -= plan.rows0;
  const AttentionStream& s = p.streams[stream];
  const AttentionPartials partials = stream == 0 ? plan.partials0 : plan.partials1;
  const std::int64_t head = index / partials.rows, row = index % partials.rows;
  const int column = static_cast<int>(threadIdx.x) % plan.lanes * kMergeColumns;
  const std::int64_t pitch = attention_pitch(p), between = p.heads * partials.rows;
  const float* states = static_cast<const float*>(p.workspace) + partials.states_at + 2 * index;
  const float* sums =
      static_cast<const float*>(p.workspace) + partials.sums_at + index * pitch + column;

  float largest = -INFINITY;
  for (std::int64_t split = 0; split < partials.splits; ++split) {
    largest = simt::max(largest, states[2 * split * between]);
  }
  const float base = largest == -INFINITY ? 0.0f : largest;
  float total = 0.0f, sum[kMergeColumns] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (std::int64_t split = 0; split < partials.splits; ++split) {
    const auto state = simt::load_pack<2>(states + 2 * split * between);
    if (state[1] == 0.0f) continue;  // no key
    const float weight = simt::fast_exp2(state[0] - base);
    total += weight * state[1];
    if (column >= pitch) continue;
    const auto part = simt::load_pack<kMergeColumns>(sums + split * between * pitch);
    PW_UNROLL
    for (int i = 0; i < kMergeColumns; ++i) sum[i] += weight * part[i];
  }

  // Rows of ragged sets follow one another, and their batch stride is 0.
  const std::int64_t batch = s.query_offsets == nullptr ? row / s.num_queries : 0;
  const std::int64_t place = row - batch * s.num_queries;
  const float factor = total == 0.0f ? 0.0f : 1.0f / total;
  T* out = row_pointer<T>(s.out, s.out_stride, batch, head, place);
  PW_UNROLL
  for (int i = 0; i < kMergeColumns; ++i) {
    if (column + i < p.dim) out[column + i] = from_float<T>(sum[i] * factor);
  }
  if (s.lse != nullptr && column == 0) {
    *row_pointer<float>(s.lse, s.lse_stride, batch, head, place) = natural_lse(largest, total);
  }
}

// Where no keys were split there is nothing to do.
template <class T>
simt::Status merge_splits(const AttentionParams& p, const AttentionWorkspace& workspace,
                          void* stream) {
  const auto rows = [&](const AttentionPartials& one) {
    return one.splits > 1 ? p.heads * one.rows : 0;
  };
  MergePlan plan{};
  plan.partials0 = workspace.streams[0];
  plan.partials1 = workspace.streams[1];
  plan.rows0 = rows(plan.partials0);
  plan.rows1 = rows(plan.partials1);
  plan.lanes = p.dim <= 32 ? 8 : p.dim <= 64 ? 16 : 32;
  const std::int64_t count = plan.rows0 + plan.rows1;
  if (count == 0) return simt::Status{};
  const std::int64_t blocks = simt::ceil_div(count, std::int64_t{kMergeThreads / plan.lanes});
  if (blocks > INT32_MAX) return too_many_blocks();
  return PW_LAUNCH((merge_partials<T>), static_cast<unsigned>(blocks), kMergeThreads, 0, stream, p,
                   plan);
}

}  // namespace
}  // namespace patchword
