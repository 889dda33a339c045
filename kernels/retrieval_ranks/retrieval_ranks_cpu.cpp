// SPDX-License-Identifier: Apache-2.0
// Ranks on the CPU: true scores first, then all scores a block at a time, counted and forgotten.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/threads.h"
#include "kernels/retrieval_ranks/rank_rule.h"
#include "kernels/retrieval_ranks/score_block.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Workspace: limits of both sides, true scores, one block of packed columns, then each thread's own
// part: panels of a row block, scratch, scores, counts of the columns.
struct Layout {
  int64_t columns, limits1_at, scores_at, packed_at, threads_at, thread_bytes, bytes;
  int threads;

  Layout(const RetrievalRanksParams& p, int wanted) {
    columns =
        p.columns < kColumnBlock ? panel_count(p.columns, kTileCols) * kTileCols : kColumnBlock;
    const double work = static_cast<double>(p.rows) * static_cast<double>(p.columns) *
                        static_cast<double>(p.dim + 8);
    threads = useful_threads(wanted, panel_count(p.rows, kRowBlock), 0.02 * work);
    limits1_at = aligned(p.rows * static_cast<int64_t>(sizeof(RankLimit)));
    const int64_t limits1 = p.ranks1 == nullptr ? 0 : 3 * panel_count(p.columns, kLanes) * kLanes;
    scores_at = limits1_at + aligned(limits1 * 4);
    packed_at = scores_at + aligned(p.rows * p.truths * 4);
    threads_at = packed_at + aligned(columns * p.dim * 4);
    thread_bytes = part(kRowBlock * kDepthBlock) + part(kPackWidth * kDepthBlock) +
                   part(kTileCols * kDepthBlock) + part(kRowBlock * columns) + part(columns);
    bytes = threads_at + threads * thread_bytes;
  }
  static int64_t part(int64_t floats) { return aligned(floats * 4); }
};

struct ThreadMemory {
  float *rows, *scratch, *named, *scores;
  int32_t* counts;

  ThreadMemory(const Layout& layout, char* workspace, int thread) {
    char* at = workspace + layout.threads_at + thread * layout.thread_bytes;
    const auto take = [&](int64_t floats) {
      float* const here = reinterpret_cast<float*>(at);
      at += Layout::part(floats);
      return here;
    };
    rows = take(kRowBlock * kDepthBlock);
    scratch = take(kPackWidth * kDepthBlock);
    named = take(kTileCols * kDepthBlock);
    scores = take(kRowBlock * layout.columns);
    counts = reinterpret_cast<int32_t*>(take(layout.columns));
  }
};

PW_INLINE int64_t sum_lanes(VecI v) {
  int64_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// Candidates of a row that come before its limit; `index0` is the first one's index.
PW_INLINE int64_t count_row(const float* scores, int64_t n, int32_t index0,
                            const RankLimit& limit) {
  const VecF score = splat(limit.score);
  const VecI bound = splat_int(limit.bound);
  VecI index = lane_numbers() + index0, counted{};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    const VecF s = load(scores + c);
    counted -= (s > score) | ((s == score) & (index > bound));
    index += kLanes;
  }
  int64_t total = sum_lanes(counted);
  for (; c < n; ++c) {
    const int32_t at = index0 + static_cast<int32_t>(c);
    total += scores[c] > limit.score || (scores[c] == limit.score && at > limit.bound);
  }
  return total;
}

template <typename Element>
struct Job {
  const RetrievalRanksParams& p;
  const Layout& layout;
  char* workspace;
  MatrixRows<Element> queries, gallery;
  RankLimit* limits0;
  float* limit1_score;  // of the columns, as arrays: lanes hold columns
  int32_t *limit1_bound, *limit1_item;
  float *true_scores, *packed;

  Job(const RetrievalRanksParams& params, const Layout& where)
      : p(params),
        layout(where),
        workspace(static_cast<char*>(params.workspace)),
        queries{static_cast<const typename Element::Storage*>(p.queries), p.queries_stride[0],
                p.queries_stride[1], p.rows, p.dim},
        gallery{static_cast<const typename Element::Storage*>(p.gallery), p.gallery_stride[0],
                p.gallery_stride[1], p.columns, p.dim} {
    limits0 = reinterpret_cast<RankLimit*>(workspace);
    const int64_t padded = panel_count(p.columns, kLanes) * kLanes;
    limit1_score = reinterpret_cast<float*>(workspace + layout.limits1_at);
    limit1_bound = reinterpret_cast<int32_t*>(limit1_score + padded);
    limit1_item = limit1_bound + padded;
    true_scores = reinterpret_cast<float*>(workspace + layout.scores_at);
    packed = reinterpret_cast<float*>(workspace + layout.packed_at);
  }

  bool named(int64_t g) const { return g >= 0 && g < p.columns; }

  // Scores of one panel of queries with their own true items: a tile holds kTileCols of them, of
  // which each query uses the one in its row.
  void find_true_scores(int64_t panel, const ThreadMemory& memory) const {
    const int64_t row0 = panel * kTileRows, pairs = kTileRows * p.truths;
    for (int64_t first = 0; first < pairs; first += kTileCols) {
      int64_t items[kTileCols];
      for (int64_t c = 0; c < kTileCols; ++c) {
        const int64_t row = row0 + (first + c) / p.truths;
        const bool real = first + c < pairs && row < p.rows;
        const int64_t g = real ? p.truth[row0 * p.truths + first + c] : -1;
        items[c] = named(g) ? g : -1;
      }
      for (int64_t k = 0; k < depth_blocks(p.dim); ++k) {
        const int64_t depth = block_depth(p.dim, k), d0 = k * kDepthBlock;
        pack_row_panel(queries, row0, d0, depth, memory.scratch, memory.rows);
        pack_named_columns(gallery, items, d0, depth, memory.named);
        multiply_tile(memory.rows, memory.named, depth, k == 0, memory.scores, kTileCols);
      }
      for (int64_t c = 0; c < kTileCols; ++c) {
        const int64_t r = (first + c) / p.truths;
        if (first + c >= pairs || row0 + r >= p.rows) break;
        true_scores[row0 * p.truths + first + c] = memory.scores[r * kTileCols + c];
      }
    }
  }

  void set_limits() const {
    for (int64_t n = 0; n < p.rows; ++n) {
      RankLimit limit = nobody();
      for (int64_t i = n * p.truths; i < (n + 1) * p.truths; ++i) {
        if (named(p.truth[i])) {
          offer_truth(limit, true_scores[i], static_cast<int32_t>(p.truth[i]));
        }
      }
      settle(limit, p.ties);
      limits0[n] = limit;
      p.ranks0[n] = 0;
    }
    if (p.ranks1 == nullptr) return;
    for (int64_t m = 0; m < p.columns; ++m) limit1_item[m] = -1;
    for (int64_t i = 0; i < p.rows * p.truths; ++i) {
      const int64_t m = p.truth[i];
      if (!named(m)) continue;
      RankLimit limit = {limit1_score[m], 0, limit1_item[m]};
      offer_truth(limit, true_scores[i], static_cast<int32_t>(i / p.truths));
      limit1_score[m] = limit.score;
      limit1_item[m] = limit.item;
    }
    for (int64_t m = 0; m < p.columns; ++m) {
      RankLimit limit = {limit1_score[m], 0, limit1_item[m]};
      settle(limit, p.ties);
      limit1_score[m] = limit.score;
      limit1_bound[m] = limit.bound;
    }
  }

  void pack_panel(int64_t column0, int64_t panel) const {
    for (int64_t k = 0; k < depth_blocks(p.dim); ++k) {
      const int64_t depth = block_depth(p.dim, k);
      pack_column_panel(gallery, column0 + panel * kTileCols, k * kDepthBlock, depth,
                        packed + k * kDepthBlock * layout.columns + panel * depth * kTileCols);
    }
  }

  // Scores of a block of rows with the packed columns, counted both ways.
  void count_block(int64_t row0, int64_t column0, int64_t columns,
                   const ThreadMemory& memory) const {
    const int64_t rows = p.rows - row0 < kRowBlock ? p.rows - row0 : kRowBlock;
    const int64_t row_panels = panel_count(rows, kTileRows);
    const int64_t column_panels = panel_count(columns, kTileCols);
    for (int64_t k = 0; k < depth_blocks(p.dim); ++k) {
      const int64_t depth = block_depth(p.dim, k);
      for (int64_t i = 0; i < row_panels; ++i) {
        pack_row_panel(queries, row0 + i * kTileRows, k * kDepthBlock, depth, memory.scratch,
                       memory.rows + i * depth * kTileRows);
      }
      const float* const block = packed + k * kDepthBlock * layout.columns;
      for (int64_t j = 0; j < column_panels; ++j) {
        for (int64_t i = 0; i < row_panels; ++i) {
          multiply_tile(memory.rows + i * depth * kTileRows, block + j * depth * kTileCols, depth,
                        k == 0, memory.scores + i * kTileRows * layout.columns + j * kTileCols,
                        layout.columns);
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      p.ranks0[row0 + r] += count_row(memory.scores + r * layout.columns, columns,
                                      static_cast<int32_t>(column0), limits0[row0 + r]);
    }
    if (p.ranks1 == nullptr) return;
    for (int64_t c = 0; c < columns; c += kLanes) {
      const VecF score = load(limit1_score + column0 + c);
      const VecI bound = load(limit1_bound + column0 + c);
      VecI counted = load(memory.counts + c);
      for (int64_t r = 0; r < rows; ++r) {
        const VecF s = load(memory.scores + r * layout.columns + c);
        const VecI index = splat_int(static_cast<int32_t>(row0 + r));
        counted -= (s > score) | ((s == score) & (index > bound));
      }
      store(memory.counts + c, counted);
    }
  }

  void run() const {
    const int64_t panels = panel_count(p.rows, kTileRows);
    parallel_for(layout.threads, panels, [&](int64_t begin, int64_t end, int thread) {
      const ThreadMemory memory(layout, workspace, thread);
      for (int64_t i = begin; i < end; ++i) find_true_scores(i, memory);
    });
    set_limits();
    for (int64_t column0 = 0; column0 < p.columns; column0 += layout.columns) {
      const int64_t left = p.columns - column0;
      const int64_t columns = left < layout.columns ? left : layout.columns;
      parallel_for(layout.threads, panel_count(columns, kTileCols),
                   [&](int64_t begin, int64_t end, int) {
                     for (int64_t i = begin; i < end; ++i) pack_panel(column0, i);
                   });
      for (int t = 0; t < layout.threads; ++t) {
        const ThreadMemory memory(layout, workspace, t);
        for (int64_t c = 0; c < layout.columns; ++c) memory.counts[c] = 0;
      }
      parallel_for(layout.threads, panel_count(p.rows, kRowBlock),
                   [&](int64_t begin, int64_t end, int thread) {
                     const ThreadMemory memory(layout, workspace, thread);
                     for (int64_t i = begin; i < end; ++i) {
                       count_block(i * kRowBlock, column0, columns, memory);
                     }
                   });
      if (p.ranks1 == nullptr) continue;
      for (int64_t c = 0; c < columns; ++c) {
        int64_t counted = 0;
        for (int t = 0; t < layout.threads; ++t) {
          counted += ThreadMemory(layout, workspace, t).counts[c];
        }
        const RankLimit limit = {0.0f, 0, limit1_item[column0 + c]};
        p.ranks1[column0 + c] = rank_of(limit, p.ties, counted);
      }
    }
    for (int64_t n = 0; n < p.rows; ++n) {
      p.ranks0[n] = rank_of(limits0[n], p.ties, p.ranks0[n]);
    }
  }
};

Status from_embeddings(const RetrievalRanksParams& p, int threads) {
  const Layout layout(p, threads);
  switch (p.dtype) {
    case DType::kFloat32: Job<Float32>(p, layout).run(); return ok_status();
    case DType::kFloat16: Job<Float16>(p, layout).run(); return ok_status();
    case DType::kBFloat16: Job<BFloat16>(p, layout).run(); return ok_status();
    default: return unsupported("queries must be float32, float16 or bfloat16");
  }
}

int64_t workspace(const RetrievalRanksParams& p, int threads) { return Layout(p, threads).bytes; }

template <typename Element>
void rank_scores(const ScoreRanksParams& p, int threads) {
  typedef typename Element::Storage Storage;
  constexpr int64_t kChunk = 1024;
  const double work = 0.3 * static_cast<double>(p.rows) * static_cast<double>(p.columns);
  const int used = useful_threads(threads, p.rows, work);
  parallel_for(used, p.rows, [&](int64_t begin, int64_t end, int) {
    float widened[kChunk];
    for (int64_t n = begin; n < end; ++n) {
      const Storage* row = static_cast<const Storage*>(p.scores) + n * p.row_stride;
      RankLimit limit = nobody();
      for (int64_t i = n * p.truths; i < (n + 1) * p.truths; ++i) {
        const int64_t g = p.truth[i];
        if (g < 0 || g >= p.columns) continue;
        offer_truth(limit, load_scalar<Element>(row + g), static_cast<int32_t>(g));
      }
      settle(limit, p.ties);
      int64_t counted = 0;
      if constexpr (sizeof(Storage) == sizeof(float)) {
        counted = count_row(row, p.columns, 0, limit);
      } else {
        for (int64_t c = 0; c < p.columns; c += kChunk) {
          const int64_t count = p.columns - c < kChunk ? p.columns - c : kChunk;
          int64_t i = 0;
          for (; i + kLanes <= count; i += kLanes) store(widened + i, Element::load(row + c + i));
          for (; i < count; ++i) widened[i] = load_scalar<Element>(row + c + i);
          counted += count_row(widened, count, static_cast<int32_t>(c), limit);
        }
      }
      p.ranks[n] = rank_of(limit, p.ties, counted);
    }
  });
}

Status from_scores(const ScoreRanksParams& p, int threads) {
  switch (p.dtype) {
    case DType::kFloat32: rank_scores<Float32>(p, threads); return ok_status();
    case DType::kFloat16: rank_scores<Float16>(p, threads); return ok_status();
    case DType::kBFloat16: rank_scores<BFloat16>(p, threads); return ok_status();
    default: return unsupported("scores must be float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace PW_LEVEL

extern const RetrievalRanksTable PW_LEVEL_TABLE(kRetrievalRanks);
const RetrievalRanksTable PW_LEVEL_TABLE(kRetrievalRanks) = {
    &PW_LEVEL::from_embeddings, &PW_LEVEL::from_scores, &PW_LEVEL::workspace};

}  // namespace patchword
