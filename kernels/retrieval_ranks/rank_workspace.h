// SPDX-License-Identifier: Apache-2.0
// How the work is dealt out, and where everything lies in the caller's workspace. For level units.
#pragma once

#include "kernels/common/threads.h"
#include "kernels/retrieval_ranks/rank_screen.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Below, packing both sides once more costs more than screening can save.
constexpr int64_t kMinScreenCount = 96;

// Hands out consecutive parts of a piece of memory; from 0 on it only adds them up.
class Parts {
 public:
  explicit Parts(uintptr_t start) : at_(start) {}

  template <typename T>
  T* take(int64_t count) {
    T* const here = reinterpret_cast<T*>(at_);
    at_ += static_cast<uintptr_t>(count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return here;
  }
  uintptr_t end() const { return at_; }

 private:
  uintptr_t at_;
};

// A thread's memory for the float32 scores of a block of rows.
struct BlockMemory {
  float* rows;     // [kRowBlock / kTileRows] panels of one block of depth
  float* scratch;  // [kDepthBlock][kPackWidth]
  float* named;    // [kDepthBlock][kTileCols]
  float* scores;   // [kRowBlock][kColumnBlock]
};

struct RankWorkspace {
  bool screening;
  int threads;
  int64_t row_block, row_blocks, columns;  // columns of a block that is screened or packed at once

  RankLimit* limits0;   // [N]
  float* limit1_score;  // [M], as arrays: lanes hold columns
  int32_t* limit1_bound;
  int32_t* limit1_item;
  float* true_scores;  // [N, P]
  IntegerFit* fits;    // [N]
  ScreenRow* lines;    // [N]
  uint8_t* waiting;    // [row_blocks]: 1 where the float32 scores are needed
  char* packed;        // a block of the gallery: floats, or what ScreenColumns says
  int64_t bytes;

  RankWorkspace(const RetrievalRanksParams& p, int wanted) : depth_(p.dim) {
    screening = kScreening && p.rows >= kMinScreenCount && p.columns >= kMinScreenCount &&
                p.dim >= kMinScreenDim && p.dim <= kMaxScreenDim;
    const double work = static_cast<double>(p.rows) * static_cast<double>(p.columns) *
                        static_cast<double>(p.dim + 8);
    threads = useful_threads(wanted, panel_count(p.rows, kTileRows), 0.02 * work);
    // As many blocks for every thread, of nearly equal length.
    const int64_t blocks = panel_count(p.rows, kRowBlock * threads) * threads;
    row_block = panel_count(panel_count(p.rows, blocks), kTileRows) * kTileRows;
    row_blocks = panel_count(p.rows, row_block);
    const int64_t padded = panel_count(p.columns, kTileCols) * kTileCols;
    columns = padded < kScreenColumns ? padded : kScreenColumns;

    Parts parts(reinterpret_cast<uintptr_t>(p.workspace));
    limits0 = parts.take<RankLimit>(p.rows);
    const int64_t other = p.ranks1 == nullptr ? 0 : padded;
    limit1_score = parts.take<float>(other);
    limit1_bound = parts.take<int32_t>(other);
    limit1_item = parts.take<int32_t>(other);
    true_scores = parts.take<float>(p.rows * p.truths);
    fits = parts.take<IntegerFit>(screening ? p.rows : 0);
    lines = parts.take<ScreenRow>(screening ? p.rows : 0);
    waiting = parts.take<uint8_t>(row_blocks);
    const int64_t floats = 4 * p.dim * (columns < kColumnBlock ? columns : kColumnBlock);
    const int64_t integers = screening ? ScreenColumns::bytes(columns, p.dim) : 0;
    packed = parts.take<char>(floats > integers ? floats : integers);
    first_thread_ = parts.end();
    Parts screen(0), block(0);
    if (screening) take_screen(screen);
    take_block(block);
    shared_ = screen.end() > block.end() ? screen.end() : block.end();
    Parts counts(0);
    counts.take<int32_t>(columns);
    pitch_ = counts.end() + shared_;
    bytes = static_cast<int64_t>(first_thread_ + pitch_ * static_cast<uintptr_t>(threads) -
                                 reinterpret_cast<uintptr_t>(p.workspace));
  }

  // What a thread has counted for the columns.
  int32_t* counts(int thread) const {
    return Parts(thread_start(thread) + shared_).take<int32_t>(columns);
  }
  // These two share their bytes.
  BlockMemory block_memory(int thread) const {
    Parts parts(thread_start(thread));
    return take_block(parts);
  }
  ScreenMemory screen_memory(int thread) const {
    Parts parts(thread_start(thread));
    return take_screen(parts);
  }

 private:
  uintptr_t thread_start(int thread) const {
    return first_thread_ + pitch_ * static_cast<uintptr_t>(thread);
  }
  static BlockMemory take_block(Parts& parts) {
    BlockMemory m{};
    m.rows = parts.take<float>(kRowBlock * kDepthBlock);
    m.scratch = parts.take<float>(kPackWidth * kDepthBlock);
    m.named = parts.take<float>(kTileCols * kDepthBlock);
    m.scores = parts.take<float>(kRowBlock * kColumnBlock);
    return m;
  }
  ScreenMemory take_screen(Parts& parts) const {
    ScreenMemory m{};
    m.words = parts.take<int32_t>(kRowBlock * groups_of(depth_) * kLanes);
    m.known = parts.take<ScreenedRow>(kRowBlock);
    m.row = parts.take<float>(depth_);
    m.scores = parts.take<float>(columns + kListed);
    m.counts = parts.take<int32_t>(columns);
    m.open = parts.take<uint16_t>(kRowBlock * columns);
    return m;
  }

  int64_t depth_;
  uintptr_t first_thread_, shared_, pitch_;
};

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
