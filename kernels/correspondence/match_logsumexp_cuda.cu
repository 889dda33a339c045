// SPDX-License-Identifier: Apache-2.0
// Log-sum-exp of every row and column of a batch of pairs on tensor cores, without their matrix.
//
// Launches: prepare both sides; sweep; merge. Sums are (maximum, sum) pairs in base 2. A block
// writes one pair per row and walk, and one per column and tile of rows; the last launch adds them
// in a fixed order, so that results are the same bits every time.
#include "kernels/correspondence/match_units.cuh"

namespace patchword {
namespace {

constexpr float kLog2e = 1.4426950408889634f;

// Sum of 2^x relative to 2^maximum. The lowest finite number stands for "nothing yet": it keeps
// -inf minus -inf, which is NaN, out of the exponent.
struct PowerSum {
  float maximum = -3.4028235e38f, sum = 0.0f;

  PW_DEVICE void raise(float to) {
    sum *= exp2f(maximum - to);
    maximum = to;
  }
  PW_DEVICE void add(const PowerSum& other) {
    const float top = fmaxf(maximum, other.maximum);
    sum = sum * exp2f(maximum - top) + other.sum * exp2f(other.maximum - top);
    maximum = top;
  }
  PW_DEVICE PowerSum shuffled(unsigned lanes) const {
    PowerSum other;
    other.maximum = simt::shuffle_xor(maximum, lanes);
    other.sum = simt::shuffle_xor(sum, lanes);
    return other;
  }
};

// Raises the reference to the largest of the values, then adds them. NaN makes the sum NaN.
template <int N>
PW_DEVICE void add_values(PowerSum& sum, const float (&values)[N]) {
  float top = sum.maximum;
  PW_UNROLL
  for (int i = 0; i < N; ++i) top = fmaxf(top, values[i]);
  if (top > 3.4028235e38f) top = 3.4028235e38f;  // +inf then gives an infinite sum, not NaN
  sum.raise(top);
  PW_UNROLL
  for (int i = 0; i < N; ++i) sum.sum += exp2f(values[i] - top);
}

template <class T, bool Split>
PW_KERNEL void PW_LAUNCH_BOUNDS(256)
    sweep_sums(MatchParams p, MatchCudaPlan plan, MatchUnits units) {
  using Tile = simt::GemmTile<T, Split>;
  PW_DYNAMIC_SHARED(unsigned char, arena);
  const MatchBlock block(p, plan, units);
  if (block.nothing) return;
  const int lane = static_cast<int>(simt::lane_id());
  const int group = lane / 4, quad = lane % 4, warp = static_cast<int>(simt::warp_id());

  const std::int64_t row_base = (block.pair * plan.tiles[0] + block.row_tile) * kMatchTile;
  const std::int64_t column_base = block.pair * plan.tiles[1] * kMatchTile;
  const float* factor0 = in_workspace<const float>(p, plan.factor[0]) + row_base;
  const float* factor1 = in_workspace<const float>(p, plan.factor[1]) + column_base;
  const std::uint64_t* parts0 = in_workspace<const std::uint64_t>(p, plan.limits[0]) + row_base;
  const std::uint64_t* parts1 = in_workspace<const std::uint64_t>(p, plan.limits[1]) + column_base;
  PowerSum* sums0 = in_workspace<PowerSum>(p, plan.sums[0]);
  PowerSum* sums1 = in_workspace<PowerSum>(p, plan.sums[1]);
  const simt::GemmOperand<T> a = operand_of<T>(p, plan, 0), b = operand_of<T>(p, plan, 1);
  PowerSum* shared = reinterpret_cast<PowerSum*>(arena);  // [4][128]
  const float excluded = -bit_cast<float>(0x7f800000u);

  PowerSum rows[Tile::kRowFragments][2];
  for (std::int64_t tile = block.first_tile; tile < block.last_tile; ++tile) {
    typename Tile::Accumulators product;
    Tile::run(arena, a, b, row_base, column_base + tile * kMatchTile, product);
    PW_UNROLL
    for (int m = 0; m < Tile::kRowFragments; ++m) {
      PW_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int row = Tile::warp_row() + m * 16 + h * 8 + group;
        const bool row_part = parts0[row] != 0;
        float values[2 * Tile::kColumnFragments];
        PW_UNROLL
        for (int n = 0; n < Tile::kColumnFragments; ++n) {
          PW_UNROLL
          for (int odd = 0; odd < 2; ++odd) {
            const std::int64_t column =
                tile * kMatchTile + Tile::warp_column() + n * 8 + 2 * quad + odd;
            float& score = product[m][n][2 * h + odd];
            score *= factor0[row];
            score *= factor1[column];
            if (!row_part || parts1[column] == 0) score = excluded;
            values[2 * n + odd] = score;
          }
        }
        add_values(rows[m][h], values);
      }
    }
    PW_UNROLL
    for (int n = 0; n < Tile::kColumnFragments; ++n) {
      PW_UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        float values[2 * Tile::kRowFragments];
        PW_UNROLL
        for (int i = 0; i < 2 * Tile::kRowFragments; ++i) {
          values[i] = product[i / 2][n][2 * (i % 2) + odd];
        }
        PowerSum column;
        add_values(column, values);
        column.add(column.shuffled(4));
        column.add(column.shuffled(8));
        column.add(column.shuffled(16));
        if (group == 0) {
          shared[warp / 4 * kMatchTile + Tile::warp_column() + n * 8 + 2 * quad + odd] = column;
        }
      }
    }
    simt::sync_block();
    if (threadIdx.x < kMatchTile) {
      PowerSum column = shared[threadIdx.x];
      column.add(shared[kMatchTile + threadIdx.x]);
      // Side 1 has one slot per tile of rows.
      sums1[(column_base + tile * kMatchTile + threadIdx.x) * plan.tiles[0] + block.row_tile] =
          column;
    }
    simt::sync_block();
  }
  PW_UNROLL
  for (int m = 0; m < Tile::kRowFragments; ++m) {
    PW_UNROLL
    for (int h = 0; h < 2; ++h) {
      PowerSum row = rows[m][h];
      row.add(row.shuffled(1));
      row.add(row.shuffled(2));
      if (quad == 0)
        shared[warp % 4 * kMatchTile + Tile::warp_row() + m * 16 + h * 8 + group] = row;
    }
  }
  simt::sync_block();
  if (threadIdx.x < kMatchTile) {
    PowerSum row = shared[threadIdx.x];
    for (int i = 1; i < 4; ++i) row.add(shared[i * kMatchTile + threadIdx.x]);
    // Side 0 has one slot per walk, that is per chunk of columns.
    sums0[(row_base + threadIdx.x) * plan.tiles[1] + block.first_tile / units.chunk] = row;
  }
}

// Before the sweep: which rows take part, as the term of prepare_rows says (NaN where not).
PW_KERNEL void PW_LAUNCH_BOUNDS(256) mark_parts(MatchParams p, MatchCudaPlan plan, int which) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= p.pairs * plan.tiles[which] * kMatchTile) return;
  const float term = in_workspace<const float>(p, plan.term[which])[at];
  in_workspace<std::uint64_t>(p, plan.limits[which])[at] = term == term ? 1 : 0;
}

// One thread per row of a side adds what the blocks left, in ascending order.
PW_KERNEL void PW_LAUNCH_BOUNDS(256)
    merge_sums(MatchParams p, MatchCudaPlan plan, MatchUnits units, int which) {
  const MatchSide& side = which == 0 ? p.side0 : p.side1;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= p.pairs * side.count) return;
  const std::int64_t pair = at / side.count, row = at % side.count;
  const std::int64_t padded = pair * plan.tiles[which] * kMatchTile + row;
  const std::int64_t other =
      simt::ceil_div(length_of(which == 0 ? p.side1 : p.side0, pair), kMatchTile);
  const std::int64_t slots = which == 0 ? simt::ceil_div(other, units.chunk) : other;
  const PowerSum* sums =
      in_workspace<const PowerSum>(p, plan.sums[which]) + padded * plan.tiles[1 - which];
  PowerSum total;
  const bool part = in_workspace<const std::uint64_t>(p, plan.limits[which])[padded] != 0;
  for (std::int64_t i = 0; part && i < slots; ++i) total.add(sums[i]);
  const float lse = total.sum == 0.0f ? -bit_cast<float>(0x7f800000u)
                                      : (total.maximum + log2f(total.sum)) * 0.69314718055994531f;
  (which == 0 ? p.logsumexp0 : p.logsumexp1)[at] = lse;
}

template <class T>
simt::Status match_logsumexp(const MatchParams& params, void* stream) {
  using Operand = typename simt::OperandOf<T>::Type;
  constexpr bool kSplit = simt::OperandOf<T>::kSplit;
  using Tile = simt::GemmTile<Operand, kSplit>;
  MatchParams p = params;
  p.scale *= kLog2e;
  const MatchCudaPlan plan =
      match_cuda_plan(p.pairs, p.side0.count, p.side1.count, p.dim, kSplit, true);
  const MatchUnits units = match_units(p, plan);
  simt::Status status = prepare_both<T>(p, plan, stream);
  for (int which = 0; which < 2 && status.ok(); ++which) {
    const std::int64_t rows = p.pairs * plan.tiles[which] * kMatchTile;
    status = PW_LAUNCH(mark_parts, simt::blocks_for(rows, 256), 256, 0, stream, p, plan, which);
  }
  if (status.ok()) {
    status = PW_RAISE_DYNAMIC_SHARED((sweep_sums<Operand, kSplit>), Tile::kSharedBytes);
  }
  if (status.ok()) {
    status = PW_LAUNCH((sweep_sums<Operand, kSplit>), static_cast<unsigned>(units.count),
                       Tile::kThreads, Tile::kSharedBytes, stream, p, plan, units);
  }
  for (int which = 0; which < 2 && status.ok(); ++which) {
    const std::int64_t rows = p.pairs * (which == 0 ? p.side0 : p.side1).count;
    status =
        PW_LAUNCH(merge_sums, simt::blocks_for(rows, 256), 256, 0, stream, p, plan, units, which);
  }
  return status;
}

}  // namespace
}  // namespace patchword

// Needs match_cuda_plan(...).bytes of workspace, 16-byte aligned; no side may be empty.
PW_EXPORT int pw_cuda_match_logsumexp(const patchword::MatchParams* p, void* stream, char* message,
                                      std::size_t message_length) {
  using namespace patchword;
  return simt::report_for_dtype(
      p->dtype, "match_logsumexp: descriptors", message, message_length,
      [&](auto type) { return match_logsumexp<typename decltype(type)::type>(*p, stream); });
}
