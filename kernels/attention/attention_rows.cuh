// SPDX-License-Identifier: Apache-2.0
// Which rows of which set a block or a warp works on, for every attention kernel.
#pragma once

#include <cmath>

#include "kernels/attention/attention_plan.h"
#include "kernels/common/simt.cuh"

namespace patchword {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Rows of one batch element and the first one of a block's tile; batch -1: nothing to do.
struct Span {
  std::int64_t batch, first, count, start;
};

// The tile with number `unit` of sets of `rows` rows, or of ragged sets. All lanes take part.
template <int Rows = kRows>
PW_DEVICE Span find_span(const std::int64_t* offsets, std::int64_t batch, std::int64_t rows,
                         std::int64_t unit) {
  if (offsets == nullptr) {
    const std::int64_t tiles = simt::ceil_div(rows, std::int64_t{Rows});
    return Span{unit / tiles, 0, rows, unit % tiles * Rows};
  }
  const unsigned lane = simt::lane_id();
  std::int64_t before = 0;
  for (std::int64_t base = 0; base < batch; base += simt::kWarpSize) {
    const std::int64_t mine = base + lane;
    std::int64_t upto =
        mine < batch ? simt::ceil_div(offsets[mine + 1] - offsets[mine], std::int64_t{Rows}) : 0;
    for (unsigned step = 1; step < 32; step *= 2) {
      const std::int64_t lower = simt::shuffle_up(upto, step);
      if (lane >= step) upto += lower;
    }
    const unsigned reached = simt::ballot(before + upto > unit);
    if (reached != 0) {
      unsigned owner = 0;
      while ((reached >> owner & 1u) == 0) ++owner;
      const std::int64_t previous = owner == 0 ? 0 : simt::shuffle(upto, owner - 1);
      const std::int64_t element = base + owner;
      return Span{element, offsets[element], offsets[element + 1] - offsets[element],
                  (unit - before - previous) * Rows};
    }
    before += simt::shuffle(upto, 31);
  }
  return Span{-1, 0, 0, 0};
}

// More units than this never exist: without the offsets the host cannot count them exactly.
template <int Rows = kRows>
std::int64_t count_units(const std::int64_t* offsets, std::int64_t batch, std::int64_t rows) {
  return offsets == nullptr ? batch * simt::ceil_div(rows, std::int64_t{Rows})
                            : rows / Rows + batch;
}

// Where a block, or whoever owns a unit, works.
struct Place {
  int stream;
  std::int64_t head, unit;
};

PW_DEVICE Place find_place(std::int64_t units0, std::int64_t units1, std::int64_t heads,
                           std::int64_t index) {
  const int stream = index >= units0 * heads ? 1 : 0;
  if (stream == 1) index -= units0 * heads;
  const std::int64_t units = stream == 0 ? units0 : units1;
  return Place{stream, index / units, index % units};
}
PW_DEVICE Place find_place(std::int64_t units0, std::int64_t units1, std::int64_t heads) {
  return find_place(units0, units1, heads, blockIdx.x);
}

// Rows of a set that belong to batch element b.
PW_DEVICE Span rows_of(const std::int64_t* offsets, std::int64_t rows, std::int64_t b) {
  if (offsets == nullptr) return Span{b, 0, rows, 0};
  return Span{b, offsets[b], offsets[b + 1] - offsets[b], 0};
}

// The keys that take part.
struct Keys {
  std::int64_t limit;
  const std::uint8_t* mask;  // of the batch element's first key, or null
  PW_DEVICE bool visible(std::int64_t key) const {
    return key < limit && (mask == nullptr || mask[key] != 0);
  }
};

PW_DEVICE Keys keys_of(const AttentionStream& s, const Span& span) {
  std::int64_t limit = span.count;
  if (s.key_lengths != nullptr) {
    limit = simt::max(std::int64_t{0}, simt::min(limit, s.key_lengths[span.batch]));
  }
  const std::uint8_t* mask =
      s.key_mask == nullptr ? nullptr : s.key_mask + span.batch * s.mask_stride + span.first;
  return Keys{limit, mask};
}

template <class T>
PW_DEVICE T* row_pointer(void* base, const std::int64_t (&stride)[3], std::int64_t batch,
                         std::int64_t head, std::int64_t row) {
  return static_cast<T*>(base) + batch * stride[0] + head * stride[1] + row * stride[2];
}
template <class T>
PW_DEVICE const T* row_pointer(const void* base, const std::int64_t (&stride)[3],
                               std::int64_t batch, std::int64_t head, std::int64_t row) {
  return static_cast<const T*>(base) + batch * stride[0] + head * stride[1] + row * stride[2];
}

// Whether 16-byte copies of whole rows are allowed.
template <class T>
bool rows_aligned(const void* base, const std::int64_t (&stride)[3], std::int64_t dim) {
  constexpr std::int64_t kPer = 16 / static_cast<std::int64_t>(sizeof(T));
  return reinterpret_cast<std::uintptr_t>(base) % 16 == 0 && dim % kPer == 0 &&
         stride[0] % kPer == 0 && stride[1] % kPer == 0 && stride[2] % kPer == 0;
}

template <class T>
bool stream_aligned(const AttentionStream& s, std::int64_t dim) {
  return rows_aligned<T>(s.q, s.q_stride, dim) && rows_aligned<T>(s.k, s.k_stride, dim) &&
         rows_aligned<T>(s.v, s.v_stride, dim);
}

inline simt::Status too_many_blocks() {
  return simt::Status{static_cast<int>(StatusCode::kLaunchFailed),
                      "attention: too many tiles for one launch"};
}

}  // namespace
}  // namespace patchword
