// SPDX-License-Identifier: Apache-2.0
// Ranks on the CPU: true scores first, then all scores a block at a time, counted and forgotten.
#include "kernels/common/cpu_levels.h"
#include "kernels/retrieval_ranks/rank_workspace.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Once more than this share of the blocks of rows could not be screened, no more are tried.
constexpr double kHopeless = 0.5;

PW_INLINE int64_t sum_lanes(VecI v) {
  int64_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

PW_INLINE bool comes_first(float score, int64_t index, float limit, int32_t bound) {
  return score > limit || (score == limit && index > bound);
}

// How many of n scores are above a limit, or with `OrEqual` no less.
template <bool OrEqual>
PW_INLINE int64_t count_scores(const float* scores, int64_t n, float limit) {
  constexpr int kSums = 4;
  const VecF bound = splat(limit);
  VecI counted[kSums] = {};
  int64_t c = 0;
  for (; c + kSums * kLanes <= n; c += kSums * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) {
      const VecF s = load(scores + c + i * kLanes);
      counted[i] -= OrEqual ? s >= bound : s > bound;
    }
  }
  int64_t total = sum_lanes((counted[0] + counted[1]) + (counted[2] + counted[3]));
  for (; c < n; ++c) total += OrEqual ? scores[c] >= limit : scores[c] > limit;
  return total;
}

// Candidates of a row that come before its limit; `index0` is the first one's index. Of equal
// scores those with an index over the bound come first, so one comparison does on either side.
PW_INLINE int64_t count_row(const float* scores, int64_t n, int32_t index0,
                            const RankLimit& limit) {
  int64_t split = static_cast<int64_t>(limit.bound) + 1 - index0;
  split = split < 0 ? 0 : (split < n ? split : n);
  return count_scores<false>(scores, split, limit.score) +
         count_scores<true>(scores + split, n - split, limit.score);
}

template <typename Element>
struct Job {
  typedef MatrixRows<Element> Rows;
  const RetrievalRanksParams& p;
  const RankWorkspace& at;
  Rows queries, gallery;

  Job(const RetrievalRanksParams& params, const RankWorkspace& workspace)
      : p(params),
        at(workspace),
        queries{static_cast<const typename Element::Storage*>(p.queries), p.queries_stride[0],
                p.queries_stride[1], p.rows, p.dim},
        gallery{static_cast<const typename Element::Storage*>(p.gallery), p.gallery_stride[0],
                p.gallery_stride[1], p.columns, p.dim} {}

  bool named(int64_t g) const { return g >= 0 && g < p.columns; }
  bool both() const { return p.ranks1 != nullptr; }
  int64_t rows_of(int64_t block) const {
    const int64_t left = p.rows - block * at.row_block;
    return left < at.row_block ? left : at.row_block;
  }

  // body(task, thread) for every task.
  template <typename Body>
  void each(int64_t tasks, Body&& body) const {
    parallel_for(at.threads, tasks, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) body(i, thread);
    });
  }

  // Scores of one panel of queries with their own true items: a tile holds kTileCols of them, of
  // which each query uses the one in its row.
  void find_true_scores(int64_t panel, const BlockMemory& memory) const {
    const int64_t row0 = panel * kTileRows, pairs = kTileRows * p.truths;
    for (int64_t first = 0; first < pairs; first += kTileCols) {
      int64_t items[kTileCols];
      for (int64_t c = 0; c < kTileCols; ++c) {
        const int64_t row = row0 + (first + c) / p.truths;
        const bool real = first + c < pairs && row < p.rows;
        const int64_t g = real ? p.truth[row0 * p.truths + first + c] : 0;
        items[c] = named(g) ? g : 0;
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
        at.true_scores[row0 * p.truths + first + c] = memory.scores[r * kTileCols + c];
      }
    }
  }

  void set_limits() const {
    for (int64_t n = 0; n < p.rows; ++n) {
      RankLimit limit = nobody();
      for (int64_t i = n * p.truths; i < (n + 1) * p.truths; ++i) {
        if (named(p.truth[i])) {
          offer_truth(limit, at.true_scores[i], static_cast<int32_t>(p.truth[i]));
        }
      }
      settle(limit, p.ties);
      at.limits0[n] = limit;
      p.ranks0[n] = 0;
    }
    if (!both()) return;
    for (int64_t m = 0; m < p.columns; ++m) at.limit1_item[m] = -1;
    for (int64_t i = 0; i < p.rows * p.truths; ++i) {
      const int64_t m = p.truth[i];
      if (!named(m)) continue;
      RankLimit limit = {at.limit1_score[m], 0, at.limit1_item[m]};
      offer_truth(limit, at.true_scores[i], static_cast<int32_t>(i / p.truths));
      at.limit1_score[m] = limit.score;
      at.limit1_item[m] = limit.item;
    }
    for (int64_t m = 0; m < p.columns; ++m) {
      RankLimit limit = {at.limit1_score[m], 0, at.limit1_item[m]};
      settle(limit, p.ties);
      at.limit1_score[m] = limit.score;
      at.limit1_bound[m] = limit.bound;
    }
  }

  // Screening.

  // Whether most of a sample of scores, evenly spread, can be decided.
  bool worth_screening() const {
    constexpr int64_t kSampleRows = 2 * kTileRows, kSampleColumns = 64;
    Rows some_queries = queries, some_gallery = gallery;
    some_queries.count = kSampleRows;
    some_queries.row_stride *= p.rows / kSampleRows;
    some_gallery.count = kSampleColumns;
    some_gallery.row_stride *= p.columns / kSampleColumns;
    IntegerFit fits[kSampleRows];
    ScreenRow lines[kSampleRows];
    for (int64_t i = 0; i < kSampleRows; ++i) {
      fits[i] = fit_row(some_queries, i);
      lines[i] = ScreenRow(fits[i], at.limits0[i * (p.rows / kSampleRows)], p.dim);
    }
    float limits[kSampleColumns];
    for (int64_t i = 0; i < kSampleColumns && both(); ++i) {
      limits[i] = at.limit1_score[i * (p.columns / kSampleColumns)];
    }
    const ScreenColumns columns(at.packed, at.columns, p.dim);
    for (int64_t j = 0; j < kSampleColumns / kTileCols; ++j) {
      columns.pack_panel(some_gallery, 0, j, both() ? limits : nullptr);
    }
    const int64_t open = screen_rows(some_queries, 0, kSampleRows, fits, lines, columns,
                                     kSampleColumns, both(), at.screen_memory(0));
    return open >= 0 && open < kSampleRows * kSampleColumns / kOpenShare;
  }

  void fit_queries() const {
    each(p.rows, [&](int64_t n, int) {
      at.fits[n] = fit_row(queries, n);
      at.lines[n] = ScreenRow(at.fits[n], at.limits0[n], p.dim);
    });
  }

  // Counts a block of rows by their integers, and what these leave open by its float32 scores.
  // Returns whether it was worth it; if not, nothing is counted.
  bool screen_block(int64_t block, int64_t column0, int64_t columns, const ScreenColumns& packed,
                    int thread) const {
    const ScreenMemory memory = at.screen_memory(thread);
    const int64_t row0 = block * at.row_block, rows = rows_of(block);
    if (screen_rows(queries, row0, rows, at.fits + row0, at.lines + row0, packed, columns, both(),
                    memory) < 0) {
      return false;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = row0 + r;
      const ScreenedRow& known = memory.known[r];
      p.ranks0[n] += known.before;
      if (known.opened == 0) continue;
      widen_row(queries, n, memory.row);
      multiply_listed(memory.row, gallery, column0, known.open, known.opened, memory.scores);
      for (int32_t i = 0; i < known.opened; ++i) {
        const float score = memory.scores[i];
        const int64_t c = known.open[i], m = column0 + c;
        p.ranks0[n] += comes_first(score, m, at.limits0[n].score, at.limits0[n].bound);
        if (both()) {
          memory.counts[c] += comes_first(score, n, at.limit1_score[m], at.limit1_bound[m]);
        }
      }
    }
    int32_t* const counts = at.counts(thread);
    for (int64_t c = 0; c < columns && both(); ++c) counts[c] += memory.counts[c];
    return true;
  }

  // Screens all rows against a block of the gallery and returns how many blocks of rows wait for
  // their float32 scores.
  int64_t screen_columns(int64_t column0, int64_t columns) const {
    const ScreenColumns packed(at.packed, at.columns, p.dim);
    each(panel_count(columns, kTileCols), [&](int64_t j, int) {
      packed.pack_panel(gallery, column0, j, both() ? at.limit1_score : nullptr);
    });
    each(at.row_blocks, [&](int64_t i, int thread) {
      at.waiting[i] = screen_block(i, column0, columns, packed, thread) ? 0 : 1;
    });
    int64_t waiting = 0;
    for (int64_t i = 0; i < at.row_blocks; ++i) waiting += at.waiting[i];
    return waiting;
  }

  // All scores in float32.

  void pack_panel(int64_t column0, int64_t panel) const {
    float* const packed = reinterpret_cast<float*>(at.packed);
    for (int64_t k = 0; k < depth_blocks(p.dim); ++k) {
      const int64_t depth = block_depth(p.dim, k);
      pack_column_panel(gallery, column0 + panel * kTileCols, k * kDepthBlock, depth,
                        packed + k * kDepthBlock * pitch() + panel * depth * kTileCols);
    }
  }
  int64_t pitch() const { return at.columns < kColumnBlock ? at.columns : kColumnBlock; }

  // Scores of a block of rows with the packed columns, counted both ways.
  void count_block(int64_t block, int64_t column0, int64_t columns, const BlockMemory& memory,
                   int32_t* counts) const {
    const int64_t row0 = block * at.row_block, rows = rows_of(block);
    const int64_t row_panels = panel_count(rows, kTileRows);
    const int64_t column_panels = panel_count(columns, kTileCols);
    for (int64_t k = 0; k < depth_blocks(p.dim); ++k) {
      const int64_t depth = block_depth(p.dim, k);
      for (int64_t i = 0; i < row_panels; ++i) {
        pack_row_panel(queries, row0 + i * kTileRows, k * kDepthBlock, depth, memory.scratch,
                       memory.rows + i * depth * kTileRows);
      }
      const float* const packed =
          reinterpret_cast<const float*>(at.packed) + k * kDepthBlock * pitch();
      for (int64_t j = 0; j < column_panels; ++j) {
        for (int64_t i = 0; i < row_panels; ++i) {
          multiply_tile(memory.rows + i * depth * kTileRows, packed + j * depth * kTileCols, depth,
                        k == 0, memory.scores + i * kTileRows * pitch() + j * kTileCols, pitch());
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      p.ranks0[row0 + r] += count_row(memory.scores + r * pitch(), columns,
                                      static_cast<int32_t>(column0), at.limits0[row0 + r]);
    }
    if (!both()) return;
    for (int64_t c = 0; c < columns; c += kLanes) {
      const VecF score = load(at.limit1_score + column0 + c);
      const VecI bound = load(at.limit1_bound + column0 + c);
      VecI counted = load(counts + c);
      for (int64_t r = 0; r < rows; ++r) {
        const VecF s = load(memory.scores + r * pitch() + c);
        const VecI index = splat_int(static_cast<int32_t>(row0 + r));
        counted -= (s > score) | ((s == score) & (index > bound));
      }
      store(counts + c, counted);
    }
  }

  // Of the blocks of rows that wait, with columns [column0, column0 + columns).
  void multiply_columns(int64_t column0, int64_t columns) const {
    for (int64_t first = 0; first < columns; first += kColumnBlock) {
      const int64_t count = columns - first < kColumnBlock ? columns - first : kColumnBlock;
      each(panel_count(count, kTileCols), [&](int64_t j, int) { pack_panel(column0 + first, j); });
      each(at.row_blocks, [&](int64_t i, int thread) {
        if (at.waiting[i] == 0) return;
        count_block(i, column0 + first, count, at.block_memory(thread), at.counts(thread) + first);
      });
    }
  }

  void run() const {
    each(panel_count(p.rows, kTileRows),
         [&](int64_t i, int thread) { find_true_scores(i, at.block_memory(thread)); });
    set_limits();
    bool screening = at.screening && worth_screening();
    if (screening) fit_queries();
    for (int64_t i = 0; i < at.row_blocks; ++i) at.waiting[i] = 1;
    for (int64_t column0 = 0; column0 < p.columns; column0 += at.columns) {
      const int64_t left = p.columns - column0;
      const int64_t columns = left < at.columns ? left : at.columns;
      for (int t = 0; t < at.threads; ++t) {
        for (int64_t c = 0; c < at.columns; ++c) at.counts(t)[c] = 0;
      }
      int64_t waiting = at.row_blocks;
      if (screening) waiting = screen_columns(column0, columns);
      if (waiting > 0) multiply_columns(column0, columns);
      if (static_cast<double>(waiting) > kHopeless * static_cast<double>(at.row_blocks)) {
        if (screening) {
          for (int64_t i = 0; i < at.row_blocks; ++i) at.waiting[i] = 1;
        }
        screening = false;
      }
      for (int64_t c = 0; c < columns && both(); ++c) {
        int64_t counted = 0;
        for (int t = 0; t < at.threads; ++t) counted += at.counts(t)[c];
        const RankLimit limit = {0.0f, 0, at.limit1_item[column0 + c]};
        p.ranks1[column0 + c] = rank_of(limit, p.ties, counted);
      }
    }
    for (int64_t n = 0; n < p.rows; ++n) {
      p.ranks0[n] = rank_of(at.limits0[n], p.ties, p.ranks0[n]);
    }
  }
};

Status from_embeddings(const RetrievalRanksParams& p, int threads) {
  const RankWorkspace at(p, threads);
  switch (p.dtype) {
    case DType::kFloat32: Job<Float32>(p, at).run(); return ok_status();
    case DType::kFloat16: Job<Float16>(p, at).run(); return ok_status();
    case DType::kBFloat16: Job<BFloat16>(p, at).run(); return ok_status();
    default: return unsupported("queries must be float32, float16 or bfloat16");
  }
}

int64_t workspace(const RetrievalRanksParams& p, int threads) {
  return RankWorkspace(p, threads).bytes;
}

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
