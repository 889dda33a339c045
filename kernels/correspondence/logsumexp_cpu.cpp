// SPDX-License-Identifier: Apache-2.0
// Log-sum-exp of the scores of every row and every column of a pair, in one sweep, on the CPU.
//
// Sums are kept in base 2 relative to a reference per row and per column that is raised only when a
// score exceeds it by more than kHeadroom: float32 holds sums up to 2^127, so no running maximum
// has to be followed. Cosines of moderate scale need one fixed reference and one exponential.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/threads.h"
#include "kernels/correspondence/match_sweep.h"

namespace patchword {
namespace PW_LEVEL {

Status match_logsumexp(const MatchParams& params, int threads);
int64_t logsumexp_workspace(const MatchParams& params, int threads);

namespace {

constexpr float kLowest = -3.4028235e38f;
constexpr float kLog2e = 1.4426950408889634f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr float kHeadroom = 64.0f;
// exp2 flushes below 2^-126: with a fixed reference of +scale the lowest exponent is -2 scale.
constexpr float kFixedLimit = 60.0f;

constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Sums {
  VecF* row_sums;        // one vector per row
  float* row_reference;  // base 2
  float* column_sums;
  float* column_reference;
};

struct Layout {
  int64_t depth, row_block, column_panels;

  Layout(const MatchParams& p)
      : depth(p.dim + 2),
        row_block(row_block_panels(depth)),
        column_panels(panel_count(p.side1.count, kTileCols)) {
    const int64_t row_panels = panel_count(p.side0.count, kTileRows);
    if (row_block > row_panels) row_block = row_panels;
  }

  int64_t columns_count() const { return column_panels * kTileCols; }
  int64_t rows_count() const { return row_block * kTileRows; }
  int64_t shared_bytes() const { return aligned(columns_count() * (depth + 1) * 4); }
  int64_t thread_bytes() const {
    return aligned(rows_count() * depth * 4) + aligned(rows_count() * kVectorBytes) +
           aligned(rows_count() * 2 * 4) + aligned(columns_count() * 2 * 4);
  }
  int64_t bytes(int threads) const { return shared_bytes() + threads * thread_bytes(); }
};

struct ThreadMemory {
  float* panels;
  int32_t* row_parts;  // all ones where the row takes part
  Sums sums;

  ThreadMemory(const Layout& layout, char* memory) {
    panels = reinterpret_cast<float*>(memory);
    memory += aligned(layout.rows_count() * layout.depth * 4);
    sums.row_sums = reinterpret_cast<VecF*>(memory);
    memory += aligned(layout.rows_count() * kVectorBytes);
    sums.row_reference = reinterpret_cast<float*>(memory);
    row_parts = reinterpret_cast<int32_t*>(sums.row_reference + layout.rows_count());
    memory += aligned(layout.rows_count() * 2 * 4);
    sums.column_sums = reinterpret_cast<float*>(memory);
    sums.column_reference = sums.column_sums + layout.columns_count();
  }
};

// Scores in base 2, excluded rows and columns as -inf. NaN stays.
PW_INLINE void exclude(VecF (&acc)[kTileRows][kTileVectors], const int32_t* rows,
                       const int32_t* columns) {
  for (int v = 0; v < kTileVectors; ++v) {
    const VecI column = load(columns + v * kLanes);
    for (int r = 0; r < kTileRows; ++r) {
      acc[r][v] = select(column & splat_int(rows[r]), acc[r][v], splat(-__builtin_inff()));
    }
  }
}

// Lifts the references of rows and columns that a score of this tile exceeds by kHeadroom.
__attribute__((noinline)) void raise_references(const float* values, const Sums& sums, int64_t row0,
                                                int64_t column0) {
  for (int r = 0; r < kTileRows; ++r) {
    float& reference = sums.row_reference[row0 + r];
    float top = reference;
    for (int c = 0; c < kTileCols; ++c) {
      const float value = values[r * kTileCols + c];
      if (value > top) top = value;
    }
    if (!(top > reference + kHeadroom)) continue;
    if (top > -kLowest) top = -kLowest;
    sums.row_sums[row0 + r] = sums.row_sums[row0 + r] * exp2(splat(reference - top));
    reference = top;
  }
  for (int c = 0; c < kTileCols; ++c) {
    float& reference = sums.column_reference[column0 + c];
    float top = reference;
    for (int r = 0; r < kTileRows; ++r) {
      const float value = values[r * kTileCols + c];
      if (value > top) top = value;
    }
    if (!(top > reference + kHeadroom)) continue;
    if (top > -kLowest) top = -kLowest;
    sums.column_sums[column0 + c] *= exp2(splat(reference - top))[0];
    reference = top;
  }
}

template <bool Fixed>
PW_INLINE void add_tile(const PackedPair& pair, const float* panel, const int32_t* row_parts,
                        const int32_t* column_parts, const Sums& sums, int64_t row0, int64_t j,
                        float reference) {
  VecF acc[kTileRows][kTileVectors];
  tile_scores(panel, pair.columns + j * pair.depth * kTileCols, pair.depth, acc);
  exclude(acc, row_parts, column_parts + j * kTileCols);
  if constexpr (!Fixed) {
    AnyAbove above;
    for (int r = 0; r < kTileRows; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        above.compare(acc[r][v], splat(sums.row_reference[row0 + r] + kHeadroom));
        above.compare(acc[r][v],
                      load(sums.column_reference + j * kTileCols + v * kLanes) + kHeadroom);
      }
    }
    if (above.found()) {
      alignas(64) float values[kTileRows * kTileCols];
      for (int r = 0; r < kTileRows; ++r) {
        for (int v = 0; v < kTileVectors; ++v)
          store(values + r * kTileCols + v * kLanes, acc[r][v]);
      }
      raise_references(values, sums, row0, j * kTileCols);
    }
  }
  for (int v = 0; v < kTileVectors; ++v) {
    float* column_sums = sums.column_sums + j * kTileCols + v * kLanes;
    VecF column_sum = load(column_sums);
    const VecF column_reference =
        Fixed ? splat(reference) : load(sums.column_reference + j * kTileCols + v * kLanes);
    for (int r = 0; r < kTileRows; ++r) {
      const VecF term = exp2(acc[r][v] - column_reference);
      column_sum = column_sum + term;
      sums.row_sums[row0 + r] =
          sums.row_sums[row0 + r] +
          (Fixed ? term : exp2(acc[r][v] - splat(sums.row_reference[row0 + r])));
    }
    store(column_sums, column_sum);
  }
}

inline float natural(float reference, double sum) {
  if (sum == 0.0) return -__builtin_inff();
  return static_cast<float>((static_cast<double>(reference) + __builtin_log2(sum)) * kLn2);
}

struct PairJob {
  const MatchParams& p;
  int64_t pair;
  Layout layout;
  char* memory;
  PackPlan plan0, plan1;
  PackFunctions pack;
  float* columns;
  int32_t* column_parts;
  bool fixed;
  float reference;

  PairJob(const MatchParams& params, int64_t which, char* workspace)
      : p(params),
        pair(which),
        layout(params),
        memory(workspace),
        plan0(plan_side(params, which, true, params.scale * kLog2e, Excluded::kZero)),
        plan1(plan_side(params, which, false, params.scale * kLog2e, Excluded::kZero)),
        pack(match_pack_functions(params.dtype)) {
    columns = reinterpret_cast<float*>(memory);
    column_parts = reinterpret_cast<int32_t*>(columns + layout.columns_count() * layout.depth);
    const float magnitude = p.scale < 0.0f ? -plan0.scale : plan0.scale;
    fixed = p.metric == MatchMetric::kCosine && !plan0.terms && magnitude <= kFixedLimit;
    reference = fixed ? magnitude : kLowest;
  }

  int64_t row_panels() const { return panel_count(plan0.count, kTileRows); }
  int64_t column_panels() const { return panel_count(plan1.count, kTileCols); }
  ThreadMemory thread_memory(int thread) const {
    return ThreadMemory(layout, memory + layout.shared_bytes() + thread * layout.thread_bytes());
  }

  void pack_columns(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j) {
      pack.columns(plan1, j * kTileCols, columns + j * plan1.depth * kTileCols, nullptr);
      for (int c = 0; c < kTileCols; ++c) {
        column_parts[j * kTileCols + c] = plan1.takes_part(j * kTileCols + c) ? -1 : 0;
      }
    }
  }

  template <bool Fixed>
  void sweep(const ThreadMemory& m, int64_t panels) const {
    const PackedPair pair_panels = {columns, column_panels(), plan0.depth};
    for (int64_t j = 0; j < column_panels(); ++j) {
      for (int64_t i = 0; i < panels; ++i) {
        add_tile<Fixed>(pair_panels, m.panels + i * plan0.depth * kTileRows,
                        m.row_parts + i * kTileRows, column_parts, m.sums, i * kTileRows, j,
                        reference);
      }
    }
  }

  void sweep_rows(int64_t begin, int64_t end, int thread) const {
    const ThreadMemory m = thread_memory(thread);
    for (int64_t j = 0; j < column_panels() * kTileCols; ++j) {
      m.sums.column_sums[j] = 0.0f;
      m.sums.column_reference[j] = reference;
    }
    for (int64_t block = begin; block < end; block += layout.row_block) {
      const int64_t panels = end - block < layout.row_block ? end - block : layout.row_block;
      const int64_t row0 = block * kTileRows;
      for (int64_t i = 0; i < panels; ++i) {
        pack.rows(plan0, row0 + i * kTileRows, m.panels + i * plan0.depth * kTileRows, nullptr);
      }
      for (int64_t i = 0; i < panels * kTileRows; ++i) {
        m.sums.row_sums[i] = VecF{};
        m.sums.row_reference[i] = reference;
        m.row_parts[i] = plan0.takes_part(row0 + i) ? -1 : 0;
      }
      if (fixed)
        sweep<true>(m, panels);
      else
        sweep<false>(m, panels);
      for (int64_t i = 0; i < panels * kTileRows && row0 + i < plan0.count; ++i) {
        p.logsumexp0[pair * p.side0.count + row0 + i] =
            natural(m.sums.row_reference[i], static_cast<double>(reduce_add(m.sums.row_sums[i])));
      }
    }
  }

  void finish_columns(int threads) const {
    for (int64_t j = 0; j < plan1.count; ++j) {
      float top = kLowest;
      for (int t = 0; t < threads; ++t) {
        const float other = thread_memory(t).sums.column_reference[j];
        top = other > top ? other : top;
      }
      double sum = 0.0;
      for (int t = 0; t < threads; ++t) {
        const Sums& sums = thread_memory(t).sums;
        sum += static_cast<double>(sums.column_sums[j]) *
               __builtin_exp2(static_cast<double>(sums.column_reference[j]) -
                              static_cast<double>(top));
      }
      p.logsumexp1[pair * p.side1.count + j] = natural(top, sum);
    }
  }

  void run(int threads) const {
    const bool nothing = plan0.count == 0 || plan1.count == 0;
    for (int64_t i = nothing ? 0 : plan0.count; i < p.side0.count; ++i) {
      p.logsumexp0[pair * p.side0.count + i] = -__builtin_inff();
    }
    for (int64_t j = nothing ? 0 : plan1.count; j < p.side1.count; ++j) {
      p.logsumexp1[pair * p.side1.count + j] = -__builtin_inff();
    }
    if (nothing) return;
    if (row_panels() < threads) threads = static_cast<int>(row_panels());
    parallel_for(threads, column_panels(),
                 [&](int64_t begin, int64_t end, int) { pack_columns(begin, end); });
    parallel_for(threads, row_panels(),
                 [&](int64_t begin, int64_t end, int thread) { sweep_rows(begin, end, thread); });
    finish_columns(threads);
  }
};

Status run_pairs(const MatchParams& p, int threads) {
  if (match_pack_functions(p.dtype).rows == nullptr) {
    return unsupported("descriptors must be float32, float16 or bfloat16");
  }
  const double products = static_cast<double>(p.side0.count) * static_cast<double>(p.side1.count) *
                          static_cast<double>(p.dim + 50);
  char* memory = static_cast<char*>(p.workspace);
  const int useful = useful_threads(threads, p.side0.count, products / 40);
  for (int64_t pair = 0; pair < p.pairs; ++pair) PairJob(p, pair, memory).run(useful);
  return ok_status();
}

}  // namespace

int64_t logsumexp_workspace(const MatchParams& params, int threads) {
  return Layout(params).bytes(threads);
}

Status match_logsumexp(const MatchParams& p, int threads) {
  if (p.metric == MatchMetric::kL2) return unsupported("log-sum-exp needs dot products or cosines");
  return run_pairs(p, threads);
}

}  // namespace PW_LEVEL
}  // namespace patchword
