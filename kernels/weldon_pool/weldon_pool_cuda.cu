// SPDX-License-Identifier: Apache-2.0
// Top and bottom means on CUDA: a warp per map, its order keys in registers, thresholds found bit
// by bit with counts over the warp; gradients by the thresholds that the forward kept.
#include "kernels/common/half.h"
#include "kernels/common/simt.cuh"
#include "kernels/weldon_pool/weldon_pool.h"

namespace patchword {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int32_t kLowestKey = static_cast<int32_t>(0x80000000u);

// Signed keys that order like the float; -0 equals +0; NaN is below everything.
PW_DEVICE int32_t signed_key(float value) {
  const int32_t bits = bit_cast<int32_t>(value + 0.0f);
  return value == value ? bits ^ ((bits >> 31) & 0x7fffffff) : kLowestKey;
}
PW_DEVICE float value_of(int32_t key) { return bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff)); }

// One map: the keys of cells lane, lane + 32, ... of a lane, kPer of them in registers; with kPer 0
// any number, read again whenever they are asked for.
template <class T, int kPer>
struct Keys {
  const T* map;
  int64_t width, along_y, along_x, cells;
  int32_t kept[kPer > 0 ? kPer : 1];

  PW_DEVICE int32_t read(int64_t i) const {
    return signed_key(to_float(map[i / width * along_y + i % width * along_x]));
  }
  PW_DEVICE Keys(const WeldonPoolParams& p, int64_t row) {
    map = static_cast<const T*>(p.maps) + row / p.channels * p.maps_stride[0] +
          row % p.channels * p.maps_stride[1];
    width = p.width;
    along_y = p.maps_stride[2];
    along_x = p.maps_stride[3];
    cells = p.height * p.width;
    if constexpr (kPer > 0) {
      PW_UNROLL
      for (int j = 0; j < kPer; ++j) {
        const int64_t i = simt::lane_id() + 32 * j;
        kept[j] = i < cells ? read(i) : 0;
      }
    }
  }
  // action(key) for every cell of this lane.
  template <class Action>
  PW_DEVICE void each(Action&& action) const {
    if constexpr (kPer > 0) {
      PW_UNROLL
      for (int j = 0; j < kPer; ++j) {
        if (simt::lane_id() + 32 * j < cells) action(kept[j]);
      }
    } else {
      for (int64_t i = simt::lane_id(); i < cells; i += 32) action(read(i));
    }
  }
};

struct Side {
  float sum;
  int32_t threshold;
};

// The count-th largest of key ^ flip: the largest T that `count` of them reach; then the sum of
// those above it and of as many of T itself as are missing.
template <class MapKeys>
PW_DEVICE Side select(const MapKeys& keys, int64_t count, int32_t flip) {
  int32_t found = kLowestKey;
  for (int bit = 31; bit >= 0; --bit) {
    const int32_t tried = found ^ static_cast<int32_t>(1u << bit);
    int reached = 0;
    keys.each([&](int32_t key) { reached += (key ^ flip) >= tried ? 1 : 0; });
    if (simt::warp_reduce(reached, simt::Sum{}) >= count) found = tried;
  }
  float sum = 0.0f;
  int above = 0;
  keys.each([&](int32_t key) {
    if ((key ^ flip) > found) {
      sum += value_of(key);
      ++above;
    }
  });
  sum = simt::warp_reduce(sum, simt::Sum{});
  above = simt::warp_reduce(above, simt::Sum{});
  const int32_t threshold = found ^ flip;
  return {sum + static_cast<float>(count - above) * value_of(threshold), threshold};
}

template <class T, int kPer>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) pool_maps(const WeldonPoolParams p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (row >= p.batch * p.channels) return;  // the same for the whole warp
  const Keys<T, kPer> keys(p, row);
  const Side top = select(keys, p.top_count, 0);
  Side bottom{0.0f, 0};
  float result = top.sum / p.top_divisor;
  if (p.bottom_count > 0) {
    bottom = select(keys, p.bottom_count, -1);
    result += bottom.sum / p.bottom_divisor;
  }
  if (simt::lane_id() != 0) return;
  static_cast<T*>(p.out)[row] = from_float<T>(result);
  if (p.thresholds != nullptr) {
    p.thresholds[2 * row] = top.threshold;
    p.thresholds[2 * row + 1] = bottom.threshold;
  }
}

// Of the cells equal to a threshold the first `missing` count. A round of 32 cells at a time.
struct Selection {
  int32_t threshold, flip;
  int missing;

  PW_DEVICE bool beyond(int32_t key) const { return (key ^ flip) > (threshold ^ flip); }
  PW_DEVICE bool take(int32_t key, bool real) {
    const bool equal = real && key == threshold;
    const unsigned votes = simt::ballot(equal);
    const unsigned before = votes & ((1u << simt::lane_id()) - 1u);
    const bool taken = equal && simt::set_bits(before) < missing;
    missing -= simt::set_bits(votes);
    return taken || (real && beyond(key));
  }
};

template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) spread_gradient(const WeldonPoolBackwardParams q) {
  const WeldonPoolParams& p = q.forward;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (row >= p.batch * p.channels) return;  // the same for the whole warp
  const Keys<T, 0> keys(p, row);
  Selection top{p.thresholds[2 * row], 0, 0}, bottom{p.thresholds[2 * row + 1], -1, 0};
  int larger = 0, smaller = 0;
  keys.each([&](int32_t key) {
    larger += top.beyond(key) ? 1 : 0;
    smaller += bottom.beyond(key) ? 1 : 0;
  });
  top.missing = static_cast<int>(p.top_count) - simt::warp_reduce(larger, simt::Sum{});
  bottom.missing = static_cast<int>(p.bottom_count) - simt::warp_reduce(smaller, simt::Sum{});
  const float grad = to_float(static_cast<const T*>(q.grad_out)[row]);
  T* target = static_cast<T*>(q.grad_maps) + row / p.channels * q.grad_stride[0] +
              row % p.channels * q.grad_stride[1];
  for (int64_t first = 0; first < keys.cells; first += 32) {
    const int64_t i = first + simt::lane_id();
    const bool real = i < keys.cells;
    const int32_t key = real ? keys.read(i) : 0;
    float value = top.take(key, real) ? grad / p.top_divisor : 0.0f;
    if (p.bottom_count > 0 && bottom.take(key, real)) value += grad / p.bottom_divisor;
    if (real) {
      target[i / p.width * q.grad_stride[2] + i % p.width * q.grad_stride[3]] =
          from_float<T>(value);
    }
  }
}

unsigned grid_of(const WeldonPoolParams& p) {
  return simt::blocks_for(p.batch * p.channels, kWarps);
}

template <class T>
simt::Status forward_as(const WeldonPoolParams& p, void* stream) {
  const int64_t cells = p.height * p.width;
  const unsigned grid = grid_of(p);
  if (cells <= 256) return PW_LAUNCH((pool_maps<T, 8>), grid, dim3(kThreads), 0, stream, p);
  if (cells <= 1024) return PW_LAUNCH((pool_maps<T, 32>), grid, dim3(kThreads), 0, stream, p);
  return PW_LAUNCH((pool_maps<T, 0>), grid, dim3(kThreads), 0, stream, p);
}

template <class T>
simt::Status backward_as(const WeldonPoolBackwardParams& q, void* stream) {
  return PW_LAUNCH((spread_gradient<T>), grid_of(q.forward), dim3(kThreads), 0, stream, q);
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_weldon_pool(const patchword::WeldonPoolParams* p, void* stream, char* message,
                                  size_t length) {
  using namespace patchword;
  if (p->batch == 0 || p->channels == 0) return 0;
  return simt::report_for_dtype(p->dtype, "weldon_pool: maps", message, length, [&](auto type) {
    return forward_as<typename decltype(type)::type>(*p, stream);
  });
}

PW_EXPORT int pw_cuda_weldon_pool_backward(const patchword::WeldonPoolBackwardParams* q,
                                           void* stream, char* message, size_t length) {
  using namespace patchword;
  if (q->forward.batch == 0 || q->forward.channels == 0) return 0;
  return simt::report_for_dtype(
      q->forward.dtype, "weldon_pool: maps", message, length,
      [&](auto type) { return backward_as<typename decltype(type)::type>(*q, stream); });
}
