// SPDX-License-Identifier: Apache-2.0
// The products of a warp over 16 x 16 tiles read straight from global memory: what the forms for
// tiny sets share.
//
// A sum over columns has no order, so each lane reads 16 bytes of a row and the columns of the
// tensor-core fragments are named after that: lane quad of step s holds columns 16 bytes x quad on.
#pragma once

#include "kernels/attention/attention_tiles.cuh"

namespace patchword {
namespace {

constexpr int kWarps = kThreads / 32;

// The share of the grid that belongs to one warp.
PW_DEVICE std::int64_t unit_of_warp() {
  return static_cast<std::int64_t>(blockIdx.x) * kWarps + simt::warp_id();
}

// Columns that a lane reads at once, and columns of a pass over gathered rows.
template <class T>
constexpr int kSlice = 16 / static_cast<int>(sizeof(T));
template <class T>
constexpr int kPass = 8 * kSlice<T>;

// 16 bytes of a row.
using Slice = simt::Pack<std::uint32_t, 4>;

template <class T>
PW_DEVICE float element(const Slice& slice, int i) {
  if constexpr (sizeof(T) == 4) {
    return bit_cast<float>(slice[i]);
  } else {
    return to_float(T{static_cast<std::uint16_t>(slice[i / 2] >> (16 * (i % 2)))});
  }
}

template <class T>
PW_DEVICE Slice make_slice(const float (&values)[kSlice<T>]) {
  Slice slice;
  PW_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      slice[i] = bit_cast<std::uint32_t>(values[i]);
    } else {
      slice[i] = pack_pair<T>(values[2 * i], values[2 * i + 1]);
    }
  }
  return slice;
}

// Rows of one head in global memory; those that take no part count as zeros and are not read.
template <class T>
struct Rows {
  const T* base;
  std::int64_t stride;
  Keys there;
  int dim;
  bool aligned;

  PW_DEVICE Slice slice(std::int64_t row, int column) const {
    Slice result{{0, 0, 0, 0}};
    if (column >= dim || !there.visible(row)) return result;
    const T* from = base + row * stride + column;
    if (aligned) return simt::load_pack<4>(reinterpret_cast<const std::uint32_t*>(from));
    float values[kSlice<T>];
    PW_UNROLL
    for (int i = 0; i < kSlice<T>; ++i) values[i] = column + i < dim ? to_float(from[i]) : 0.0f;
    return make_slice<T>(values);
  }
};

template <class T>
PW_DEVICE void multiply(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 2) {
    simt::mma_m16n8k16<T>(c, a, b, c);
  } else {
    const Tf32Pair rows[4] = {split(bit_cast<float>(a[0])), split(bit_cast<float>(a[1])),
                              split(bit_cast<float>(a[2])), split(bit_cast<float>(a[3]))};
    const Tf32Pair columns[2] = {split(bit_cast<float>(b[0])), split(bit_cast<float>(b[1]))};
    Products<float, 32>::multiply(c, rows, columns);
  }
}

// c = a b^T for 16 rows of `a` from a0 on and 16 rows of `b` from b0 on, in the layout of mma's C.
template <class T>
PW_DEVICE void score_tile(float (&c)[2][4], const Rows<T>& a, std::int64_t a0, const Rows<T>& b,
                          std::int64_t b0) {
  const int group = static_cast<int>(simt::lane_id()) / 4;
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  clear(c);
  for (int start = 0; start < a.dim; start += 4 * kSlice<T>) {
    const int column = start + quad * kSlice<T>;
    const Slice low = a.slice(a0 + group, column), high = a.slice(a0 + group + 8, column);
    PW_UNROLL
    for (int n = 0; n < 2; ++n) {
      const Slice other = b.slice(b0 + 8 * n + group, column);
      float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      PW_UNROLL
      for (int step = 0; step < 4; step += 2) {
        const std::uint32_t rows[4] = {low[step], high[step], low[step + 1], high[step + 1]};
        const std::uint32_t columns[2] = {other[step], other[step + 1]};
        multiply<T>(part, rows, columns);
      }
      PW_UNROLL
      for (int i = 0; i < 4; ++i) c[n][i] += part[i];
    }
  }
}

// acc += p b for 16 rows of `b` from b0 on and the columns of a pass: acc[n][i] is row group +
// 8 (i / 2), column first + kSlice (2 quad + i % 2) + n.
template <class T>
PW_DEVICE void gather_tile(float (&acc)[kSlice<T>][4], const float (&p)[2][4], const Rows<T>& b,
                           std::int64_t b0, int first) {
  const int group = static_cast<int>(simt::lane_id()) / 4;
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  Slice slices[2][2];
  PW_UNROLL
  for (int m = 0; m < 2; ++m) {
    PW_UNROLL
    for (int j = 0; j < 2; ++j) {
      slices[m][j] = b.slice(b0 + 8 * m + 2 * quad + j, first + group * kSlice<T>);
    }
  }
  if constexpr (sizeof(T) == 2) {
    const std::uint32_t rows[4] = {pack_pair<T>(p[0][0], p[0][1]), pack_pair<T>(p[0][2], p[0][3]),
                                   pack_pair<T>(p[1][0], p[1][1]), pack_pair<T>(p[1][2], p[1][3])};
    PW_UNROLL
    for (int n = 0; n < kSlice<T>; ++n) {
      std::uint32_t columns[2];
      PW_UNROLL
      for (int m = 0; m < 2; ++m) {
        const std::uint32_t even = slices[m][0][n / 2], odd = slices[m][1][n / 2];
        columns[m] = n % 2 == 0 ? (even & 0xffffu) | odd << 16 : even >> 16 | (odd & 0xffff0000u);
      }
      multiply<T>(acc[n], rows, columns);
    }
  } else {
    PW_UNROLL
    for (int n = 0; n < kSlice<T>; ++n) {
      float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      PW_UNROLL
      for (int m = 0; m < 2; ++m) {
        // The renaming of keys of Products<float>::accumulate.
        const std::uint32_t rows[4] = {
            bit_cast<std::uint32_t>(p[m][0]), bit_cast<std::uint32_t>(p[m][2]),
            bit_cast<std::uint32_t>(p[m][1]), bit_cast<std::uint32_t>(p[m][3])};
        const std::uint32_t columns[2] = {slices[m][0][n], slices[m][1][n]};
        multiply<T>(part, rows, columns);
      }
      PW_UNROLL
      for (int i = 0; i < 4; ++i) acc[n][i] += part[i];
    }
  }
}

// Writes what gather_tile summed to rows row0 ... below `count`.
template <class T>
PW_DEVICE void store_pass(T* to, std::int64_t stride, std::int64_t row0, std::int64_t count,
                          int dim, bool aligned, const float (&acc)[kSlice<T>][4], int first,
                          const float (&factor)[2]) {
  const int group = static_cast<int>(simt::lane_id()) / 4;
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  PW_UNROLL
  for (int i = 0; i < 4; ++i) {
    const std::int64_t row = row0 + group + 8 * (i / 2);
    const int column = first + kSlice<T> * (2 * quad + i % 2);
    if (row >= count || column >= dim) continue;
    float values[kSlice<T>];
    PW_UNROLL
    for (int n = 0; n < kSlice<T>; ++n) values[n] = acc[n][i] * factor[i / 2];
    T* out = to + row * stride + column;
    if (aligned) {
      simt::store_pack(reinterpret_cast<std::uint32_t*>(out), make_slice<T>(values));
    } else {
      PW_UNROLL
      for (int n = 0; n < kSlice<T>; ++n) {
        if (column + n < dim) out[n] = from_float<T>(values[n]);
      }
    }
  }
}

}  // namespace
}  // namespace patchword
