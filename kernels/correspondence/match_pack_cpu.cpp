// SPDX-License-Identifier: Apache-2.0
// The packing of match_pack.h, compiled once per element type for all sweeps.
#include "kernels/correspondence/match_pack.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// kLanes rows at depth d0 .. d0 + kLanes, transposed: out[j] holds element d0 + j of every row.
// Elements beyond `dim` and rows beyond `rows` are 0.
template <typename Element>
PW_INLINE void load_transposed(const typename Element::Storage* source, const int64_t* stride,
                               int rows, int64_t d0, int64_t dim, VecF (&out)[kLanes]) {
  const int n = dim - d0 < kLanes ? static_cast<int>(dim - d0) : kLanes;
  const typename Element::Storage* at = source + d0 * stride[2];
  if (stride[1] == 1 && stride[2] != 1) {
    // Columns of a [D, N] matrix: already in lanes.
    for (int j = 0; j < kLanes; ++j) {
      out[j] = j >= n
                   ? VecF{}
                   : (rows >= kLanes ? Element::load(at + j * stride[2])
                                     : load_tail<Element>(at + j * stride[2], rows < 0 ? 0 : rows));
    }
    return;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (i >= rows) {
      out[i] = VecF{};
    } else if (stride[2] == 1) {
      const typename Element::Storage* row = at + i * stride[1];
      out[i] = n == kLanes ? Element::load(row) : load_tail<Element>(row, n);
    } else {
      typename Element::Storage lanes[kLanes] = {};
      for (int j = 0; j < n; ++j) lanes[j] = at[i * stride[1] + j * stride[2]];
      out[i] = Element::load(lanes);
    }
  }
  transpose_lanes(out);
}

template <int Width>
inline void scale_panel(float* panel, int64_t dim, const float (&factors)[Width]) {
  // Width vectors hold kLanes depths, whatever Width is.
  alignas(64) float pattern[Width * kLanes];
  for (int i = 0; i < Width * kLanes; ++i) pattern[i] = factors[i % Width];
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    float* at = panel + d * Width;
    for (int w = 0; w < Width; ++w) {
      store(at + w * kLanes, load(at + w * kLanes) * load(pattern + w * kLanes));
    }
  }
  for (; d < dim; ++d) {
    for (int i = 0; i < Width; ++i) panel[d * Width + i] *= factors[i];
  }
}

// A row whose float32 norm is not to be trusted (overflow, underflow, NaN), normalised in double.
template <typename Element, int Width>
inline void normalise_in_double(const typename Element::Storage* row, int64_t column_stride,
                                int64_t dim, float scale, float* column) {
  double sum = 0.0;
  for (int64_t d = 0; d < dim; ++d) {
    const double x = load_scalar<Element>(row + d * column_stride);
    sum += x * x;
  }
  const double factor = sum == 0.0 ? 0.0 : static_cast<double>(scale) / __builtin_sqrt(sum);
  for (int64_t d = 0; d < dim; ++d) {
    column[d * Width] = static_cast<float>(
        factor * static_cast<double>(load_scalar<Element>(row + d * column_stride)));
  }
}

// Packs rows [row0, row0 + Width) into panel[depth][Width]. usable[i] (may be null) says whether
// row i takes part and holds no NaN.
template <typename Element, int Width>
inline void pack_descriptors(const PackPlan& plan, int64_t row0, float* panel, int32_t* usable) {
  typedef typename Element::Storage T;
  constexpr int kGroups = (Width + kLanes - 1) / kLanes;
  const MatchSide& side = *plan.side;
  const int64_t dim = plan.dim;
  const int rows = plan.count - row0 < Width ? static_cast<int>(plan.count - row0) : Width;
  const T* source =
      static_cast<const T*>(side.descriptors) + plan.pair * side.stride[0] + row0 * side.stride[1];
  // The same order as product_tile, so that |a|^2 equals <a, a> to the last bit.
  VecF sums[kGroups] = {}, totals[kGroups] = {};
  for (int64_t d0 = 0; d0 < dim; d0 += kLanes) {
    if (d0 != 0 && d0 % kDepthRestart == 0) {
      for (int g = 0; g < kGroups; ++g) {
        totals[g] = totals[g] + sums[g];
        sums[g] = VecF{};
      }
    }
    const int n = dim - d0 < kLanes ? static_cast<int>(dim - d0) : kLanes;
    for (int g = 0; g < kGroups; ++g) {
      VecF lanes[kLanes];
      load_transposed<Element>(source + g * kLanes * side.stride[1], side.stride, rows - g * kLanes,
                               d0, dim, lanes);
      float* at = panel + d0 * Width + g * kLanes;
      // Elements beyond `dim` are 0. Fully unrolled, or the compiler would round the squares first.
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) sums[g] = fma(lanes[j], lanes[j], sums[g]);
      for (int j = 0; j < n; ++j) {
        if constexpr (Width % kLanes == 0) {
          store(at + j * Width, lanes[j]);
        } else {
          float temporary[kLanes];
          store(temporary, lanes[j]);
          constexpr int kLast = Width % kLanes;
          const size_t bytes = (g + 1 < kGroups ? kLanes : kLast) * sizeof(float);
          __builtin_memcpy(at + j * Width, temporary, bytes);
        }
      }
    }
  }
  float squares[kGroups * kLanes];
  for (int g = 0; g < kGroups; ++g) store(squares + g * kLanes, totals[g] + sums[g]);

  bool odd[Width];
  bool scaled = plan.scale != 1.0f;
  float factors[Width];
  for (int i = 0; i < Width; ++i) {
    factors[i] = plan.scale;
    odd[i] = false;
    if (plan.metric == MatchMetric::kCosine) {
      scaled = true;
      odd[i] = i < rows && !(squares[i] > 1e-30f && squares[i] < 1e30f);
      factors[i] = plan.scale / __builtin_sqrtf(squares[i]);
    }
  }
  if (scaled) scale_panel<Width>(panel, dim, factors);
  if (plan.depth > dim && !plan.terms) {
    for (int i = 0; i < Width; ++i) panel[i] = 0.0f;
  }
  for (int i = 0; i < Width; ++i) {
    const bool part = plan.takes_part(row0 + i);
    if (usable != nullptr) usable[i] = part && squares[i] == squares[i] ? -1 : 0;
    if (!part) {
      const float fill = plan.excluded == Excluded::kNaN ? __builtin_nanf("") : 0.0f;
      for (int64_t d = 0; d < plan.depth; ++d) panel[d * Width + i] = fill;
      continue;
    }
    if (odd[i]) {
      normalise_in_double<Element, Width>(source + i * side.stride[1], side.stride[2], dim,
                                          plan.scale, panel + i);
    }
    if (plan.terms) {
      float term = side.bias == nullptr ? 0.0f : side.bias[plan.pair * side.count + row0 + i];
      if (plan.metric == MatchMetric::kL2) term -= squares[i];
      float* at = panel + dim * Width + i;
      at[0] = plan.first_side ? term : 1.0f;
      at[Width] = plan.first_side ? 1.0f : term;
    }
  }
}

// Rows [row0, row0 + count) divided by their norm, row-major, zeros up to `padded` elements.
template <typename Element>
void unit_rows(const PackPlan& plan, int64_t row0, int64_t count, int64_t padded, float* rows,
               int32_t* usable) {
  typedef typename Element::Storage T;
  const MatchSide& side = *plan.side;
  const int64_t dim = plan.dim, step = side.stride[2];
  for (int64_t i = 0; i < count; ++i) {
    float* out = rows + i * padded;
    usable[i] = plan.takes_part(row0 + i) ? -1 : 0;
    if (!usable[i]) {
      for (int64_t d = 0; d < padded; d += kLanes) store(out + d, VecF{});
      continue;
    }
    const T* row = static_cast<const T*>(side.descriptors) + plan.pair * side.stride[0] +
                   (row0 + i) * side.stride[1];
    VecF squares{};
    for (int64_t d = 0; d < padded; d += kLanes) {
      const int n = dim - d < kLanes ? static_cast<int>(dim - d) : kLanes;
      VecF values{};
      if (n == kLanes && step == 1) {
        values = Element::load(row + d);
      } else if (n > 0) {
        T lanes[kLanes] = {};
        for (int l = 0; l < n; ++l) lanes[l] = row[(d + l) * step];
        values = Element::load(lanes);
      }
      store(out + d, values);
      squares = fma(values, values, squares);
    }
    const float sum = reduce_add(squares);
    if (sum > 1e-30f && sum < 1e30f) {
      const VecF factor = splat(1.0f / __builtin_sqrtf(sum));
      for (int64_t d = 0; d < padded; d += kLanes) store(out + d, load(out + d) * factor);
      continue;
    }
    normalise_in_double<Element, 1>(row, step, dim, 1.0f, out);
    for (int64_t d = 0; d < dim; ++d) usable[i] = out[d] == out[d] ? usable[i] : 0;
    if (!usable[i]) {
      for (int64_t d = 0; d < padded; d += kLanes) store(out + d, VecF{});
    }
  }
}

template <typename Element>
constexpr PackFunctions functions_of() {
  return {&pack_descriptors<Element, kTileRows>, &pack_descriptors<Element, kTileCols>,
          &unit_rows<Element>};
}

}  // namespace

PackFunctions match_pack_functions(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return functions_of<Float32>();
    case DType::kFloat16: return functions_of<Float16>();
    case DType::kBFloat16: return functions_of<BFloat16>();
    default: return {nullptr, nullptr, nullptr};
  }
}

}  // namespace PW_LEVEL
}  // namespace patchword
