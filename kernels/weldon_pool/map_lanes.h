// SPDX-License-Identifier: Apache-2.0
// kLanes maps side by side in lanes, sixteen cells at a time, whatever their strides.
//
// Included by level units only.
#pragma once

#include "kernels/common/simd.h"
#include "kernels/common/transpose.h"

namespace patchword {
namespace PW_LEVEL {

constexpr int kChunk = 16;  // cells

// The maps [first, first + count) of a [B, C, h, w] tensor, at most kLanes of them.
template <typename Element, typename T>
class MapLanes {
 public:
  PW_INLINE MapLanes(T* data, const int64_t (&stride)[4], int64_t channels, int64_t height,
                     int64_t width, int64_t first, int count)
      : count_(count), width_(width), along_y_(stride[2]), along_x_(stride[3]) {
    bool neighbours = true;
    for (int i = 0; i < kLanes; ++i) {
      // Lanes without a map repeat the first one; what they give is not used.
      const int64_t row = first + (i < count ? i : 0);
      map_[i] = data + row / channels * stride[0] + row % channels * stride[1];
      if (i < count) neighbours = neighbours && map_[i] == map_[0] + i;
    }
    const bool in_a_row = width == 1 || stride[3] == 1;
    const bool one_block = height == 1 || (width == 1 ? stride[2] == 1 : stride[2] == width);
    layout_ = neighbours && count > 1 ? kChannels : (in_a_row && one_block ? kCells : kScattered);
  }

  // Cells [first, first + cells), at most kChunk; the others are left as they are.
  PW_INLINE void read(int64_t first, int cells, VecF (&values)[kChunk]) const {
    if (layout_ == kCells) {
      for (int j0 = 0; j0 < cells; j0 += kLanes) {
        const int n = cells - j0 < kLanes ? cells - j0 : kLanes;
        VecF block[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) block[i] = load_row<Element>(map_[i] + first, 1, j0, n);
        transpose(block);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) values[j0 + j] = block[j];
      }
      return;
    }
    visit(first, cells, [&](int j, int64_t at) {
      if (layout_ == kChannels) {
        values[j] = count_ == kLanes ? Element::load(map_[0] + at)
                                     : load_tail<Element>(map_[0] + at, count_);
      } else {
        typename Element::Storage lanes[kLanes];
        for (int i = 0; i < kLanes; ++i) lanes[i] = map_[i][at];
        values[j] = Element::load(lanes);
      }
    });
  }

  // Whether a map's cells lie next to each other, so that `cells` reads them in order.
  PW_INLINE bool in_order() const { return layout_ == kCells; }
  PW_INLINE VecF cells_of(int lane, int64_t first) const {
    return Element::load(map_[lane] + first);
  }

  PW_INLINE void write(int64_t first, int cells, const VecF (&values)[kChunk]) const {
    if (layout_ == kCells) {
      for (int j0 = 0; j0 < cells; j0 += kLanes) {
        const int n = cells - j0 < kLanes ? cells - j0 : kLanes;
        VecF block[kLanes];
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) block[j] = values[j0 + j];
        transpose(block);
        for (int i = 0; i < count_; ++i) {
          typename Element::Storage* to = map_[i] + first + j0;
          if (n == kLanes) {
            Element::store(to, block[i]);
            continue;
          }
          typename Element::Storage lanes[kLanes];
          Element::store(lanes, block[i]);
          for (int j = 0; j < kLanes; ++j) {
            if (j < n) to[j] = lanes[j];
          }
        }
      }
      return;
    }
    visit(first, cells, [&](int j, int64_t at) {
      typename Element::Storage lanes[kLanes];
      Element::store(lanes, values[j]);
      for (int i = 0; i < count_; ++i) map_[i][at] = lanes[i];
    });
  }

 private:
  enum Layout { kCells, kChannels, kScattered };

  // action(j, offset of cell first + j)
  template <typename Action>
  PW_INLINE void visit(int64_t first, int cells, Action&& action) const {
    int64_t y = first / width_, x = first % width_;
    for (int j = 0; j < cells; ++j) {
      action(j, y * along_y_ + x * along_x_);
      if (++x == width_) {
        x = 0;
        ++y;
      }
    }
  }

  T* map_[kLanes];
  int count_;
  Layout layout_;
  int64_t width_, along_y_, along_x_;
};

}  // namespace PW_LEVEL
}  // namespace patchword
