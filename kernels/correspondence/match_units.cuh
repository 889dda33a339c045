// SPDX-License-Identifier: Apache-2.0
// How the tiles of all pairs of a batch are dealt to blocks, and what a block knows of its part.
#pragma once

#include "kernels/common/mma_gemm.cuh"
#include "kernels/correspondence/match_prepare.cuh"

namespace patchword {
namespace {

// A block keeps one tile of rows and goes through `chunk` tiles of columns.
struct MatchUnits {
  std::int64_t chunk, chunks, count;
};

inline MatchUnits match_units(const MatchParams& p, const MatchCudaPlan& plan) {
  // Two blocks a multiprocessor even out unequal lengths; more only repeat the loading of rows.
  const std::int64_t wanted = 2 * simt::multiprocessor_count();
  const std::int64_t rows = p.pairs * plan.tiles[0];
  std::int64_t chunk = rows * plan.tiles[1] / (wanted > 0 ? wanted : 1);
  chunk = chunk < 1 ? 1 : (chunk > plan.tiles[1] ? plan.tiles[1] : chunk);
  const std::int64_t chunks = (plan.tiles[1] + chunk - 1) / chunk;
  return {chunk, chunks, rows * chunks};
}

struct MatchBlock {
  std::int64_t pair, row_tile, first_tile, last_tile;
  bool nothing;  // no row or no column of it takes part

  PW_DEVICE MatchBlock(const MatchParams& p, const MatchCudaPlan& plan, const MatchUnits& units) {
    const std::int64_t unit = blockIdx.x;
    const std::int64_t rows = unit / units.chunks;
    pair = rows / plan.tiles[0];
    row_tile = rows % plan.tiles[0];
    first_tile = unit % units.chunks * units.chunk;
    const std::int64_t used = simt::ceil_div(length_of(p.side1, pair), kMatchTile);
    last_tile = simt::min(first_tile + units.chunk, used);
    nothing = row_tile * kMatchTile >= length_of(p.side0, pair) || first_tile >= last_tile;
  }
};

template <class T>
PW_DEVICE simt::GemmOperand<T> operand_of(const MatchParams& p, const MatchCudaPlan& plan,
                                          int which) {
  const T* high = reinterpret_cast<const T*>(static_cast<const unsigned char*>(p.workspace) +
                                             plan.operand[which]);
  return {high, high + plan.low[which], plan.depth};
}

template <class T>
PW_DEVICE T* in_workspace(const MatchParams& p, std::int64_t offset) {
  return reinterpret_cast<T*>(static_cast<unsigned char*>(p.workspace) + offset);
}

}  // namespace
}  // namespace patchword
