// SPDX-License-Identifier: Apache-2.0
// Two neighbouring map rows with channels in lanes: read where they are, or transposed as needed.
#pragma once

#include "kernels/common/simd.h"
#include "kernels/point_infonce/infonce_plan.h"
#include "kernels/sample_features/sample_rows.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// A block of channels of all maps. Rows are numbered over the whole batch.
template <typename Element>
struct MapBlock {
  const typename Element::Storage* features;  // at the block's first channel
  int64_t stride[4];                          // b, c, y, x
  int64_t height, width, channels;            // channels of the block

  const typename Element::Storage* row(int64_t r) const {
    return features + r / height * stride[0] + r % height * stride[2];
  }
};

template <typename Element>
PW_INLINE MapBlock<Element> map_block(const PointInfonceParams& p, int64_t c0, int64_t count) {
  const typename Element::Storage* features =
      static_cast<const typename Element::Storage*>(p.features) + c0 * p.features_stride[1];
  return {features,
          {p.features_stride[0], p.features_stride[1], p.features_stride[2], p.features_stride[3]},
          p.height,
          p.width,
          count};
}

// Rows r and r + 1 of maps whose channels are contiguous.
template <typename Element>
struct RowsInPlace {
  typedef Element Source;
  const MapBlock<Element>& map;
  const typename Element::Storage* first;

  RowsInPlace(const MapBlock<Element>& block, void*) : map(block), first(nullptr) {}
  void open(int64_t r) { first = map.row(r); }
  PW_INLINE const typename Element::Storage* cell(int below, int64_t column) const {
    return first + below * map.stride[2] + column * map.stride[3];
  }
};

// Rows r and r + 1 of maps with any strides, as panels [w, kInfonceBlock]. kLanes columns are
// transposed when the first of them is asked for: a row with few points costs no more than reading
// the cells of those points would.
template <typename Element>
struct RowsTransposed {
  typedef Float32 Source;
  typedef typename Element::Storage T;
  const MapBlock<Element>& map;
  float* panel[2];
  uint8_t* ready[2];  // a flag for each group of kLanes columns
  int64_t held[2];    // which row a panel holds; row r is in panel r % 2
  const T* row[2];    // rows r and r + 1
  int64_t current;

  RowsTransposed(const MapBlock<Element>& block, void* memory) : map(block), current(0) {
    panel[0] = static_cast<float*>(memory);
    panel[1] = panel[0] + map.width * kInfonceBlock;
    ready[0] = reinterpret_cast<uint8_t*>(panel[1] + map.width * kInfonceBlock);
    ready[1] = ready[0] + map.width;
    held[0] = held[1] = -1;
    row[0] = row[1] = nullptr;
  }

  void open(int64_t r) {
    current = r;
    row[0] = map.row(r);
    row[1] = row[0] + map.stride[2];
    for (int64_t wanted = r; wanted < r + 2; ++wanted) {
      if (held[wanted & 1] == wanted) continue;
      held[wanted & 1] = wanted;
      __builtin_memset(ready[wanted & 1], 0, static_cast<size_t>(map.width));
    }
  }

  PW_INLINE const float* cell(int below, int64_t column) {
    const int side = static_cast<int>((current + below) & 1);
    const int64_t group = column / kLanes;
    if (!ready[side][group]) {
      ready[side][group] = 1;
      fill(row[below], group * kLanes, panel[side]);
    }
    return panel[side] + column * kInfonceBlock;
  }

  __attribute__((noinline)) void fill(const T* source, int64_t x0, float* target) const {
    const int64_t whole = map.channels / kLanes * kLanes;
    int64_t c = 0;
    if (map.stride[3] == 1 && map.width >= kLanes) {
      // The last group of a row begins early enough to end with it.
      const int64_t x = x0 + kLanes <= map.width ? x0 : map.width - kLanes;
      for (; c < whole; c += kLanes) {
        VecF block[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const T* cells = source + (c + i) * map.stride[1] + x;
          block[i] = Element::load(cells);
          // The row below, wanted next: too many planes for the hardware to follow.
          __builtin_prefetch(cells + map.stride[2]);
        }
        transpose(block);
        for (int i = 0; i < kLanes; ++i) store(target + (x + i) * kInfonceBlock + c, block[i]);
      }
    }
    const int64_t end = x0 + kLanes <= map.width ? x0 + kLanes : map.width;
    for (; c < map.channels; ++c) {
      for (int64_t x = x0; x < end; ++x) {
        target[x * kInfonceBlock + c] =
            load_scalar<Element>(source + c * map.stride[1] + x * map.stride[3]);
      }
    }
  }
};

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
