// SPDX-License-Identifier: Apache-2.0
// Which scores lie beyond their limits for certain, from products of bytes. For level units only.
//
// For rows x and y with integers A and B, factors s and t, and e = s x - A, f = t y - B:
//   |s t x.y - A.B| = |e.(B + f) + A.f| <= |e| (|B| + |f|) + |A| |f|
// and the float32 score, a chain of kDepthBlock products and a few sums, differs from x.y by at
// most kDepthBlock and a few units of rounding, times |x| |y|. A score whose A.B is further from
// s t limit is decided; the others are listed, to be made in float32.
#pragma once

#include "kernels/common/lane_bits.h"
#include "kernels/retrieval_ranks/integer_rows.h"
#include "kernels/retrieval_ranks/rank_rule.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

#if defined(PW_LEVEL_AVX2) || defined(PW_LEVEL_AVX512) || defined(PW_LEVEL_AVX512_BF16) || \
    defined(PW_LEVEL_AVX512_EMULATED)
constexpr bool kScreening = true;
#else
constexpr bool kScreening = false;  // no instruction that multiplies bytes
#endif

constexpr int64_t kScreenColumns = 1024;  // their floats as well stay in the L3 cache
constexpr int64_t kMaxScreenDim = 16384;  // integer sums stay below 2^31
constexpr int64_t kMinScreenDim = 128;    // below, deciding costs as much as multiplying
// A panel of the gallery is taken in pieces of 16 KB, which stay in L1 while a block of rows goes
// by.
constexpr int64_t kPieceGroups = 16384 / (kGroup * kTileCols);
// A listed score costs as much as four of a block: beyond this share float32 throughout is faster.
constexpr int64_t kOpenShare = 6;
constexpr int64_t kFreeOpen = 512;

// What a row of queries contributes to a decision.
struct ScreenRow {
  float limit, scale, reach, norm;

  ScreenRow() = default;
  ScreenRow(const IntegerFit& fit, const RankLimit& rank, int64_t depth)
      : limit(rank.score * fit.scale), scale(fit.scale), norm(fit.norm) {
    const float rounding = static_cast<float>(kDepthBlock + depth_blocks(depth) + 16) * 0x1p-24f;
    reach = fit.error + rounding * (fit.norm + fit.error);
  }
};

// A block of the gallery: words and corrections of its panels, and what its rows contribute.
struct ScreenColumns {
  int64_t groups;
  float *scale, *size, *error, *limit;
  int32_t *words, *corrections;

  ScreenColumns(char* memory, int64_t columns, int64_t depth) : groups(groups_of(depth)) {
    scale = reinterpret_cast<float*>(memory);
    size = scale + columns;
    error = size + columns;
    limit = error + columns;
    words = reinterpret_cast<int32_t*>(limit + columns);
    corrections = words + columns * groups * kLanes;
  }
  static int64_t bytes(int64_t columns, int64_t depth) {
    const int64_t groups = groups_of(depth);
    return 4 * columns * (4 + groups * kLanes + correction_rows(groups));
  }

  const int32_t* panel_words(int64_t panel) const {
    return words + panel * groups * kLanes * kTileCols;
  }
  const int32_t* panel_corrections(int64_t panel, int64_t group) const {
    const int64_t rows = correction_rows(groups);
    return corrections + (panel * rows + (kWideSums ? 0 : group)) * kTileCols;
  }

  // Rows [row0 + panel * kTileCols, ...) of the gallery. `limits` are theirs, or null.
  template <typename Element>
  void pack_panel(const MatrixRows<Element>& gallery, int64_t row0, int64_t panel,
                  const float* limits) const {
    IntegerFit fits[kTileCols];
    const int64_t column0 = panel * kTileCols;
    for (int64_t c = 0; c < kTileCols; ++c) {
      const int64_t at = column0 + c;
      const bool real = row0 + at < gallery.count;
      fits[c] = real ? fit_row(gallery, row0 + at) : IntegerFit{0.0f, 0.0f, 0.0f};
      scale[at] = fits[c].scale;
      size[at] = fits[c].norm + fits[c].error;
      error[at] = fits[c].error;
      limit[at] = real && limits != nullptr ? limits[row0 + at] * fits[c].scale : 0.0f;
    }
    int32_t* const to = words + panel * groups * kLanes * kTileCols;
    pack_integers<kTileCols>(gallery, row0 + column0, fits, 0, to);
    find_corrections(to, groups, corrections + panel * correction_rows(groups) * kTileCols);
  }
};

// What is known of a row of queries: candidates that come first for certain, and undecided ones.
struct ScreenedRow {
  uint16_t* open;
  int32_t opened;
  int32_t before;
};

// Decides the scores of `real` columns of a tile of products for one row, whose limit is `row`, and
// with `counts` also for the columns. A score that is open for either counts for neither.
PW_INLINE void decide_row(const int32_t* products, const ScreenRow& row,
                          const ScreenColumns& columns, int64_t column0, int64_t real,
                          ScreenedRow& known, int32_t* counts) {
  // What may be lost to underflow, and to rounding of small sums.
  const VecF slack = splat(0x1p-8f);
  for (int v = 0; v < kTileVectors; ++v) {
    const int64_t c = column0 + v * kLanes;
    const VecF product = to_float(load(products + v * kLanes));
    const VecF bound = fma(splat(row.reach), load(columns.size + c),
                           fma(splat(row.norm), load(columns.error + c), slack));
    const VecF above = fma(splat(-row.limit), load(columns.scale + c), product);
    VecI before = above > bound;
    VecI open = ~(before | (above < -bound));  // NaN stays open
    VecI before1{};
    if (counts != nullptr) {
      const VecF above1 = fma(-load(columns.limit + c), splat(row.scale), product);
      before1 = above1 > bound;
      open |= ~(before1 | (above1 < -bound));
    }
    if (column0 + (v + 1) * kLanes > real) {
      const VecI valid = lane_numbers() < splat_int(static_cast<int32_t>(real - c));
      before &= valid;
      before1 &= valid;
      open &= valid;
    }
    known.before += __builtin_popcount(lane_bits(before & ~open));
    if (counts != nullptr) store(counts + c, load(counts + c) - (before1 & ~open));
    for (uint32_t lanes = lane_bits(open); lanes != 0; lanes &= lanes - 1) {
      known.open[known.opened++] = static_cast<uint16_t>(c + __builtin_ctz(lanes));
    }
  }
}

// A thread's memory for screening a block of rows against a block of the gallery.
struct ScreenMemory {
  int32_t* words;      // of the rows, in panels
  ScreenedRow* known;  // [kRowBlock]
  float* row;          // [depth], one row as floats
  float* scores;       // [columns + kListed]
  int32_t* counts;     // [columns], of this block of rows alone
  uint16_t* open;      // [kRowBlock][columns]
};

// Decides what it can of the scores of rows [row0, row0 + rows) of `queries` with `count` columns.
// Returns how many stay open, or -1 as soon as there are so many that it is not worth going on.
template <typename Element>
int64_t screen_rows(const MatrixRows<Element>& queries, int64_t row0, int64_t rows,
                    const IntegerFit* fits, const ScreenRow* lines, const ScreenColumns& columns,
                    int64_t count, bool both, const ScreenMemory& memory) {
  const int64_t words = columns.groups * kLanes * kTileRows;
  const int64_t row_panels = panel_count(rows, kTileRows);
  const int64_t column_panels = panel_count(count, kTileCols);
  for (int64_t i = 0; i < row_panels; ++i) {
    pack_integers<kTileRows>(queries, row0 + i * kTileRows, fits + i * kTileRows, kBias,
                             memory.words + i * words);
  }
  for (int64_t r = 0; r < rows; ++r) {
    memory.known[r] = {memory.open + r * column_panels * kTileCols, 0, 0};
  }
  for (int64_t c = 0; c < column_panels * kTileCols; ++c) memory.counts[c] = 0;
  alignas(64) int32_t products[kRowBlock * kTileCols];
  int64_t open = 0;
  for (int64_t j = 0; j < column_panels; ++j) {
    for (int64_t g = 0; g < columns.groups; g += kPieceGroups) {
      const int64_t left = columns.groups - g;
      for (int64_t i = 0; i < row_panels; ++i) {
        multiply_integers(memory.words + i * words + g * kLanes * kTileRows,
                          columns.panel_words(j) + g * kLanes * kTileCols,
                          columns.panel_corrections(j, g),
                          left < kPieceGroups ? left : kPieceGroups, g == 0,
                          products + i * kTileRows * kTileCols);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      decide_row(products + r * kTileCols, lines[r], columns, j * kTileCols, count, memory.known[r],
                 both ? memory.counts : nullptr);
    }
    open = 0;
    for (int64_t r = 0; r < rows; ++r) open += memory.known[r].opened;
    const int64_t passed = rows * (j + 1) * kTileCols;
    if (open > kFreeOpen + passed / kOpenShare) return -1;
  }
  return open;
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
