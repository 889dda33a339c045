// SPDX-License-Identifier: Apache-2.0
// Best, second-best and top-k scores of a pair on the CPU, both directions in one sweep.
//
// Threads split the rows of a pair (or the pairs of a batch); every thread keeps its own column
// state, merged in thread order, so that results do not depend on the number of threads.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/threads.h"
#include "kernels/correspondence/match_screened.h"
#include "kernels/correspondence/match_sweep.h"

namespace patchword {
namespace PW_LEVEL {

Status match_logsumexp(const MatchParams& params, int threads);
int64_t logsumexp_workspace(const MatchParams& params, int threads);

namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// Running results of rows or of columns: structure of arrays, padded to whole panels. `best` and
// `index` hold k entries each, best first; `limit` is what a score must exceed to be looked at.
struct Running {
  float* limit;
  float* best;
  int32_t* index;

  PW_INLINE void reset(int64_t n, int64_t k) const {
    for (int64_t i = 0; i < n; ++i) limit[i] = kMinusInfinity;
    for (int64_t i = 0; i < n * k; ++i) {
      best[i] = kMinusInfinity;
      index[i] = -1;
    }
  }
};

// What is wanted of a sweep. With Second, `limit` holds the second-best value.
template <bool Columns_, bool Second_, bool TopK_, bool Clamp_>
struct Wanted {
  static constexpr bool kColumns = Columns_, kSecond = Second_, kTopK = TopK_, kClamp = Clamp_;
};

template <typename W>
PW_INLINE void offer(const Running& state, int64_t at, int64_t k, float value, int32_t index) {
  if (!(value > state.limit[at])) return;
  if constexpr (W::kTopK) {
    float* best = state.best + at * k;
    int32_t* order = state.index + at * k;
    int64_t place = k - 1;
    for (; place > 0 && value > best[place - 1]; --place) {
      best[place] = best[place - 1];
      order[place] = order[place - 1];
    }
    best[place] = value;
    order[place] = index;
    state.limit[at] = best[k - 1];
  } else if (value > state.best[at]) {
    if constexpr (W::kSecond)
      state.limit[at] = state.best[at];
    else
      state.limit[at] = value;
    state.best[at] = value;
    state.index[at] = index;
  } else if constexpr (W::kSecond) {
    state.limit[at] = value;
  }
}

template <typename W>
__attribute__((noinline)) void update_rows(const float* values, const Running& rows, int64_t row0,
                                           int64_t k, int32_t column0) {
  for (int r = 0; r < kTileRows; ++r) {
    const float* row = values + r * kTileCols;
    const VecF limit = splat(rows.limit[row0 + r]);
    for (int v = 0; v < kTileVectors; ++v) {
      if (!any(load(row + v * kLanes) > limit)) continue;
      for (int l = v * kLanes; l < (v + 1) * kLanes; ++l) {
        offer<W>(rows, row0 + r, k, row[l], column0 + l);
      }
    }
  }
}

template <typename W>
__attribute__((noinline)) void update_columns(const float* values, const Running& columns,
                                              int64_t column0, int32_t row0) {
  for (int v = 0; v < kTileVectors; ++v) {
    const int64_t at = column0 + v * kLanes;
    VecF limit = load(columns.limit + at);
    VecF best = load(columns.best + at);
    VecI index = load(columns.index + at);
    for (int r = 0; r < kTileRows; ++r) {
      const VecF value = load(values + r * kTileCols + v * kLanes);
      const VecI better = value > best;
      if constexpr (W::kSecond) limit = select(better, best, max(value, limit));
      best = select(better, value, best);
      index = select(better, splat_int(row0 + r), index);
    }
    if constexpr (!W::kSecond) limit = best;
    store(columns.limit + at, limit);
    store(columns.best + at, best);
    store(columns.index + at, index);
  }
}

constexpr int64_t kAlign = 64;
constexpr int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Where one team of threads that works on one pair keeps its data.
struct Layout {
  int64_t depth, row_block, row_panels, column_panels, k;

  Layout(const MatchParams& p)
      : depth(p.dim + 2),
        row_block(row_block_panels(depth)),
        row_panels(panel_count(p.side0.count, kTileRows)),
        column_panels(panel_count(p.side1.count, kTileCols)),
        k(p.k) {
    if (row_block > row_panels) row_block = row_panels;
  }

  int64_t columns_bytes() const { return column_panels * kTileCols * depth * 4; }
  int64_t usable_bytes() const { return aligned(column_panels * kTileCols * 4); }
  int64_t rows_bytes() const { return aligned(row_block * kTileRows * depth * 4); }
  int64_t row_state_bytes() const { return aligned(row_block * kTileRows * (2 + 2 * k) * 4); }
  int64_t column_state_bytes() const { return aligned(column_panels * kTileCols * 3 * 4); }
  int64_t shared_bytes() const { return aligned(columns_bytes()) + usable_bytes(); }
  int64_t thread_bytes() const { return rows_bytes() + row_state_bytes() + column_state_bytes(); }
  int64_t team_bytes(int threads) const { return shared_bytes() + threads * thread_bytes(); }
};

struct ThreadMemory {
  float* panels;
  Running rows;
  int32_t* usable_rows;
  Running columns;

  ThreadMemory(const Layout& layout, char* memory) {
    const int64_t rows_count = layout.row_block * kTileRows;
    const int64_t columns_count = layout.column_panels * kTileCols;
    panels = reinterpret_cast<float*>(memory);
    float* state = reinterpret_cast<float*>(memory + layout.rows_bytes());
    rows.limit = state;
    usable_rows = reinterpret_cast<int32_t*>(state + rows_count);
    rows.best = state + 2 * rows_count;
    rows.index = reinterpret_cast<int32_t*>(rows.best + rows_count * layout.k);
    state = reinterpret_cast<float*>(memory + layout.rows_bytes() + layout.row_state_bytes());
    columns.limit = state;
    columns.best = state + columns_count;
    columns.index = reinterpret_cast<int32_t*>(state + 2 * columns_count);
  }
};

// Fills what a strict comparison with -inf left empty: the first candidates that score exactly -inf
// (an overflow of huge descriptors). Entered only when a usable row ended with fewer than k.
__attribute__((noinline)) void append_minus_infinity(const PackedPair& pair, const float* panel,
                                                     const Running& state, int64_t row0, int64_t k,
                                                     const int32_t* usable) {
  for (int64_t j = 0; j < pair.column_panels; ++j) {
    VecF acc[kTileRows][kTileVectors];
    tile_scores(panel, pair.columns + j * pair.depth * kTileCols, pair.depth, acc);
    for (int r = 0; r < kTileRows; ++r) {
      if (!usable[row0 + r]) continue;
      int32_t* index = state.index + (row0 + r) * k;
      for (int c = 0; c < kTileCols; ++c) {
        if (acc[r][c / kLanes][c % kLanes] != kMinusInfinity) continue;
        for (int64_t place = 0; place < k; ++place) {
          if (index[place] < 0) {
            index[place] = static_cast<int32_t>(j * kTileCols + c);
            break;
          }
        }
      }
    }
  }
}

template <typename W>
struct PairJob {
  const MatchParams& p;
  int64_t pair;
  Layout layout;
  char* memory;
  PackPlan plan0, plan1;
  PackFunctions pack;
  float* columns;
  int32_t* usable_columns;

  PairJob(const MatchParams& params, int64_t which, char* workspace)
      : p(params),
        pair(which),
        layout(params),
        memory(workspace),
        plan0(plan_side(params, which, true, params.scale, Excluded::kNaN)),
        plan1(plan_side(params, which, false, params.scale, Excluded::kNaN)),
        pack(match_pack_functions(params.dtype)) {
    columns = reinterpret_cast<float*>(memory);
    usable_columns = reinterpret_cast<int32_t*>(memory + aligned(layout.columns_bytes()));
  }

  int64_t row_panels() const { return panel_count(plan0.count, kTileRows); }
  int64_t column_panels() const { return panel_count(plan1.count, kTileCols); }
  PackedPair packed() const { return {columns, column_panels(), plan0.depth}; }
  ThreadMemory thread_memory(int thread) const {
    return ThreadMemory(layout, memory + layout.shared_bytes() + thread * layout.thread_bytes());
  }

  void pack_columns(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j) {
      pack.columns(plan1, j * kTileCols, columns + j * plan1.depth * kTileCols,
                   usable_columns + j * kTileCols);
    }
  }

  bool any_usable_column() const {
    for (int64_t j = 0; j < column_panels() * kTileCols; ++j) {
      if (usable_columns[j]) return true;
    }
    return false;
  }

  void write_rows(const ThreadMemory& m, int64_t row0, int64_t end) const {
    const int64_t k = p.k;
    for (int64_t i = row0; i < end; ++i) {
      const int64_t out = (pair * p.side0.count + i) * k, at = (i - row0) * k;
      for (int64_t place = 0; place < k; ++place) {
        p.indices0[out + place] = m.rows.index[at + place];
        p.scores0[out + place] = m.rows.best[at + place];
      }
      if (p.second0 != nullptr) p.second0[out] = m.rows.limit[i - row0];
    }
  }

  // Rows of panels [begin, end), a block at a time; leaves the columns' state in `thread`'s memory.
  void sweep_rows(int64_t begin, int64_t end, int thread) const {
    const ThreadMemory m = thread_memory(thread);
    const PackedPair pair_panels = packed();
    const int64_t panel_size = plan0.depth * kTileRows;
    if constexpr (W::kColumns) m.columns.reset(column_panels() * kTileCols, 1);
    for (int64_t block = begin; block < end; block += layout.row_block) {
      const int64_t panels = end - block < layout.row_block ? end - block : layout.row_block;
      for (int64_t i = 0; i < panels; ++i) {
        pack.rows(plan0, (block + i) * kTileRows, m.panels + i * panel_size,
                  m.usable_rows + i * kTileRows);
      }
      m.rows.reset(panels * kTileRows, p.k);
      sweep_tiles<W::kColumns, W::kClamp>(
          pair_panels, m.panels, panels, m.rows.limit, m.columns.limit,
          [&](const float* values, int64_t i, int64_t j) {
            update_rows<W>(values, m.rows, i * kTileRows, p.k, static_cast<int32_t>(j * kTileCols));
            if constexpr (W::kColumns) {
              update_columns<W>(values, m.columns, j * kTileCols,
                                static_cast<int32_t>((block + i) * kTileRows));
            }
          });
      for (int64_t i = 0; i < panels; ++i) {
        bool empty = false;
        for (int64_t r = i * kTileRows; r < (i + 1) * kTileRows; ++r) {
          empty = empty || (m.usable_rows[r] && m.rows.index[(r + 1) * p.k - 1] < 0);
        }
        if (empty && any_usable_column()) {
          append_minus_infinity(pair_panels, m.panels + i * panel_size, m.rows, i * kTileRows, p.k,
                                m.usable_rows);
        }
      }
      const int64_t last = (block + panels) * kTileRows;
      write_rows(m, block * kTileRows, last < plan0.count ? last : plan0.count);
    }
  }

  // The first usable row, if any, that scores -inf against each column which has no best yet.
  void append_columns(const ThreadMemory& m) const {
    bool empty = false;
    for (int64_t j = 0; j < column_panels() * kTileCols; ++j) {
      empty = empty || (usable_columns[j] && m.columns.index[j] < 0);
    }
    for (int64_t i = 0; empty && i < row_panels(); ++i) {
      pack.rows(plan0, i * kTileRows, m.panels, m.usable_rows);
      for (int64_t j = 0; j < column_panels(); ++j) {
        VecF acc[kTileRows][kTileVectors];
        tile_scores(m.panels, columns + j * plan0.depth * kTileCols, plan0.depth, acc);
        for (int c = 0; c < kTileCols; ++c) {
          const int64_t column = j * kTileCols + c;
          for (int r = 0; r < kTileRows && m.columns.index[column] < 0; ++r) {
            if (acc[r][c / kLanes][c % kLanes] == kMinusInfinity) {
              m.columns.index[column] = static_cast<int32_t>(i * kTileRows + r);
            }
          }
        }
      }
    }
  }

  // Adds the columns' state of later threads to the first one's, in thread order, and writes it.
  void finish_columns(int threads) const {
    const ThreadMemory first = thread_memory(0);
    for (int t = 1; t < threads; ++t) {
      const Running later = thread_memory(t).columns;
      for (int64_t j = 0; j < plan1.count; ++j) {
        float& best = first.columns.best[j];
        float& limit = first.columns.limit[j];
        if constexpr (W::kSecond) {
          const float lower = later.best[j] > best ? best : later.best[j];
          const float second = later.limit[j] > limit ? later.limit[j] : limit;
          limit = lower > second ? lower : second;
        }
        if (later.best[j] > best) {
          best = later.best[j];
          first.columns.index[j] = later.index[j];
        }
      }
    }
    append_columns(first);
    for (int64_t j = 0; j < plan1.count; ++j) {
      const int64_t out = pair * p.side1.count + j;
      p.indices1[out] = first.columns.index[j];
      p.scores1[out] = first.columns.best[j];
      if (p.second1 != nullptr) p.second1[out] = first.columns.limit[j];
    }
  }

  // Rows and columns beyond the pair's lengths, and everything when the other side is empty.
  void write_none(int64_t from0, int64_t from1) const {
    for (int64_t i = from0; i < p.side0.count; ++i) {
      const int64_t out = pair * p.side0.count + i;
      for (int64_t place = out * p.k; place < (out + 1) * p.k; ++place) {
        p.indices0[place] = -1;
        p.scores0[place] = kMinusInfinity;
      }
      if (p.second0 != nullptr) p.second0[out] = kMinusInfinity;
    }
    for (int64_t j = from1; p.indices1 != nullptr && j < p.side1.count; ++j) {
      const int64_t out = pair * p.side1.count + j;
      p.indices1[out] = -1;
      p.scores1[out] = kMinusInfinity;
      if (p.second1 != nullptr) p.second1[out] = kMinusInfinity;
    }
  }

  void run(int threads) const {
    if (plan0.count == 0 || plan1.count == 0) {
      write_none(0, 0);
      return;
    }
    if (row_panels() < threads) threads = static_cast<int>(row_panels());
    parallel_for(threads, column_panels(),
                 [&](int64_t begin, int64_t end, int) { pack_columns(begin, end); });
    parallel_for(threads, row_panels(),
                 [&](int64_t begin, int64_t end, int thread) { sweep_rows(begin, end, thread); });
    if constexpr (W::kColumns) finish_columns(threads);
    write_none(plan0.count, plan1.count);
  }
};

int64_t team_workspace(const MatchParams& p, int threads) {
  const int64_t sweep = Layout(p).team_bytes(threads);
  const int64_t screened = screened_workspace(p, threads);
  return sweep > screened ? sweep : screened;
}

template <typename W>
void run_pair(const MatchParams& p, int64_t pair, int threads, char* memory) {
  if (screening_applies(p) && screened_best(p, pair, threads, memory)) return;
  PairJob<W>(p, pair, memory).run(threads);
}

template <typename W>
Status run_pairs(const MatchParams& p, int threads) {
  if (match_pack_functions(p.dtype).rows == nullptr) {
    return unsupported("descriptors must be float32, float16 or bfloat16");
  }
  // About 40 multiply-adds a nanosecond and thread.
  const double products = static_cast<double>(p.side0.count) * static_cast<double>(p.side1.count) *
                          static_cast<double>(p.dim + 2);
  char* memory = static_cast<char*>(p.workspace);
  if (p.pairs >= threads && threads > 1) {
    const int useful =
        useful_threads(threads, p.pairs, static_cast<double>(p.pairs) * products / 40);
    const int64_t team = team_workspace(p, 1);
    parallel_for(useful, p.pairs, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t pair = begin; pair < end; ++pair) {
        run_pair<W>(p, pair, 1, memory + thread * team);
      }
    });
  } else {
    const int useful = useful_threads(threads, p.side0.count, products / 40);
    for (int64_t pair = 0; pair < p.pairs; ++pair) run_pair<W>(p, pair, useful, memory);
  }
  return ok_status();
}

template <bool Clamp>
Status run_wanted(const MatchParams& p, int threads) {
  if (p.indices1 == nullptr) return run_pairs<Wanted<false, false, true, Clamp>>(p, threads);
  if (p.second0 != nullptr) return run_pairs<Wanted<true, true, false, Clamp>>(p, threads);
  return run_pairs<Wanted<true, false, false, Clamp>>(p, threads);
}

Status best(const MatchParams& p, int threads) {
  if (p.k < 1 || p.k > kMaxTopK) return invalid("k must be between 1 and 32");
  return p.metric == MatchMetric::kL2 ? run_wanted<true>(p, threads)
                                      : run_wanted<false>(p, threads);
}

int64_t workspace(const MatchParams& p, int threads) {
  const int64_t one_pair = team_workspace(p, threads);
  const int64_t by_pairs = p.pairs >= threads ? threads * team_workspace(p, 1) : 0;
  const int64_t bytes = one_pair > by_pairs ? one_pair : by_pairs;
  const int64_t sums = logsumexp_workspace(p, threads);
  return bytes > sums ? bytes : sums;
}

}  // namespace
}  // namespace PW_LEVEL

extern const MatchTable PW_LEVEL_TABLE(kMatch);
const MatchTable PW_LEVEL_TABLE(kMatch) = {&PW_LEVEL::workspace, &PW_LEVEL::best,
                                           &PW_LEVEL::match_logsumexp};

}  // namespace patchword
