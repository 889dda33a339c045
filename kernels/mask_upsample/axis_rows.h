// SPDX-License-Identifier: Apache-2.0
// Padded low-resolution rows and their horizontal expansion to output pixels. For level units only.
#pragma once

#include "kernels/common/simd.h"
#include "kernels/mask_upsample/interpolation_taps.h"
#include "kernels/mask_upsample/mask_upsample_plan.h"

namespace patchword {
namespace PW_LEVEL {

PW_INLINE VecF permute(VecF v, VecI lane) {
#if defined(__AVX512F__)
  return bit_cast<VecF>(_mm512_permutexvar_ps(bit_cast<__m512i>(lane), bit_cast<__m512>(v)));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  return bit_cast<VecF>(_mm256_permutevar8x32_ps(bit_cast<__m256>(v), bit_cast<__m256i>(lane)));
#else
  float source[kLanes], target[kLanes];
  int32_t from[kLanes];
  store(source, v);
  store(from, lane);
  for (int i = 0; i < kLanes; ++i) target[i] = source[from[i]];
  return load(target);
#endif
}

// One bit per lane of a comparison's result.
PW_INLINE uint32_t mask_bits(VecI mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bit_cast<__m512i>(mask));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  return static_cast<uint32_t>(_mm256_movemask_ps(bit_cast<__m256>(mask)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (mask[i] & 1u) << i;
  return bits;
#endif
}

// Repeats the border cells of a row of `width` cells that starts at row[kPadLeft].
PW_INLINE void pad_row(float* row, int64_t width, int64_t pitch) {
  for (int i = 0; i < kPadLeft; ++i) row[i] = row[kPadLeft];
  const float last = row[kPadLeft + width - 1];
  for (int64_t i = kPadLeft + width; i < pitch; ++i) row[i] = last;
}

// Reads `count` rows (classes) of `width` cells into padded float rows; whether all are moderate.
template <typename Element>
inline bool unpack_rows(const typename Element::Storage* source, int64_t row_stride,
                        int64_t cell_stride, int64_t count, int64_t width, float* target,
                        int64_t pitch) {
  VecI extreme{};
  if (row_stride == 1 && cell_stride != 1) {  // channels-last: vectors of classes, transposed
    for (int64_t x = 0; x < width; ++x) {
      const typename Element::Storage* cell = source + x * cell_stride;
      float* column = target + kPadLeft + x;
      int64_t c = 0;
      for (; c + kLanes <= count; c += kLanes) {
        const VecF v = Element::load(cell + c);
        extreme |= ~(abs(v) <= splat(kModerate));
        float lanes[kLanes];
        store(lanes, v);
        for (int i = 0; i < kLanes; ++i) column[(c + i) * pitch] = lanes[i];
      }
      for (; c < count; ++c) {
        const float v = load_scalar<Element>(cell + c);
        extreme |= ~(abs(splat(v)) <= splat(kModerate));
        column[c * pitch] = v;
      }
    }
    for (int64_t c = 0; c < count; ++c) pad_row(target + c * pitch, width, pitch);
    return !any(extreme);
  }
  for (int64_t c = 0; c < count; ++c) {
    const typename Element::Storage* cells = source + c * row_stride;
    float* row = target + c * pitch;
    int64_t x = 0;
    if (cell_stride == 1) {
      for (; x + kLanes <= width; x += kLanes) {
        const VecF v = Element::load(cells + x);
        extreme |= ~(abs(v) <= splat(kModerate));
        store(row + kPadLeft + x, v);
      }
    }
    for (; x < width; ++x) {
      const float v = load_scalar<Element>(cells + x * cell_stride);
      extreme |= ~(abs(splat(v)) <= splat(kModerate));
      row[kPadLeft + x] = v;
    }
    pad_row(row, width, pitch);
  }
  return !any(extreme);
}

inline bool unpack_rows(DType dtype, const void* source, int64_t offset, int64_t row_stride,
                        int64_t cell_stride, int64_t count, int64_t width, float* target,
                        int64_t pitch) {
  switch (dtype) {
    case DType::kFloat16:
      return unpack_rows<Float16>(static_cast<const uint16_t*>(source) + offset, row_stride,
                                  cell_stride, count, width, target, pitch);
    case DType::kBFloat16:
      return unpack_rows<BFloat16>(static_cast<const uint16_t*>(source) + offset, row_stride,
                                   cell_stride, count, width, target, pitch);
    default:
      return unpack_rows<Float32>(static_cast<const float*>(source) + offset, row_stride,
                                  cell_stride, count, width, target, pitch);
  }
}

// kLanes neighbouring pixels: where they read and with which weights. Upsampling keeps the taps of
// a vector within kLanes + Taps - 1 cells, so that one load and one permutation per tap fetch
// them; downsampling gathers lane by lane.
template <int Taps, bool Gathers>
struct PixelVector {
  const int32_t* first;
  VecI lane;
  VecF weight[Taps];

  PW_INLINE PixelVector(const AxisTable& x, int64_t at) : first(x.first + at) {
    lane = load(first) - splat_int(first[0]);
    for (int t = 0; t < Taps; ++t) weight[t] = load(x.weights(t) + at);
  }

  PW_INLINE VecF fetch(const float* row, int tap) const {
    const float* cells = row + kPadLeft + tap;
    if constexpr (!Gathers) return permute(load(cells + first[0]), lane);
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = cells[first[i]];
    return load(lanes);
  }

  template <bool Moderate>
  PW_INLINE VecF expand(const float* row) const {
    if constexpr (Taps == 1) return fetch(row, 0);
    if constexpr (Taps == 2) {
      const VecF a = fetch(row, 0), b = fetch(row, 1);
      if constexpr (Moderate) return fma(weight[1], b - a, a);
      return fma(weight[1], b, weight[0] * a);
    }
    if constexpr (Taps == 4) {
      VecF sum = weight[0] * fetch(row, 0);
      for (int t = 1; t < Taps; ++t) sum = fma(weight[t], fetch(row, t), sum);
      return sum;
    }
  }
};

// Calls body.template operator()<Taps, Gathers, Moderate>() for the axis.
template <typename Body>
PW_INLINE void with_axis_form(const AxisTable& x, bool moderate, Body&& body) {
  if (x.taps == 1) {
    body.template operator()<1, false, true>();
  } else if (x.taps == 4) {
    if (x.gathers)
      body.template operator()<4, true, true>();
    else
      body.template operator()<4, false, true>();
  } else if (moderate) {
    if (x.gathers)
      body.template operator()<2, true, true>();
    else
      body.template operator()<2, false, true>();
  } else {
    if (x.gathers)
      body.template operator()<2, true, false>();
    else
      body.template operator()<2, false, false>();
  }
}

// How the rows of a cell are mixed vertically.
enum class Mix {
  kLerp,  // two parts: upper row, and lower row minus upper row
  kSum2,  // two rows, two weights
  kSum4,  // four rows, four weights
};
template <Mix M>
constexpr int kMixParts = M == Mix::kSum4 ? 4 : 2;

PW_INLINE Mix choose_mix(const AxisTable& y, bool moderate) {
  if (y.taps == 4) return Mix::kSum4;
  return y.taps == 2 && !moderate ? Mix::kSum2 : Mix::kLerp;
}

// Vertical weights of one output row. A copied axis has the difference 0 and the weight 0.
template <Mix M>
struct RowWeights {
  VecF weight[M == Mix::kLerp ? 1 : kMixParts<M>];

  PW_INLINE void set(const AxisTable& y, int64_t row) {
    if constexpr (M == Mix::kLerp) {
      weight[0] = splat(y.taps == 1 ? 0.0f : y.weights(1)[row]);
    } else {
      for (int t = 0; t < kMixParts<M>; ++t) weight[t] = splat(y.weights(t)[row]);
    }
  }

  PW_INLINE VecF mix(const VecF (&part)[kMixParts<M>]) const {
    if constexpr (M == Mix::kLerp)
      return fma(weight[0], part[1], part[0]);
    else {
      VecF sum = weight[0] * part[0];
      for (int t = 1; t < kMixParts<M>; ++t) sum = fma(weight[t], part[t], sum);
      return sum;
    }
  }
};

// Writes n floats as elements of `dtype`.
template <typename Element>
PW_INLINE void store_span(typename Element::Storage* out, const float* values, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Element::store(out + i, load(values + i));
  if (i < n) {
    store_tail<Element>(out + i, load_first(values + i, static_cast<int>(n - i), 0.0f),
                        static_cast<int>(n - i));
  }
}

inline void store_span(DType dtype, void* out, int64_t offset, const float* values, int64_t n) {
  switch (dtype) {
    case DType::kFloat16:
      return store_span<Float16>(static_cast<uint16_t*>(out) + offset, values, n);
    case DType::kBFloat16:
      return store_span<BFloat16>(static_cast<uint16_t*>(out) + offset, values, n);
    default: return store_span<Float32>(static_cast<float*>(out) + offset, values, n);
  }
}

}  // namespace PW_LEVEL
}  // namespace patchword
