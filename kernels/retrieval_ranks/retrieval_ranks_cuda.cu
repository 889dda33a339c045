// SPDX-License-Identifier: Apache-2.0
// Ranks on CUDA: embeddings as 16-bit operands, true scores from the diagonals of gathered tiles,
// then every tile compared in registers and counted by integer atomics.
//
// A score is a sum over depth in an order that does not depend on its place in a tile, so a true
// score equals the one that the sweep meets. Traffic: operands once per tile, two counters a row.

#include "kernels/common/mma_gemm.cuh"
#include "kernels/common/packed_argmax.h"
#include "kernels/common/simt.cuh"
#include "kernels/retrieval_ranks/rank_rule.h"
#include "kernels/retrieval_ranks/retrieval_ranks.h"

namespace patchword {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kTile = 128;
constexpr int64_t kSliceDepth = 32;

// Queries, gallery, and the gallery's rows gathered by truth: [P][queries padded].
enum Side { kQueries = 0, kGallery = 1, kTruth = 2 };

// Byte offsets into the workspace; rows are padded to whole tiles.
struct Plan {
  int64_t depth;
  int64_t rows[3];     // padded
  int64_t operand[3];  // 16-bit rows [rows][depth], for float32 high, then low
  int64_t factor[3];   // float [rows], multiplies the raw product
  int64_t limit[2];    // RankLimit [rows]
  int64_t count[2];    // int32 [rows]
  int64_t best;        // uint64 [gallery rows], packed best true query of an item
  int64_t bytes;
};

Plan make_plan(const RetrievalRanksParams& p) {
  Plan plan{};
  plan.depth = simt::ceil_div(p.dim < 1 ? int64_t{1} : p.dim, kSliceDepth) * kSliceDepth;
  plan.rows[kQueries] = simt::ceil_div(p.rows, kTile) * kTile;
  plan.rows[kGallery] = simt::ceil_div(p.columns, kTile) * kTile;
  plan.rows[kTruth] = p.truths * plan.rows[kQueries];
  const int64_t element = p.dtype == DType::kFloat32 ? 4 : 2;
  int64_t at = 0;
  for (int side = 0; side < 3; ++side) {
    plan.operand[side] = at;
    at += plan.rows[side] * plan.depth * element;
    plan.factor[side] = at;
    at += plan.rows[side] * 4;
  }
  for (int side = 0; side < 2; ++side) {
    plan.limit[side] = at;
    at += plan.rows[side] * static_cast<int64_t>(sizeof(RankLimit));
    plan.count[side] = at;
    at += plan.rows[side] * 4;
  }
  plan.best = at;
  plan.bytes = at + plan.rows[kGallery] * 8;
  return plan;
}

template <class T>
PW_DEVICE T* at(const RetrievalRanksParams& p, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<unsigned char*>(p.workspace) + offset);
}

template <class Operand>
PW_DEVICE simt::GemmOperand<Operand> operand_of(const RetrievalRanksParams& p, const Plan& plan,
                                                int side, int64_t first) {
  const Operand* high = at<const Operand>(p, plan.operand[side]) + first * plan.depth;
  return {high, high + plan.rows[side] * plan.depth, plan.depth};
}

// 2^exponent, for exponents of normal numbers.
PW_DEVICE float power_of_two(int exponent) {
  return bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

// The row of queries or gallery that padded row `row` of a side holds, or -1.
PW_DEVICE int64_t source_row(const RetrievalRanksParams& p, const Plan& plan, int side,
                             int64_t row) {
  if (side == kQueries) return row < p.rows ? row : -1;
  if (side == kGallery) return row < p.columns ? row : -1;
  const int64_t n = row % plan.rows[kQueries];
  if (n >= p.rows) return -1;
  const int64_t item = p.truth[n * p.truths + row / plan.rows[kQueries]];
  return item >= 0 && item < p.columns ? item : -1;
}

// One side of the plan, picked on the host: indexed at run time, a kernel's parameters would be
// copied to the stack.
struct SidePlan {
  int which;
  const void* source;
  int64_t row_stride, element_stride;
  int64_t rows, operand, factor, limit, count;
  int64_t* ranks;
};

SidePlan side_of(const RetrievalRanksParams& p, const Plan& plan, int side) {
  const bool queries = side == kQueries;
  const int64_t* stride = queries ? p.queries_stride : p.gallery_stride;
  SidePlan picked{};
  picked.which = side;
  picked.source = queries ? p.queries : p.gallery;
  picked.row_stride = stride[0];
  picked.element_stride = stride[1];
  picked.rows = plan.rows[side];
  picked.operand = plan.operand[side];
  picked.factor = plan.factor[side];
  if (side != kTruth) {
    picked.limit = plan.limit[side];
    picked.count = plan.count[side];
    picked.ranks = queries ? p.ranks0 : p.ranks1;
  }
  return picked;
}

// A warp prepares one padded row, scaled by a power of two so that its largest element lies in
// [2^14, 2^15): exact, and the low halves of float32 then stay far from Half's subnormals.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    prepare_rows(const RetrievalRanksParams p, const Plan plan, const SidePlan side) {
  using Operand = typename simt::OperandOf<T>::Type;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + simt::warp_id();
  if (row >= side.rows) return;
  const int lane = static_cast<int>(simt::lane_id());
  const int64_t source = source_row(p, plan, side.which, row);
  const T* from = static_cast<const T*>(side.source) + (source < 0 ? 0 : source * side.row_stride);
  float largest = 0.0f;
  for (int64_t d = lane; source >= 0 && d < p.dim; d += 32) {
    largest = fmaxf(largest, fabsf(to_float(from[d * side.element_stride])));
  }
  largest = simt::warp_reduce(largest, simt::Max{});
  int exponent = 0;
  if (largest > 0.0f && largest < bit_cast<float>(0x7f800000u)) {
    // Exponent of the largest element; subnormals count as the smallest normal number.
    const int stored = static_cast<int>(bit_cast<uint32_t>(largest) >> 23);
    exponent = 14 - ((stored == 0 ? 1 : stored) - 127);
    exponent = exponent > 126 ? 126 : exponent;
  }
  const float scale = power_of_two(exponent);
  Operand* high = at<Operand>(p, side.operand) + row * plan.depth;
  for (int64_t d = lane; d < plan.depth; d += 32) {
    const float x =
        source >= 0 && d < p.dim ? to_float(from[d * side.element_stride]) * scale : 0.0f;
    high[d] = from_float<Operand>(x);
    if constexpr (simt::OperandOf<T>::kSplit) {
      high[side.rows * plan.depth + d] = from_float<Operand>(x - to_float(high[d]));
    }
  }
  if (lane != 0) return;
  at<float>(p, side.factor)[row] = power_of_two(-exponent);
  if (side.which == kTruth) return;
  at<int32_t>(p, side.count)[row] = 0;
  at<RankLimit>(p, side.limit)[row] = nobody();
  if (side.which == kGallery) at<uint64_t>(p, plan.best)[row] = 0;
}

// Takes a true score into account on the gallery's side: score first, then the larger index.
// 1 stands for "NaN only", which every number beats.
PW_DEVICE void offer_to_item(uint64_t* best, float score, int64_t row) {
  const uint32_t key = order_key(score);
  const uint64_t packed =
      key == 0 ? 1 : (static_cast<uint64_t>(key) << 32) | static_cast<uint32_t>(row);
  simt::atomic_max(best, packed);
}

// A block takes a tile of queries and, for each of their true items in turn, the tile of gathered
// rows: the diagonal holds the true scores. Two threads never own the same diagonal element.
template <class Operand, bool Split>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    find_limits(const RetrievalRanksParams p, const Plan plan, int both) {
  using Tile = simt::GemmTile<Operand, Split>;
  PW_DYNAMIC_SHARED(unsigned char, arena);
  PW_SHARED(RankLimit, limits, kTile);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int lane = static_cast<int>(simt::lane_id()), group = lane / 4, quad = lane % 4;
  const float* factor0 = at<const float>(p, plan.factor[kQueries]);
  const float* factor1 = at<const float>(p, plan.factor[kTruth]);
  if (threadIdx.x < kTile) limits[threadIdx.x] = nobody();
  simt::sync_block();
  for (int64_t t = 0; t < p.truths; ++t) {
    const int64_t gathered = t * plan.rows[kQueries] + row0;
    typename Tile::Accumulators product;
    Tile::run(arena, operand_of<Operand>(p, plan, kQueries, 0),
              operand_of<Operand>(p, plan, kTruth, 0), row0, gathered, product);
    PW_UNROLL
    for (int m = 0; m < Tile::kRowFragments; ++m) {
      PW_UNROLL
      for (int n = 0; n < Tile::kColumnFragments; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int r = Tile::warp_row() + m * 16 + (i / 2) * 8 + group;
          const int c = Tile::warp_column() + n * 8 + 2 * quad + i % 2;
          const int64_t row = row0 + r;
          if (r != c || source_row(p, plan, kTruth, gathered + r) < 0) continue;
          const int64_t item = p.truth[row * p.truths + t];
          const float score = product[m][n][i] * factor0[row] * factor1[gathered + r];
          RankLimit limit = limits[r];
          offer_truth(limit, score, static_cast<int32_t>(item));
          limits[r] = limit;
          if (both != 0) offer_to_item(at<uint64_t>(p, plan.best) + item, score, row);
        }
      }
    }
    simt::sync_block();
  }
  if (threadIdx.x < kTile) {
    RankLimit limit = limits[threadIdx.x];
    settle(limit, p.ties);
    at<RankLimit>(p, plan.limit[kQueries])[row0 + threadIdx.x] = limit;
  }
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    settle_items(const RetrievalRanksParams p, const Plan plan) {
  const int64_t m = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (m >= plan.rows[kGallery]) return;
  const uint64_t packed = at<const uint64_t>(p, plan.best)[m];
  RankLimit limit = nobody();
  if (packed == 1) {
    limit.item = -2;
  } else if (packed != 0) {
    limit.score = value_of_order_key(static_cast<uint32_t>(packed >> 32));
    limit.item = static_cast<int32_t>(static_cast<uint32_t>(packed));
  }
  settle(limit, p.ties);
  at<RankLimit>(p, plan.limit[kGallery])[m] = limit;
}

PW_DEVICE int comes_first(float score, int64_t index, const RankLimit& limit) {
  return score > limit.score || (score == limit.score && index > limit.bound) ? 1 : 0;
}

// A block per tile of scores.
template <class Operand, bool Split>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    count_tile(const RetrievalRanksParams p, const Plan plan, int both) {
  using Tile = simt::GemmTile<Operand, Split>;
  PW_DYNAMIC_SHARED(unsigned char, arena);
  const int64_t column_tiles = plan.rows[kGallery] / kTile;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) / column_tiles * kTile;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) % column_tiles * kTile;
  const int lane = static_cast<int>(simt::lane_id()), group = lane / 4, quad = lane % 4;
  typename Tile::Accumulators score;
  Tile::run(arena, operand_of<Operand>(p, plan, kQueries, 0),
            operand_of<Operand>(p, plan, kGallery, 0), row0, column0, score);
  const float* factor0 = at<const float>(p, plan.factor[kQueries]);
  const float* factor1 = at<const float>(p, plan.factor[kGallery]);
  int32_t* count0 = at<int32_t>(p, plan.count[kQueries]);
  int32_t* count1 = at<int32_t>(p, plan.count[kGallery]);
  PW_UNROLL
  for (int m = 0; m < Tile::kRowFragments; ++m) {
    PW_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t row = row0 + Tile::warp_row() + m * 16 + h * 8 + group;
      const RankLimit limit = at<const RankLimit>(p, plan.limit[kQueries])[row];
      const float factor = factor0[row];
      int counted = 0;
      PW_UNROLL
      for (int n = 0; n < Tile::kColumnFragments; ++n) {
        PW_UNROLL
        for (int odd = 0; odd < 2; ++odd) {
          const int64_t column = column0 + Tile::warp_column() + n * 8 + 2 * quad + odd;
          float& s = score[m][n][2 * h + odd];
          s = s * factor * factor1[column];
          if (column < p.columns) counted += comes_first(s, column, limit);
        }
      }
      // Lanes 1 and 2 apart hold other columns of this row.
      counted += simt::shuffle_xor(counted, 1);
      counted += simt::shuffle_xor(counted, 2);
      if (quad == 0 && counted != 0) simt::atomic_add(count0 + row, counted);
    }
  }
  if (both == 0) return;
  PW_UNROLL
  for (int n = 0; n < Tile::kColumnFragments; ++n) {
    PW_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      const int64_t column = column0 + Tile::warp_column() + n * 8 + 2 * quad + odd;
      const RankLimit limit = at<const RankLimit>(p, plan.limit[kGallery])[column];
      int counted = 0;
      PW_UNROLL
      for (int m = 0; m < Tile::kRowFragments; ++m) {
        PW_UNROLL
        for (int h = 0; h < 2; ++h) {
          const int64_t row = row0 + Tile::warp_row() + m * 16 + h * 8 + group;
          if (row < p.rows) counted += comes_first(score[m][n][2 * h + odd], row, limit);
        }
      }
      counted += simt::shuffle_xor(counted, 4);
      counted += simt::shuffle_xor(counted, 8);
      counted += simt::shuffle_xor(counted, 16);
      if (group == 0 && counted != 0) simt::atomic_add(count1 + column, counted);
    }
  }
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    write_ranks(const RetrievalRanksParams p, const SidePlan side) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= (side.which == kQueries ? p.rows : p.columns)) return;
  const RankLimit limit = at<const RankLimit>(p, side.limit)[i];
  side.ranks[i] = rank_of(limit, p.ties, at<const int32_t>(p, side.count)[i]);
}

// A warp per row of given scores.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) rank_row(const ScoreRanksParams p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + simt::warp_id();
  if (row >= p.rows) return;
  const T* scores = static_cast<const T*>(p.scores) + row * p.row_stride;
  RankLimit limit = nobody();
  for (int64_t t = 0; t < p.truths; ++t) {
    const int64_t item = p.truth[row * p.truths + t];
    if (item < 0 || item >= p.columns) continue;
    offer_truth(limit, to_float(scores[item]), static_cast<int32_t>(item));
  }
  settle(limit, p.ties);
  int counted = 0;
  for (int64_t c = simt::lane_id(); c < p.columns; c += 32) {
    counted += comes_first(to_float(scores[c]), c, limit);
  }
  counted = simt::warp_reduce(counted, simt::Sum{});
  if (simt::lane_id() == 0) p.ranks[row] = rank_of(limit, p.ties, counted);
}

template <class T>
simt::Status ranks_as(const RetrievalRanksParams& p, void* stream) {
  using Operand = typename simt::OperandOf<T>::Type;
  constexpr bool kSplit = simt::OperandOf<T>::kSplit;
  using Tile = simt::GemmTile<Operand, kSplit>;
  const Plan plan = make_plan(p);
  const int both = p.ranks1 != nullptr ? 1 : 0;
  simt::Status status;
  for (int side = 0; side < 3 && status.ok(); ++side) {
    if (plan.rows[side] == 0) continue;
    status = PW_LAUNCH((prepare_rows<T>), simt::blocks_for(plan.rows[side], kThreads / 32),
                       kThreads, 0, stream, p, plan, side_of(p, plan, side));
  }
  if (status.ok()) {
    status = PW_RAISE_DYNAMIC_SHARED((find_limits<Operand, kSplit>), Tile::kSharedBytes);
  }
  if (status.ok()) {
    status = PW_LAUNCH((find_limits<Operand, kSplit>), simt::blocks_for(plan.rows[kQueries], kTile),
                       kThreads, Tile::kSharedBytes, stream, p, plan, both);
  }
  if (status.ok() && both != 0) {
    status = PW_LAUNCH(settle_items, simt::blocks_for(plan.rows[kGallery], kThreads), kThreads, 0,
                       stream, p, plan);
  }
  if (status.ok()) {
    status = PW_RAISE_DYNAMIC_SHARED((count_tile<Operand, kSplit>), Tile::kSharedBytes);
  }
  if (status.ok()) {
    const int64_t tiles = plan.rows[kQueries] / kTile * (plan.rows[kGallery] / kTile);
    status = PW_LAUNCH((count_tile<Operand, kSplit>), simt::blocks_for(tiles, 1), kThreads,
                       Tile::kSharedBytes, stream, p, plan, both);
  }
  for (int side = 0; side < 1 + both && status.ok(); ++side) {
    const int64_t rows = side == kQueries ? p.rows : p.columns;
    status = PW_LAUNCH(write_ranks, simt::blocks_for(rows, kThreads), kThreads, 0, stream, p,
                       side_of(p, plan, side));
  }
  return status;
}

template <class T>
simt::Status score_ranks_as(const ScoreRanksParams& p, void* stream) {
  return PW_LAUNCH(rank_row<T>, simt::blocks_for(p.rows, kThreads / 32), kThreads, 0, stream, p);
}

}  // namespace
}  // namespace patchword

// Bytes of workspace of pw_cuda_retrieval_ranks, 16-byte aligned.
PW_EXPORT int64_t pw_cuda_retrieval_ranks_workspace(const patchword::RetrievalRanksParams* p) {
  return patchword::make_plan(*p).bytes;
}

// Neither side may be empty.
PW_EXPORT int pw_cuda_retrieval_ranks(const patchword::RetrievalRanksParams* p, void* stream,
                                      char* message, size_t length) {
  using namespace patchword;
  return simt::report_for_dtype(
      p->dtype, "retrieval_ranks: queries", message, length,
      [&](auto type) { return ranks_as<typename decltype(type)::type>(*p, stream); });
}

PW_EXPORT int pw_cuda_score_ranks(const patchword::ScoreRanksParams* p, void* stream, char* message,
                                  size_t length) {
  using namespace patchword;
  return simt::report_for_dtype(p->dtype, "score_ranks: scores", message, length, [&](auto type) {
    return score_ranks_as<typename decltype(type)::type>(*p, stream);
  });
}
