// SPDX-License-Identifier: Apache-2.0
// Queries as broadcast rows, patches in lanes: packing of both sides and their product tile. For
// level units only.
#pragma once

#include "kernels/common/dot_product.h"
#include "kernels/common/gemm_tile.h"
#include "kernels/common/transpose.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// A patch panel's slice of this depth takes 16 KB and stays in L1 while all queries pass by it.
constexpr int64_t kDepthBlock = 4096 / kTileCols;

// bfloat16 products in pairs along the depth: one 32-bit word holds two elements. The emulated
// level takes the same path so that its logic is tested without the instruction.
#if defined(PW_LEVEL_AVX512_BF16) || defined(PW_LEVEL_AVX512_EMULATED)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// Queries are split into panels of nearly equal height, none above kTileRows, so that the last one
// is not mostly padding. Panel p holds rows [start(p), start(p + 1)) as [depth][height].
struct Panels {
  int64_t count, height, taller;

  explicit PW_INLINE Panels(int64_t rows)
      : count(panel_count(rows, kTileRows)),
        height(count > 0 ? rows / count : 0),
        taller(count > 0 ? rows % count : 0) {}
  PW_INLINE int64_t start(int64_t p) const { return p * height + (p < taller ? p : taller); }
  PW_INLINE int rows(int64_t p) const { return static_cast<int>(height + (p < taller ? 1 : 0)); }
};

// The words of a bfloat16 row: pairs of elements as they lie in memory.
struct PairWords {
  typedef uint16_t Storage;
  static PW_INLINE VecF load(const uint16_t* p) {
    VecF v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
};

// z[i][lane] (+)= the product of `Rows` packed queries with Vectors * kLanes packed patches.
template <typename Product, int Rows, int Vectors>
void tile(const float* __restrict__ a, const float* __restrict__ b, int64_t b_step, int64_t depth,
          bool first, float* __restrict__ z) {
  VecF sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      sums[i][v] = first ? VecF{} : load(z + (i * kTileVectors + v) * kLanes);
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    VecF columns[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const VecF row = Product::broadcast(a + i);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sums[i][v] = Product::step(row, columns[v], sums[i][v]);
    }
    a += Rows;
    b += b_step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) store(z + (i * kTileVectors + v) * kLanes, sums[i][v]);
  }
}

template <typename Product, int Vectors>
PW_INLINE void tile_of(int rows, const float* a, const float* b, int64_t depth, bool first,
                       float* z) {
  switch (rows) {
    // clang-format off
#define PW_TILE_CASE(r) \
  case r: return tile<Product, r, Vectors>(a, b, kTileCols, depth, first, z);
    PW_TILE_CASE(1) PW_TILE_CASE(2) PW_TILE_CASE(3) PW_TILE_CASE(4) PW_TILE_CASE(5) PW_TILE_CASE(6)
#if PW_VECTOR_BYTES == 64
    PW_TILE_CASE(7) PW_TILE_CASE(8) PW_TILE_CASE(9) PW_TILE_CASE(10) PW_TILE_CASE(11)
    PW_TILE_CASE(12)
#endif
#undef PW_TILE_CASE
    // clang-format on
  }
}

// Adds the products of depth [d0, d0 + slice) to z[queries][kTileCols]; the first slice overwrites.
// Lanes of vectors without a patch are not written.
template <typename Product>
void multiply(const float* packed, const float* panel, int64_t queries, int64_t depth, int64_t d0,
              int64_t slice, int vectors, float* z) {
  const Panels panels(queries);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int rows = panels.rows(p);
    const float* a = packed + panels.start(p) * depth + d0 * rows;
    const float* b = panel + d0 * kTileCols;
    float* target = z + panels.start(p) * kTileCols;
    if (vectors == kTileVectors) {
      tile_of<Product, kTileVectors>(rows, a, b, slice, d0 == 0, target);
    } else {
      tile_of<Product, 1>(rows, a, b, slice, d0 == 0, target);
    }
  }
}

// What a sum of squares says about a vector's norm is not trusted outside these bounds: squares
// may have overflowed or vanished.
constexpr float kSmallSquares = 0x1p-80f;
constexpr float kLargeSquares = 0x1p80f;

PW_INLINE bool trusted(float squares) { return squares > kSmallSquares && squares < kLargeSquares; }

// Power of two that brings a finite peak near 1; 1 when there is nothing to bring.
PW_INLINE float rescue_scale(float peak) {
  if (!(peak > 0.0f && peak < __builtin_inff())) return 1.0f;
  int exponent = __builtin_ilogbf(peak);
  exponent = exponent < -126 ? -126 : (exponent > 126 ? 126 : exponent);
  return __builtin_ldexpf(1.0f, -exponent);
}

// 1 / max(|v|, eps) for a vector that was multiplied with `scale` and then had these squares.
PW_INLINE float inverse_norm(float squares, float scale, float eps) {
  if (squares == 0.0f) return 0.0f;
  const float norm = __builtin_sqrtf(squares);
  const double floor = static_cast<double>(eps) * static_cast<double>(scale);
  // Written so that a NaN stays a NaN.
  return norm < floor ? static_cast<float>(1.0 / floor) : 1.0f / norm;
}

// Both halves of a word times a power of two.
PW_INLINE float scale_word(float word, float scale) {
  const VecF pairs = bit_cast<VecF>(splat_int(bit_cast<int32_t>(word)));
  const uint32_t low = bit_cast<uint32_t>(low_halves(pairs)[0] * scale);
  const uint32_t high = bit_cast<uint32_t>(high_halves(pairs)[0] * scale);
  return bit_cast<float>((high & 0xffff0000u) | (low >> 16));
}

// Norm factor of one lane whose squares are not trusted: scales the lane in place and says so.
template <bool Pairs>
float rescue_lane(float* lane, int64_t depth, float squares, float eps, bool* rescued) {
  float peak = 0.0f;
  for (int64_t d = 0; d < depth; ++d) {
    const VecF word = bit_cast<VecF>(splat_int(bit_cast<int32_t>(lane[d * kTileCols])));
    const float low = __builtin_fabsf(Pairs ? low_halves(word)[0] : word[0]);
    const float high = Pairs ? __builtin_fabsf(high_halves(word)[0]) : 0.0f;
    peak = low > peak ? low : peak;
    peak = high > peak ? high : peak;
  }
  const float scale = rescue_scale(peak);
  if (scale == 1.0f) return inverse_norm(squares, 1.0f, eps);
  *rescued = true;
  squares = 0.0f;
  for (int64_t d = 0; d < depth; ++d) {
    float& word = lane[d * kTileCols];
    word = Pairs ? scale_word(word, scale) : word * scale;
    const VecF value = bit_cast<VecF>(splat_int(bit_cast<int32_t>(word)));
    const float low = Pairs ? low_halves(value)[0] : word;
    const float high = Pairs ? high_halves(value)[0] : 0.0f;
    squares += low * low + high * high;
  }
  return inverse_norm(squares, scale, eps);
}

// 1 / max(|x|, eps) per lane of a packed panel.
template <bool Pairs>
PW_INLINE VecF lane_factors(VecF squares, float* panel, int64_t depth, int count, float eps,
                            bool* rescued) {
  float lanes[kLanes];
  store(lanes, squares);
  for (int i = 0; i < kLanes; ++i) {
    if (i >= count) {
      lanes[i] = 0.0f;
    } else if (__builtin_expect(trusted(lanes[i]), 1)) {
      lanes[i] = inverse_norm(lanes[i], 1.0f, eps);
    } else {
      lanes[i] = rescue_lane<Pairs>(panel + i, depth, lanes[i], eps, rescued);
    }
  }
  return load(lanes);
}

// Packs up to kLanes bfloat16 rows as words. Returns the sums of squares per lane.
PW_INLINE VecF pack_pair_lanes(const uint16_t* rows, int64_t row_stride, int count, int64_t dim,
                               float* panel) {
  VecF squares{};
  VecF block[kLanes];
  const int64_t words = (dim + 1) / 2;
  for (int64_t w0 = 0; w0 < words; w0 += kLanes) {
    const int n = words - w0 < kLanes ? static_cast<int>(words - w0) : kLanes;
    const int64_t rest = dim - 2 * w0;
    for (int i = 0; i < kLanes; ++i) {
      const uint16_t* source = rows + i * row_stride + 2 * w0;
      if (i >= count) {
        block[i] = VecF{};
      } else if (rest >= 2 * kLanes) {
        block[i] = PairWords::load(source);
      } else {
        uint16_t lanes[2 * kLanes] = {};
        for (int64_t j = 0; j < rest; ++j) lanes[j] = source[j];
        block[i] = PairWords::load(lanes);
      }
    }
    transpose(block);
    for (int j = 0; j < n; ++j) {
      store(panel + (w0 + j) * kTileCols, block[j]);
      squares = PairProduct::step(block[j], block[j], squares);
    }
  }
  return squares;
}

// Writes one query into its place in a panel of `height` rows; returns its factor.
template <typename Element>
float pack_query(const typename Element::Storage* query, int64_t stride, int64_t dim, int height,
                 bool cosine, float eps, bool pairs, float* panel) {
  float scale = 1.0f, factor = 1.0f;
  if (cosine) {
    float squares = 1.0f;
    for (int attempt = 0; attempt < 2; ++attempt) {
      VecF sums{}, peaks{};
      for (int64_t d = 0; d < dim; d += kLanes) {
        const int n = dim - d < kLanes ? static_cast<int>(dim - d) : kLanes;
        const VecF values = load_row<Element>(query, stride, d, n);
        const VecF scaled = values * splat(scale);
        sums = fma(scaled, scaled, sums);
        peaks = max(abs(values), peaks);
      }
      squares = reduce_add(sums);
      if (trusted(squares)) break;
      if (attempt == 0) scale = rescue_scale(reduce_max(peaks));
    }
    factor = inverse_norm(squares, scale, eps);
  }
  for (int64_t d = 0; d < dim; d += kLanes) {
    const int n = dim - d < kLanes ? static_cast<int>(dim - d) : kLanes;
    const VecF scaled = load_row<Element>(query, stride, d, n) * splat(scale);
    float lanes[kLanes];
    store(lanes, scaled);
    if (!pairs) {
      for (int j = 0; j < n; ++j) panel[(d + j) * height] = lanes[j];
      continue;
    }
    for (int j = 0; j < n; j += 2) {
      const uint32_t low = bit_cast<uint32_t>(lanes[j]) >> 16;
      const uint32_t high = j + 1 < n ? bit_cast<uint32_t>(lanes[j + 1]) & 0xffff0000u : 0u;
      panel[(d + j) / 2 * height] = bit_cast<float>(low | high);
    }
  }
  return factor;
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
