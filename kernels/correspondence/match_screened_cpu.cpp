// SPDX-License-Identifier: Apache-2.0
// Exact mutual bests of cosines by 16-bit screening.
//
// Unit rows are rounded to integers of 1 / kUnits. The product of two rounded rows differs from the
// cosine by at most a margin, by the Cauchy-Schwarz inequality. The best of a row therefore lies
// within two margins of its best approximation. The few such candidates are logged as they appear,
// those that still qualify later are formed in float32, and only these values are compared and
// returned.
#include "kernels/correspondence/match_screened.h"

#include "kernels/common/cpu_levels.h"
#include "kernels/common/lane_bits.h"
#include "kernels/common/threads.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// A unit row of integers has a norm of at most kUnits + sqrt(dim) / 2: products stay below 2^31.
constexpr float kUnits = 32000.0f;
constexpr int64_t kMaxDim = 4096;
constexpr int64_t kMinDim = 32;
// Panels of integers that stay in L2 while the panels of the other side go by.
constexpr int64_t kBlockBytes = 192 * 1024;
// Exact scores are worth some ten approximate ones: beyond this share, float32 throughout is
// faster.
constexpr int64_t kGiveUpShare = 24;
constexpr int64_t kGiveUpFree = 4096;
// Candidates that a thread collects before it forms them: 24 KB.
constexpr int64_t kLogSize = 2048;

constexpr int32_t kNothing = -2147483647 - 1;
constexpr int32_t kEverything = 2147483647;

constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// acc += x.low * b.low + x.high * b.high in every 32-bit lane of 16-bit pairs.
PW_INLINE void add_products(VecI& acc, VecI x, VecI b) {
#if defined(__AVX512VNNI__)
  acc = bit_cast<VecI>(
      _mm512_dpwssd_epi32(bit_cast<__m512i>(acc), bit_cast<__m512i>(x), bit_cast<__m512i>(b)));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  // As one piece: GCC otherwise moves the additions away from the products, and twelve products
  // and twelve sums do not fit into sixteen registers (half the speed).
  VecI products;
  asm volatile("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0"
               : "+x"(acc), "=&x"(products)
               : "x"(b), "x"(x));
#else
  acc += ((x << 16) >> 16) * ((b << 16) >> 16) + (x >> 16) * (b >> 16);
#endif
}

#if defined(__AVX512F__)
struct AnyIntAbove {
  __mmask16 bits = 0;
  PW_INLINE void compare(VecI value, VecI limit) {
    bits |= _mm512_cmpgt_epi32_mask(bit_cast<__m512i>(value), bit_cast<__m512i>(limit));
  }
  PW_INLINE bool found() const { return bits != 0; }
};
#else
struct AnyIntAbove {
  VecI bits{};
  PW_INLINE void compare(VecI value, VecI limit) { bits |= value > limit; }
  PW_INLINE bool found() const { return any(bits); }
};
#endif

PW_INLINE VecI larger(VecI a, VecI b) { return a > b ? a : b; }

// Unit rows [count][padded] as panel[padded / 2][Width] of pairs (element d, element d + kLanes).
template <int Width>
void pack_integers(const float* rows, int64_t padded, int32_t* panel) {
  const VecF magic = splat(12582912.0f);  // adding it rounds to an integer
  for (int first = 0; first < Width; first += kLanes) {
    const int count = Width - first < kLanes ? Width - first : kLanes;
    for (int64_t d = 0; d < padded; d += 2 * kLanes) {
      VecF words[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        if (i >= count) {
          words[i] = VecF{};
          continue;
        }
        const float* at = rows + (first + i) * padded + d;
        const VecI low =
            bit_cast<VecI>(fma(load(at), splat(kUnits), magic)) - bit_cast<VecI>(magic);
        const VecI high =
            bit_cast<VecI>(fma(load(at + kLanes), splat(kUnits), magic)) - bit_cast<VecI>(magic);
        words[i] = bit_cast<VecF>((low & 0xffff) | (high << 16));
      }
      transpose_lanes(words);
      int32_t* out = panel + d / 2 * Width + first;
      for (int w = 0; w < kLanes; ++w) {
        if (count == kLanes) {
          store(out + w * Width, bit_cast<VecI>(words[w]));
        } else {
          int32_t lanes[kLanes];
          store(lanes, bit_cast<VecI>(words[w]));
          __builtin_memcpy(out + w * Width, lanes, sizeof(int32_t) * (Width % kLanes));
        }
      }
    }
  }
}

inline float exact_score(const float* a, const float* b, int64_t padded) {
  VecF sum0{}, sum1{};
  for (int64_t d = 0; d < padded; d += 2 * kLanes) {
    sum0 = fma(load(a + d), load(b + d), sum0);
    sum1 = fma(load(a + d + kLanes), load(b + d + kLanes), sum1);
  }
  return reduce_add(sum0 + sum1);
}

struct Candidate {
  int32_t row, column, approximate;  // row within its block
};

// Exact best so far, and the integer that an approximation must exceed to be looked at.
struct Bests {
  float* score;
  int32_t* index;
  int32_t* limit;

  // Rows that take no part are packed as 0; nothing may be looked at for their sake.
  void reset(int64_t n, const int32_t* usable) const {
    for (int64_t i = 0; i < n; ++i) {
      score[i] = -__builtin_inff();
      index[i] = -1;
      limit[i] = usable[i] ? kNothing : kEverything;
    }
  }
};

struct Layout {
  int64_t padded, row_block, column_panels;

  Layout(const MatchParams& p)
      : padded((p.dim + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes)),
        row_block(kBlockBytes / (padded * 2 * kTileRows)),
        column_panels(panel_count(p.side1.count, kTileCols)) {
    const int64_t row_panels = panel_count(p.side0.count, kTileRows);
    if (row_block < 1) row_block = 1;
    if (row_block > row_panels) row_block = row_panels;
  }

  int64_t columns() const { return column_panels * kTileCols; }
  int64_t rows() const { return row_block * kTileRows; }
  int64_t shared_bytes() const { return aligned(columns() * (padded * 6 + 4)); }
  int64_t thread_bytes() const {
    return aligned(rows() * (padded * 6 + 16)) + aligned(columns() * 12) +
           aligned(kLogSize * static_cast<int64_t>(sizeof(Candidate)));
  }
  int64_t bytes(int threads) const { return shared_bytes() + threads * thread_bytes(); }
};

// `count` packed rows: integers in panels, float32 row-major, and which take part.
struct PackedRows {
  int32_t* panels;
  float* rows;
  int32_t* usable;

  PackedRows(char* memory, int64_t count, int64_t padded)
      : panels(reinterpret_cast<int32_t*>(memory)),
        rows(reinterpret_cast<float*>(memory + count * padded * 2)),
        usable(reinterpret_cast<int32_t*>(memory + count * padded * 6)) {}
};

struct Screening {
  const MatchParams& p;
  int64_t pair;
  Layout layout;
  char* memory;
  PackPlan plan0, plan1;
  PackFunctions pack;
  PackedRows columns;
  int32_t reach;  // an approximation this far below another cannot have the larger score

  Screening(const MatchParams& params, int64_t which, char* workspace)
      : p(params),
        pair(which),
        layout(params),
        memory(workspace),
        plan0(plan_side(params, which, true, 1.0f, Excluded::kZero)),
        plan1(plan_side(params, which, false, 1.0f, Excluded::kZero)),
        pack(match_pack_functions(params.dtype)),
        columns(workspace, layout.columns(), layout.padded) {
    // Rounding moves a row by at most sqrt(dim) / 2 units (0.51 with the rounding of the scaling),
    // twice, times a norm of about one; 4e-6 covers float32 in the exact scores.
    const double row = 0.51 * __builtin_sqrt(static_cast<double>(p.dim)) / kUnits;
    const double margin = (2.0 * row + row * row + 4e-6) * kUnits * kUnits + 2.0;
    reach = static_cast<int32_t>(2.0 * margin) + 1;
  }

  int64_t row_panels() const { return panel_count(plan0.count, kTileRows); }
  int64_t column_panels() const { return panel_count(plan1.count, kTileCols); }
  char* thread_memory(int thread) const {
    return memory + layout.shared_bytes() + thread * layout.thread_bytes();
  }
  PackedRows row_memory(int thread) const {
    return PackedRows(thread_memory(thread), layout.rows(), layout.padded);
  }
  Bests row_bests(int thread) const {
    float* scores = reinterpret_cast<float*>(row_memory(thread).usable + layout.rows());
    int32_t* index = reinterpret_cast<int32_t*>(scores + layout.rows());
    return {scores, index, index + layout.rows()};
  }
  Bests column_bests(int thread) const {
    float* scores = reinterpret_cast<float*>(thread_memory(thread) +
                                             aligned(layout.rows() * (layout.padded * 6 + 16)));
    int32_t* index = reinterpret_cast<int32_t*>(scores + layout.columns());
    return {scores, index, index + layout.columns()};
  }

  Candidate* log_memory(int thread) const {
    return reinterpret_cast<Candidate*>(
        thread_memory(thread + 1) - aligned(kLogSize * static_cast<int64_t>(sizeof(Candidate))));
  }

  void pack_columns(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j) {
      float* rows = columns.rows + j * kTileCols * layout.padded;
      pack.unit_rows(plan1, j * kTileCols, kTileCols, layout.padded, rows,
                     columns.usable + j * kTileCols);
      pack_integers<kTileCols>(rows, layout.padded,
                               columns.panels + j * kTileCols * layout.padded / 2);
    }
  }

  static PW_INLINE void offer(const Bests& bests, int64_t at, float score, int32_t index) {
    if (!(score > bests.score[at])) return;
    bests.score[at] = score;
    bests.index[at] = index;
  }

  // What one thread works on: a block of rows against all columns.
  struct Block {
    const PackedRows& rows;
    const Bests& row_bests;
    const Bests& column_bests;
    Candidate* log;
    int64_t first_row;
    int64_t logged = 0, formed = 0;
  };

  // Logs the scores of a tile that may be a best, and raises the limits of their rows and columns:
  // the best lies within two margins of the best approximation.
  __attribute__((noinline)) void log_tile(const int32_t* values, int64_t row0, int64_t column0,
                                          Block& block) const {
    if (block.logged > kLogSize - kTileRows * kTileCols) form_logged(block);
    int32_t* column_limits = block.column_bests.limit + column0;
    for (int r = 0; r < kTileRows; ++r) {
      int32_t& row_limit = block.row_bests.limit[row0 + r];
      const VecI part = splat_int(block.rows.usable[row0 + r]);
      for (int v = 0; v < kTileVectors; ++v) {
        const VecI value = load(values + r * kTileCols + v * kLanes);
        const VecI above =
            (value > load(column_limits + v * kLanes)) | (value > splat_int(row_limit));
        uint32_t lanes = lane_bits(above & part & load(columns.usable + column0 + v * kLanes));
        for (; lanes != 0; lanes &= lanes - 1) {
          const int c = v * kLanes + __builtin_ctz(lanes);
          const int32_t approximate = values[r * kTileCols + c];
          int32_t& column_limit = column_limits[c];
          // The row's limit may have risen since.
          if (approximate <= row_limit && approximate <= column_limit) continue;
          block.log[block.logged++] = {static_cast<int32_t>(row0 + r),
                                       static_cast<int32_t>(column0 + c), approximate};
          const int32_t limit = approximate - reach;
          row_limit = limit > row_limit ? limit : row_limit;
          column_limit = limit > column_limit ? limit : column_limit;
        }
      }
    }
  }

  // Forms the logged scores that are still above a limit, in the order of the sweep: ascending
  // columns for every row and rows for every column.
  __attribute__((noinline)) void form_logged(Block& block) const {
    for (int64_t i = 0; i < block.logged; ++i) {
      const Candidate& candidate = block.log[i];
      if (candidate.approximate <= block.row_bests.limit[candidate.row] &&
          candidate.approximate <= block.column_bests.limit[candidate.column]) {
        continue;
      }
      const float score =
          exact_score(block.rows.rows + candidate.row * layout.padded,
                      columns.rows + candidate.column * layout.padded, layout.padded);
      offer(block.row_bests, candidate.row, score, candidate.column);
      offer(block.column_bests, candidate.column, score,
            static_cast<int32_t>(block.first_row + candidate.row));
      ++block.formed;
    }
    block.logged = 0;
  }

  // False when it gave up.
  bool sweep_rows(int64_t begin, int64_t end, int thread) const {
    const PackedRows rows = row_memory(thread);
    const Bests of_rows = row_bests(thread), of_columns = column_bests(thread);
    const int64_t words = layout.padded / 2;
    of_columns.reset(column_panels() * kTileCols, columns.usable);
    int64_t formed = 0, passed = 0;
    Candidate* log = log_memory(thread);
    for (int64_t block = begin; block < end; block += layout.row_block) {
      const int64_t panels = end - block < layout.row_block ? end - block : layout.row_block;
      const int64_t block_row = block * kTileRows;
      pack.unit_rows(plan0, block_row, panels * kTileRows, layout.padded, rows.rows, rows.usable);
      for (int64_t i = 0; i < panels; ++i) {
        pack_integers<kTileRows>(rows.rows + i * kTileRows * layout.padded, layout.padded,
                                 rows.panels + i * kTileRows * words);
      }
      of_rows.reset(panels * kTileRows, rows.usable);
      Block state{rows, of_rows, of_columns, log, block_row};
      for (int64_t j = 0; j < column_panels(); ++j) {
        for (int64_t i = 0; i < panels; ++i) {
          VecI acc[kTileRows][kTileVectors];
          multiply(rows.panels + i * kTileRows * words, columns.panels + j * kTileCols * words,
                   words, acc);
          if (!above(acc, of_rows.limit + i * kTileRows, of_columns.limit + j * kTileCols))
            continue;
          alignas(64) int32_t values[kTileRows * kTileCols];
#pragma GCC unroll 16
          for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
            for (int v = 0; v < kTileVectors; ++v) {
              store(values + r * kTileCols + v * kLanes, acc[r][v]);
            }
          }
          log_tile(values, i * kTileRows, j * kTileCols, state);
        }
        passed += panels * kTileRows * kTileCols;
        if (formed + state.formed > kGiveUpFree + passed / kGiveUpShare) return false;
      }
      form_logged(state);
      formed += state.formed;
      for (int64_t i = 0; i < panels * kTileRows && block_row + i < plan0.count; ++i) {
        const int64_t out = pair * p.side0.count + block_row + i;
        p.indices0[out] = of_rows.index[i];
        p.scores0[out] = of_rows.score[i];
      }
    }
    return true;
  }

  static PW_INLINE void multiply(const int32_t* __restrict__ a, const int32_t* __restrict__ b,
                                 int64_t words, VecI (&acc)[kTileRows][kTileVectors]) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) acc[r][v] = VecI{};
    }
    for (int64_t w = 0; w < words; ++w) {
      VecI column[kTileVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) column[v] = load(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const VecI row = splat_int(a[r]);
#pragma GCC unroll 8
        for (int v = 0; v < kTileVectors; ++v) add_products(acc[r][v], row, column[v]);
      }
      a += kTileRows;
      b += kTileCols;
    }
  }

  static PW_INLINE bool above(const VecI (&acc)[kTileRows][kTileVectors], const int32_t* row_limits,
                              const int32_t* column_limits) {
    AnyIntAbove found;
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) {
      const VecI limit = load(column_limits + v * kLanes);
      VecI best = limit;
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        best = larger(acc[r][v], best);
        found.compare(acc[r][v], splat_int(row_limits[r]));
      }
      found.compare(best, limit);
    }
    return found.found();
  }

  void finish_columns(int threads) const {
    const Bests first = column_bests(0);
    for (int t = 1; t < threads; ++t) {
      const Bests later = column_bests(t);
      for (int64_t j = 0; j < plan1.count; ++j) {
        if (later.score[j] > first.score[j]) {
          first.score[j] = later.score[j];
          first.index[j] = later.index[j];
        }
      }
    }
    for (int64_t j = 0; j < p.side1.count; ++j) {
      const int64_t out = pair * p.side1.count + j;
      p.indices1[out] = j < plan1.count ? first.index[j] : -1;
      p.scores1[out] = j < plan1.count ? first.score[j] : -__builtin_inff();
    }
    for (int64_t i = plan0.count; i < p.side0.count; ++i) {
      p.indices0[pair * p.side0.count + i] = -1;
      p.scores0[pair * p.side0.count + i] = -__builtin_inff();
    }
  }

  bool run(int threads) const {
    if (plan0.count == 0 || plan1.count == 0) return false;
    if (row_panels() < threads) threads = static_cast<int>(row_panels());
    parallel_for(threads, column_panels(),
                 [&](int64_t begin, int64_t end, int) { pack_columns(begin, end); });
    int32_t gave_up = 0;
    parallel_for(threads, row_panels(), [&](int64_t begin, int64_t end, int thread) {
      if (!sweep_rows(begin, end, thread)) __atomic_store_n(&gave_up, 1, __ATOMIC_RELAXED);
    });
    if (gave_up) return false;
    finish_columns(threads);
    return true;
  }
};

}  // namespace

static bool depth_fits(const MatchParams& p) {
  return kScreening && p.dim >= kMinDim && p.dim <= kMaxDim;
}

bool screening_applies(const MatchParams& p) {
  return depth_fits(p) && p.metric == MatchMetric::kCosine && p.indices1 != nullptr && p.k == 1 &&
         p.second0 == nullptr && p.side0.bias == nullptr && p.side1.bias == nullptr &&
         p.scale == 1.0f;
}

int64_t screened_workspace(const MatchParams& p, int threads) {
  return depth_fits(p) ? Layout(p).bytes(threads) : 0;
}

bool screened_best(const MatchParams& p, int64_t pair, int threads, char* workspace) {
  return Screening(p, pair, workspace).run(threads);
}

}  // namespace PW_LEVEL
}  // namespace patchword
