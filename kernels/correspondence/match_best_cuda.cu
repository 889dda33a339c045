// SPDX-License-Identifier: Apache-2.0
// Best score of every row and column of a batch of pairs on tensor cores, without their matrix.
//
// Launches: prepare both sides; sweep; write out. Of k candidates (and of best and second) each
// takes a sweep of its own, limited to what lies below the one before.
// A block of the sweep keeps 128 rows and goes through tiles of 128 columns. Rows: best key and
// index in registers for the whole walk, then one 64-bit atomic maximum each. Columns: reduced over
// the tile by shuffles and shared memory, then one 64-bit atomic maximum, skipped when it cannot
// win. Integer maxima commute: results do not depend on the order of blocks.
#include "kernels/correspondence/match_units.cuh"

namespace patchword {
namespace {

// Running best of one row or column of a thread.
struct Best {
  std::uint32_t key = 0, index = 0;
  // Indices come in ascending order, so that a strict comparison keeps the lowest.
  PW_DEVICE void offer(std::uint32_t candidate, std::uint32_t at) {
    index = candidate > key ? at : index;
    key = candidate > key ? candidate : key;
  }
  PW_DEVICE std::uint64_t packed() const { return pack_argmax(key, index); }
};

PW_DEVICE std::uint64_t larger(std::uint64_t a, std::uint64_t b) { return a < b ? b : a; }

// The key of a candidate, or 0 when it is not below the limit.
PW_DEVICE std::uint32_t below(std::uint64_t limit, std::uint32_t key, std::int64_t index) {
  return pack_argmax(key, static_cast<std::uint32_t>(index)) < limit ? key : 0u;
}

template <class T, bool Split>
PW_KERNEL void PW_LAUNCH_BOUNDS(256)
    sweep_best(MatchParams p, MatchCudaPlan plan, MatchUnits units, int columns_too, int limited) {
  using Tile = simt::GemmTile<T, Split>;
  PW_DYNAMIC_SHARED(unsigned char, arena);
  const MatchBlock block(p, plan, units);
  if (block.nothing) return;
  const int lane = static_cast<int>(simt::lane_id());
  const int group = lane / 4, quad = lane % 4;

  const std::int64_t row_base = (block.pair * plan.tiles[0] + block.row_tile) * kMatchTile;
  const std::int64_t column_base = block.pair * plan.tiles[1] * kMatchTile;
  const float* factor0 = in_workspace<const float>(p, plan.factor[0]) + row_base;
  const float* factor1 = in_workspace<const float>(p, plan.factor[1]) + column_base;
  const float* term0 = in_workspace<const float>(p, plan.term[0]) + row_base;
  const float* term1 = in_workspace<const float>(p, plan.term[1]) + column_base;
  std::uint64_t* keys0 = in_workspace<std::uint64_t>(p, plan.keys[0]) + row_base;
  std::uint64_t* keys1 = in_workspace<std::uint64_t>(p, plan.keys[1]) + column_base;
  const std::uint64_t* limits0 = in_workspace<const std::uint64_t>(p, plan.limits[0]) + row_base;
  const std::uint64_t* limits1 = in_workspace<const std::uint64_t>(p, plan.limits[1]) + column_base;
  const simt::GemmOperand<T> a = operand_of<T>(p, plan, 0), b = operand_of<T>(p, plan, 1);
  const ScoreRule rule{p.metric == MatchMetric::kL2};
  std::uint64_t* column_keys = reinterpret_cast<std::uint64_t*>(arena);  // [2][128]

  Best rows[Tile::kRowFragments][2];
  for (std::int64_t tile = block.first_tile; tile < block.last_tile; ++tile) {
    typename Tile::Accumulators product;
    Tile::run(arena, a, b, row_base, column_base + tile * kMatchTile, product);
    PW_UNROLL
    for (int n = 0; n < Tile::kColumnFragments; ++n) {
      PW_UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        const int in_tile = Tile::warp_column() + n * 8 + 2 * quad + odd;
        const std::int64_t column = tile * kMatchTile + in_tile;
        const float factor = factor1[column], term = term1[column];
        Best best;
        PW_UNROLL
        for (int m = 0; m < Tile::kRowFragments; ++m) {
          PW_UNROLL
          for (int h = 0; h < 2; ++h) {
            const int row = Tile::warp_row() + m * 16 + h * 8 + group;
            const float score =
                rule(product[m][n][2 * h + odd], factor0[row], factor, term0[row], term);
            std::uint32_t row_key = order_key(score), column_key = row_key;
            if (limited != 0) {
              row_key = below(limits0[row], row_key, column);
              column_key = below(limits1[column], column_key, block.row_tile * kMatchTile + row);
            }
            rows[m][h].offer(row_key, static_cast<std::uint32_t>(column));
            best.offer(column_key, static_cast<std::uint32_t>(block.row_tile * kMatchTile + row));
          }
        }
        if (columns_too != 0) {
          // Lanes 4, 8 and 16 apart hold other rows of this column.
          std::uint64_t packed = best.packed();
          packed = larger(packed, simt::shuffle_xor(packed, 4));
          packed = larger(packed, simt::shuffle_xor(packed, 8));
          packed = larger(packed, simt::shuffle_xor(packed, 16));
          if (group == 0) column_keys[simt::warp_id() / 4 * kMatchTile + in_tile] = packed;
        }
      }
    }
    if (columns_too != 0) {
      simt::sync_block();
      if (threadIdx.x < kMatchTile) {
        const std::uint64_t packed =
            larger(column_keys[threadIdx.x], column_keys[kMatchTile + threadIdx.x]);
        std::uint64_t* target = keys1 + tile * kMatchTile + threadIdx.x;
        // A stale value is only ever smaller than the true one.
        if (packed > *target) simt::atomic_max(target, packed);
      }
      // The next tile's copies overwrite column_keys.
      simt::sync_block();
    }
  }
  PW_UNROLL
  for (int m = 0; m < Tile::kRowFragments; ++m) {
    PW_UNROLL
    for (int h = 0; h < 2; ++h) {
      std::uint64_t packed = rows[m][h].packed();
      packed = larger(packed, simt::shuffle_xor(packed, 1));
      packed = larger(packed, simt::shuffle_xor(packed, 2));
      std::uint64_t* target = keys0 + Tile::warp_row() + m * 16 + h * 8 + group;
      if (quad == 0 && packed > *target) simt::atomic_max(target, packed);
    }
  }
}

// One thread per row of a side: writes candidate `place` of `k`, and makes it the next limit.
PW_KERNEL void PW_LAUNCH_BOUNDS(256)
    write_best(MatchParams p, MatchCudaPlan plan, int which, std::int64_t place, int as_second) {
  const MatchSide& side = which == 0 ? p.side0 : p.side1;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= p.pairs * side.count) return;
  const std::int64_t pair = at / side.count, row = at % side.count;
  const std::int64_t padded = (pair * plan.tiles[which]) * kMatchTile + row;
  std::uint64_t* key = in_workspace<std::uint64_t>(p, plan.keys[which]) + padded;
  const std::uint64_t packed = *key;
  if (as_second != 0) {
    (which == 0 ? p.second0 : p.second1)[at] = value_of_argmax(packed);
  } else {
    const std::int64_t k = which == 0 ? p.k : 1;
    (which == 0 ? p.indices0 : p.indices1)[at * k + place] = index_of_argmax(packed);
    (which == 0 ? p.scores0 : p.scores1)[at * k + place] = value_of_argmax(packed);
  }
  in_workspace<std::uint64_t>(p, plan.limits[which])[padded] = packed;
  *key = 0;
}

template <class T>
simt::Status match_best(const MatchParams& p, void* stream) {
  using Operand = typename simt::OperandOf<T>::Type;
  constexpr bool kSplit = simt::OperandOf<T>::kSplit;
  using Tile = simt::GemmTile<Operand, kSplit>;
  const MatchCudaPlan plan =
      match_cuda_plan(p.pairs, p.side0.count, p.side1.count, p.dim, kSplit, false);
  const MatchUnits units = match_units(p, plan);
  const bool columns = p.indices1 != nullptr, second = p.second0 != nullptr;
  simt::Status status = prepare_both<T>(p, plan, stream);
  if (status.ok()) {
    status = PW_RAISE_DYNAMIC_SHARED((sweep_best<Operand, kSplit>), Tile::kSharedBytes);
  }
  const std::int64_t sweeps = second ? 2 : p.k;
  for (std::int64_t sweep = 0; sweep < sweeps && status.ok(); ++sweep) {
    status =
        PW_LAUNCH((sweep_best<Operand, kSplit>), static_cast<unsigned>(units.count), Tile::kThreads,
                  Tile::kSharedBytes, stream, p, plan, units, columns ? 1 : 0, sweep > 0 ? 1 : 0);
    for (int which = 0; which < (columns ? 2 : 1) && status.ok(); ++which) {
      const std::int64_t rows = p.pairs * (which == 0 ? p.side0 : p.side1).count;
      status = PW_LAUNCH(write_best, simt::blocks_for(rows, 256), 256, 0, stream, p, plan, which,
                         sweep, second && sweep == 1 ? 1 : 0);
    }
  }
  return status;
}

}  // namespace
}  // namespace patchword

// Needs match_cuda_plan(...).bytes of workspace, 16-byte aligned; no side may be empty.
PW_EXPORT int pw_cuda_match_best(const patchword::MatchParams* p, void* stream, char* message,
                                 std::size_t message_length) {
  using namespace patchword;
  return simt::report_for_dtype(
      p->dtype, "match_best: descriptors", message, message_length,
      [&](auto type) { return match_best<typename decltype(type)::type>(*p, stream); });
}
