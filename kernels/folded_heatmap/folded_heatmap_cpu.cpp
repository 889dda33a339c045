// SPDX-License-Identifier: Apache-2.0
// Folding and heat maps on the CPU: units by a search for their threshold, rows of the projection
// added in registers, then one product of packed texts and packed cells.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/gemm_tile.h"
#include "kernels/common/packed_argmax.h"
#include "kernels/common/simd.h"
#include "kernels/common/threads.h"
#include "kernels/common/transpose.h"
#include "kernels/folded_heatmap/folded_heatmap.h"
#include "kernels/folded_heatmap/folded_heatmap_plan.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

constexpr int kColumnVectors = 8;  // of the projection, added up in registers at a time
constexpr int64_t kColumns = kColumnVectors * kLanes;

// The units of one text: the `top` largest values, of equal ones the first, in rising order.
// `keys` holds one word per unit and is free to use.
void choose_units(const FoldUnitsParams& p, const float* text, uint32_t* keys, int32_t* units,
                  float* weights) {
  for (int64_t u = 0; u < p.units; ++u) keys[u] = order_key(text[u]);
  // The largest threshold that `top` keys reach, from its highest bit down.
  uint32_t threshold = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t tried = threshold | (1u << bit);
    int32_t reached = 0;
    for (int64_t u = 0; u < p.units; ++u) reached += keys[u] >= tried ? 1 : 0;
    if (reached >= p.top) threshold = tried;
  }
  int64_t missing = p.top;
  for (int64_t u = 0; u < p.units; ++u) missing -= keys[u] > threshold ? 1 : 0;
  int64_t n = 0;
  for (int64_t u = 0; u < p.units; ++u) {
    const bool equal = keys[u] == threshold && missing > 0;
    if (keys[u] <= threshold && !equal) continue;
    missing -= equal ? 1 : 0;
    units[n] = static_cast<int32_t>(u);
    weights[n++] = __builtin_fabsf(text[u]);
  }
}

// Columns [first, first + count) of one text's folded vector.
void add_rows(const FoldUnitsParams& p, const int32_t* units, const float* weights, int64_t first,
              int64_t count, float* folded) {
  if (count == kColumns) {
    VecF sum[kColumnVectors] = {};
    for (int64_t n = 0; n < p.top; ++n) {
      const float* row = p.projection + units[n] * p.projection_stride + first;
      const VecF weight = splat(weights[n]);
#pragma GCC unroll 8
      for (int v = 0; v < kColumnVectors; ++v) sum[v] = fma(weight, load(row + v * kLanes), sum[v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kColumnVectors; ++v) store(folded + first + v * kLanes, sum[v]);
    return;
  }
  for (int64_t d = first; d < first + count; ++d) folded[d] = 0.0f;
  for (int64_t n = 0; n < p.top; ++n) {
    const float* row = p.projection + units[n] * p.projection_stride;
    for (int64_t d = first; d < first + count; ++d) folded[d] += weights[n] * row[d];
  }
}

Status fold(const FoldUnitsParams& p, int threads) {
  const UnitLists lists = unit_lists(p);
  const int used = fold_threads(p, threads);
  uint32_t* keys = reinterpret_cast<uint32_t*>(lists.weights + p.texts * p.top);
  parallel_for(used, p.texts, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t t = begin; t < end; ++t) {
      choose_units(p, p.text + t * p.units, keys + thread * p.units, lists.units + t * p.top,
                   lists.weights + t * p.top);
    }
  });
  // Texts inside: the columns that they read are then in cache for all but the first.
  parallel_for(used, panel_count(p.channels, kColumns), [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kColumns;
      const int64_t rest = p.channels - first;
      for (int64_t t = 0; t < p.texts; ++t) {
        add_rows(p, lists.units + t * p.top, lists.weights + t * p.top, first,
                 rest < kColumns ? rest : kColumns, p.folded + t * p.channels);
      }
    }
  });
  return ok_status();
}

// [D][kTileRows] for every kTileRows texts of one image; rows without a text are 0.
void pack_texts(const FoldedHeatmapParams& p, const float* folded, int64_t tile, float* panel) {
  for (int64_t d = 0; d < p.channels; ++d) {
    for (int i = 0; i < kTileRows; ++i) {
      const int64_t t = tile * kTileRows + i;
      panel[d * kTileRows + i] = t < p.texts ? folded[t * p.channels + d] : 0.0f;
    }
  }
}

// [D][kTileCols] of cells [first, first + count) of image b; columns without a cell are 0.
template <typename Element>
void pack_cells(const FoldedHeatmapParams& p, int64_t b, int64_t first, int64_t count,
                float* panel) {
  typedef typename Element::Storage T;
  const int64_t along_d = p.maps_stride[1], along_p = p.maps_stride[2];
  const T* from = static_cast<const T*>(p.maps) + b * p.maps_stride[0] + first * along_p;
  for (int v = 0; v < kTileVectors; ++v) {
    const int64_t left = count - v * kLanes;
    const int n = left < 0 ? 0 : (left < kLanes ? static_cast<int>(left) : kLanes);
    const T* cells = from + v * kLanes * along_p;
    float* to = panel + v * kLanes;
    if (n == kLanes && along_p == 1) {
      for (int64_t d = 0; d < p.channels; ++d) {
        store(to + d * kTileCols, Element::load(cells + d * along_d));
      }
    } else if (along_p == 1) {
      for (int64_t d = 0; d < p.channels; ++d) {
        store(to + d * kTileCols, n > 0 ? load_tail<Element>(cells + d * along_d, n) : VecF{});
      }
    } else {
      pack_lanes<Element>(cells, along_p, along_d, n, p.channels, kTileCols, to);
    }
  }
}

// One tile of products into the heat maps of image b.
PW_INLINE void multiply(const FoldedHeatmapParams& p, const float* texts, const float* cells,
                        int64_t b, int64_t tile, int64_t first, int64_t count) {
  VecF acc[kTileRows][kTileVectors] = {};
  product_tile(texts, cells, p.channels, acc);
  const int64_t size = p.height * p.width;
  for (int i = 0; i < kTileRows && tile * kTileRows + i < p.texts; ++i) {
    float* row = p.heat + (b * p.texts + tile * kTileRows + i) * size + first;
    float values[kTileCols];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) store(values + v * kLanes, acc[i][v]);
    __builtin_memcpy(row, values, static_cast<size_t>(count) * sizeof(float));
  }
}

// Place of the largest value and the mask of one finished map.
void judge(const FoldedHeatmapParams& p, int64_t map) {
  const int64_t size = p.height * p.width;
  const float* heat = p.heat + map * size;
  float low = __builtin_inff(), high = -__builtin_inff();
  int64_t column = -1, row = -1;
  for (int64_t y = 0, i = 0; y < p.height; ++y) {
    for (int64_t x = 0; x < p.width; ++x, ++i) {
      const float value = heat[i];
      if (value < low) low = value;
      const bool tie = p.columns_first != 0 && value == high && x < column;
      if (value > high || tie || (row < 0 && value == high)) {
        high = value;
        column = x;
        row = y;
      }
    }
  }
  p.location[2 * map] = column;
  p.location[2 * map + 1] = row;
  if (p.mask == nullptr) return;
  const float limit = (p.from_minimum != 0 ? low : 0.0f) + p.threshold * (high - low);
  for (int64_t i = 0; i < size; ++i) p.mask[map * size + i] = heat[i] > limit ? 1 : 0;
}

template <typename Element>
void heat_of(const FoldedHeatmapParams& p, int threads) {
  const int used = heat_threads(p, threads);
  const uintptr_t start = (reinterpret_cast<uintptr_t>(p.workspace) + 63) / 64 * 64;
  float* texts = reinterpret_cast<float*>(start);
  float* cells = texts + packed_texts(p);
  const int64_t tiles = panel_count(p.texts, kTileRows);
  const int64_t tile_floats = p.channels * kTileRows;
  const int64_t sets = p.folded_stride == 0 ? 1 : p.batch;
  parallel_for(used, sets * tiles, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      pack_texts(p, p.folded + i / tiles * p.folded_stride, i % tiles, texts + i * tile_floats);
    }
  });
  const int64_t size = p.height * p.width;
  const int64_t blocks = panel_count(size, kTileCols);
  parallel_for(used, p.batch * blocks, [&](int64_t begin, int64_t end, int thread) {
    float* panel = cells + thread * packed_cells(p);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, first = i % blocks * kTileCols;
      const int64_t count = size - first < kTileCols ? size - first : kTileCols;
      pack_cells<Element>(p, b, first, count, panel);
      const float* mine = texts + (sets == 1 ? 0 : b * tiles * tile_floats);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        multiply(p, mine + tile * tile_floats, panel, b, tile, first, count);
      }
    }
  });
  parallel_for(used, p.batch * p.texts, [&](int64_t begin, int64_t end, int) {
    for (int64_t map = begin; map < end; ++map) judge(p, map);
  });
}

Status heat(const FoldedHeatmapParams& p, int threads) {
  switch (p.dtype) {
    case DType::kFloat32: heat_of<Float32>(p, threads); return ok_status();
    case DType::kFloat16: heat_of<Float16>(p, threads); return ok_status();
    case DType::kBFloat16: heat_of<BFloat16>(p, threads); return ok_status();
    default: return unsupported("maps must be float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace PW_LEVEL

extern const FoldedHeatmapTable PW_LEVEL_TABLE(kFoldedHeatmap);
const FoldedHeatmapTable PW_LEVEL_TABLE(kFoldedHeatmap) = {&PW_LEVEL::fold, &PW_LEVEL::heat};

}  // namespace patchword
