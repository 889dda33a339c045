// SPDX-License-Identifier: Apache-2.0
// One block's tile of output pixels: its taps, the cells it reads, and the staged, vertically mixed
// rows of a chunk of classes in shared memory. Used by every kernel of the family.
#pragma once

#include "kernels/common/half.h"
#include "kernels/common/simt.cuh"
#include "kernels/mask_upsample/interpolation_taps.h"

namespace patchword {
namespace {

constexpr int kTileRows = 16, kTileColumns = 64;     // upsampling: neighbours share cells
constexpr int kSparseRows = 8, kSparseColumns = 32;  // downsampling: every pixel has its own
constexpr int kPixels = 4;                           // neighbouring pixels of one thread
constexpr int kThreads = kTileRows * kTileColumns / kPixels;
// Cells of a tile, per axis: dense tiles span at most kTileColumns + 3 cells at scale 1.
constexpr int kMaxRowCells = 4 * kSparseRows, kMaxColumnCells = 4 * kSparseColumns;
constexpr int kArena = 6144;  // floats of staged and mixed classes: 24 KB
constexpr int kGroup = 2048;  // classes whose candidates are listed together

PW_DEVICE float load_value(const MaskUpsampleParams& p, int64_t offset) {
  switch (p.dtype) {
    case DType::kFloat16: return to_float(static_cast<const Half*>(p.logits)[offset]);
    case DType::kBFloat16: return to_float(static_cast<const BFloat16*>(p.logits)[offset]);
    default: return static_cast<const float*>(p.logits)[offset];
  }
}

// Shared tables of a tile, laid out by the kernel.
struct TileTables {
  int32_t* row_slot;       // [kTileRows] first cell of an output row, counted within the tile
  float* row_weight;       // [kTileRows][4]
  int32_t* column_slot;    // [kTileColumns]
  float* column_weight;    // [kTileColumns][4]
  int32_t* source_row;     // [kMaxRowCells] cell row of a slot, clamped
  int32_t* source_column;  // [kMaxColumnCells]
  float* arena;            // [kArena]
};

struct Tile {
  int64_t image;
  int64_t y0, x0;     // first output pixel
  int rows, columns;  // output pixels of a full tile
  int row_cells, column_cells;
  int row_taps, column_taps;

  // Output pixels of this thread: kPixels neighbours of one row.
  PW_DEVICE int my_row() const { return static_cast<int>(threadIdx.x) / (columns / kPixels); }
  PW_DEVICE int my_column() const {
    return static_cast<int>(threadIdx.x) % (columns / kPixels) * kPixels;
  }
};

inline bool sparse_tiles(const MaskUpsampleParams& p) {
  return p.height > p.out_height || p.width > p.out_width;
}

// Fills one axis of the tables. Dense: slots are the cells from the tile's first one on; sparse:
// slot o * taps + t belongs to tap t of output o alone.
PW_DEVICE void fill_axis(int64_t in, int64_t out, int64_t begin, int count, bool sparse,
                         UpsampleMode mode, bool align_corners, int taps, int32_t* slot,
                         float* weight, int32_t* source, int* cells) {
  const float scale = axis_scale(in, out, align_corners);
  const int64_t last = simt::min<int64_t>(begin + count, out) - 1;
  const int32_t base = axis_taps(in, out, scale, begin, mode, align_corners).first;
  const int32_t end = axis_taps(in, out, scale, last, mode, align_corners).first + taps;
  for (int o = static_cast<int>(threadIdx.x); o < count; o += static_cast<int>(blockDim.x)) {
    // Pixels after the picture's edge repeat the last one and are never written.
    const int64_t coordinate = simt::min<int64_t>(begin + o, last);
    const AxisTaps t = axis_taps(in, out, scale, coordinate, mode, align_corners);
    slot[o] = sparse ? o * taps : t.first - base;
    for (int k = 0; k < 4; ++k) weight[o * 4 + k] = t.weight[k];
    if (sparse) {
      for (int k = 0; k < taps; ++k) {
        source[o * taps + k] = static_cast<int32_t>(clamp_cell(t.first + k, in));
      }
    }
  }
  *cells = sparse ? count * taps : end - base;
  if (sparse) return;
  for (int i = static_cast<int>(threadIdx.x); i < end - base; i += static_cast<int>(blockDim.x)) {
    source[i] = static_cast<int32_t>(clamp_cell(base + i, in));
  }
}

// The tile of block (blockIdx.x, image); tables are ready after the next barrier.
PW_DEVICE Tile make_tile(const MaskUpsampleParams& p, int64_t image, bool sparse,
                         const TileTables& tables) {
  Tile tile;
  tile.image = image;
  tile.rows = sparse ? kSparseRows : kTileRows;
  tile.columns = sparse ? kSparseColumns : kTileColumns;
  const int64_t across = simt::ceil_div<int64_t>(p.out_width, tile.columns);
  tile.y0 = static_cast<int64_t>(blockIdx.x) / across * tile.rows;
  tile.x0 = static_cast<int64_t>(blockIdx.x) % across * tile.columns;
  tile.row_taps = axis_tap_count(p.height, p.out_height, p.mode);
  tile.column_taps = axis_tap_count(p.width, p.out_width, p.mode);
  fill_axis(p.height, p.out_height, tile.y0, tile.rows, sparse, p.mode, p.align_corners != 0,
            tile.row_taps, tables.row_slot, tables.row_weight, tables.source_row, &tile.row_cells);
  fill_axis(p.width, p.out_width, tile.x0, tile.columns, sparse, p.mode, p.align_corners != 0,
            tile.column_taps, tables.column_slot, tables.column_weight, tables.source_column,
            &tile.column_cells);
  return tile;
}

// Classes that fit into the arena: raw cells and mixed rows.
PW_DEVICE int chunk_classes(const Tile& tile) {
  return simt::max(kArena / ((tile.row_cells + tile.rows) * tile.column_cells), 1);
}

// Stages `count` classes and mixes them vertically; mixed[k][row][cell] follows the raw cells.
// Returns the mixed part. The block is in step before and after.
template <int kTaps>
PW_DEVICE const float* stage_classes(const MaskUpsampleParams& p, const Tile& tile,
                                     const TileTables& tables, const uint16_t* classes,
                                     int64_t class_base, int count) {
  const int cells = tile.row_cells * tile.column_cells;
  float* raw = tables.arena;
  const int64_t base = tile.image * p.logits_stride[0];
  const int raw_total = count * cells;
  // Neighbouring threads read neighbouring addresses, whichever way the maps lie.
  const bool class_fastest = p.logits_stride[1] == 1 && p.logits_stride[3] != 1;
  for (int i = static_cast<int>(threadIdx.x); i < raw_total; i += static_cast<int>(blockDim.x)) {
    const int k = class_fastest ? i % count : i / cells;
    const int cell = class_fastest ? i / count : i % cells;
    const int row = cell / tile.column_cells, column = cell % tile.column_cells;
    raw[k * cells + cell] = load_value(p, base + (class_base + classes[k]) * p.logits_stride[1] +
                                              tables.source_row[row] * p.logits_stride[2] +
                                              tables.source_column[column] * p.logits_stride[3]);
  }
  simt::sync_block();
  float* mixed = raw + raw_total;
  const int per_class = tile.rows * tile.column_cells;
  for (int i = static_cast<int>(threadIdx.x); i < count * per_class;
       i += static_cast<int>(blockDim.x)) {
    const int k = i / per_class, rest = i % per_class;
    const int row = rest / tile.column_cells, column = rest % tile.column_cells;
    const float* at = raw + k * cells + tables.row_slot[row] * tile.column_cells + column;
    const float* weight = tables.row_weight + row * 4;
    float sum = weight[0] * at[0];
    PW_UNROLL
    for (int t = 1; t < kTaps; ++t) {
      if (t < tile.row_taps) sum = fmaf(weight[t], at[t * tile.column_cells], sum);
    }
    mixed[i] = sum;
  }
  simt::sync_block();
  return mixed;
}

// The horizontal side of this thread's pixels, kept in registers for all classes.
template <int kTaps>
struct PixelTaps {
  int32_t slot[kPixels];
  float weight[kPixels][kTaps];
  int taps;

  PW_DEVICE PixelTaps(const Tile& tile, const TileTables& tables) : taps(tile.column_taps) {
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      const int column = tile.my_column() + i;
      slot[i] = tables.column_slot[column];
      PW_UNROLL
      for (int t = 0; t < kTaps; ++t) weight[i][t] = tables.column_weight[column * 4 + t];
    }
  }

  // Values of the pixels from one class's mixed row. Pixels of one cell share its reads.
  PW_DEVICE void mix(const float* row, float (&value)[kPixels]) const {
    float cell[kTaps] = {};
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      if (i == 0 || slot[i] != slot[i - 1]) {
        PW_UNROLL
        for (int t = 0; t < kTaps; ++t) {
          if (t < taps) cell[t] = row[slot[i] + t];
        }
      }
      float sum = weight[i][0] * cell[0];
      PW_UNROLL
      for (int t = 1; t < kTaps; ++t) {
        if (t < taps) sum = fmaf(weight[i][t], cell[t], sum);
      }
      value[i] = sum;
    }
  }
};

}  // namespace
}  // namespace patchword
