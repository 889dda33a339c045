// SPDX-License-Identifier: Apache-2.0
// Top and bottom means on the CPU: maps in lanes, sorted lists of sixteen in registers; larger
// counts by a search for the threshold, bit by bit.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/simd.h"
#include "kernels/common/threads.h"
#include "kernels/weldon_pool/map_lanes.h"
#include "kernels/weldon_pool/sorted_lists.h"
#include "kernels/weldon_pool/weldon_pool.h"
#include "kernels/weldon_pool/weldon_pool_plan.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Sum and threshold of one side, per lane.
struct Side {
  VecF sum;
  VecI threshold;
};

struct Sides {
  Side top, bottom;
};

PW_INLINE Side side_of(const VecI (&list)[kList], int64_t count) {
  Side side{VecF{}, VecI{}};
  for (int64_t i = 0; i < count; ++i) side.sum += values_of(list[i]);
  if (count > 0) side.threshold = list[count - 1];
  return side;
}

template <typename Maps>
PW_INLINE void read_keys(const Maps& maps, int64_t first, int cells, VecI (&keys)[kList]) {
  VecF values[kChunk] = {};
  maps.read(first, cells, values);
#pragma GCC unroll 16
  for (int j = 0; j < kChunk; ++j) keys[j] = order_keys(values[j]);
}

// Counts up to kList: sort sixteen cells at a time and merge them into both lists.
template <typename Maps>
PW_INLINE Sides by_lists(const Maps& maps, int64_t cells, int64_t top_count, int64_t bottom_count) {
  Lists lists;
  VecI keys[kList];
  for (int i = 0; i < kList; ++i) {
    lists.top[i] = splat_int(kLowestKey);
    lists.bottom[i] = splat_int(kHighestKey);
  }
  int64_t first = 0;
  for (; first + kChunk <= cells; first += kChunk) {
    read_keys(maps, first, kChunk, keys);
    if (bottom_count > 0) {
      absorb_both(lists, keys);
    } else {
      absorb_top(lists, keys);
    }
  }
  if (first < cells) {  // filled up with what neither list wants
    const int rest = static_cast<int>(cells - first);
    read_keys(maps, first, rest, keys);
    VecI again[kList];
    for (int j = 0; j < kList; ++j) {
      again[j] = j < rest ? keys[j] : splat_int(kHighestKey);
      keys[j] = j < rest ? keys[j] : splat_int(kLowestKey);
    }
    absorb_top(lists, keys);
    if (bottom_count > 0) absorb_bottom(lists, again);
  }
  return {side_of(lists.top, top_count), side_of(lists.bottom, bottom_count)};
}

// Counts of 1 and 0: one largest and one smallest.
template <typename Maps>
PW_INLINE Sides by_extremes(const Maps& maps, int64_t cells, int64_t bottom_count) {
  VecI top[4], bottom[4];
  for (int i = 0; i < 4; ++i) {
    top[i] = splat_int(kLowestKey);
    bottom[i] = splat_int(kHighestKey);
  }
  int64_t first = 0;
  if (maps.in_order()) {  // along the cells of each map, and only the results across
    VecF tops[kLanes], bottoms[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      VecI most = splat_int(kLowestKey), least = splat_int(kHighestKey);
      for (int64_t at = 0; at + kLanes <= cells; at += kLanes) {
        const VecI key = order_keys(maps.cells_of(i, at));
        most = larger(most, key);
        least = smaller(least, key);
      }
      tops[i] = bit_cast<VecF>(most);
      bottoms[i] = bit_cast<VecF>(least);
    }
    transpose(tops);
    transpose(bottoms);
    for (int i = 0; i < kLanes; ++i) {
      top[i % 4] = larger(top[i % 4], bit_cast<VecI>(tops[i]));
      bottom[i % 4] = smaller(bottom[i % 4], bit_cast<VecI>(bottoms[i]));
    }
    first = cells / kLanes * kLanes;
  }
  VecI keys[kList];
  for (; first < cells; first += kChunk) {
    const int n = cells - first < kChunk ? static_cast<int>(cells - first) : kChunk;
    read_keys(maps, first, n, keys);
    for (int j = 0; j < n; ++j) {
      top[j % 4] = larger(top[j % 4], keys[j]);
      bottom[j % 4] = smaller(bottom[j % 4], keys[j]);
    }
  }
  const VecI most = larger(larger(top[0], top[1]), larger(top[2], top[3]));
  const VecI least = smaller(smaller(bottom[0], bottom[1]), smaller(bottom[2], bottom[3]));
  const Side none{VecF{}, VecI{}};
  return {{values_of(most), most}, bottom_count > 0 ? Side{values_of(least), least} : none};
}

// The count-th largest of keys ^ flip: the largest T that `count` of them reach, found from its
// highest bit down; then the sum of those above it and of as many of T itself as are missing.
Side by_search(const int32_t* keys, int64_t cells, int64_t count, int32_t flip) {
  VecI found = splat_int(kLowestKey);
  const VecI wanted = splat_int(static_cast<int32_t>(count));
  for (int bit = 31; bit >= 0; --bit) {
    const VecI tried = found ^ splat_int(static_cast<int32_t>(1u << bit));  // sets it, sign too
    VecI reached[4] = {};
    int64_t i = 0;
    for (; i + 4 <= cells; i += 4) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        reached[j] -= (load(keys + (i + j) * kLanes) ^ splat_int(flip)) >= tried;
      }
    }
    for (; i < cells; ++i) reached[0] -= (load(keys + i * kLanes) ^ splat_int(flip)) >= tried;
    found = select(reached[0] + reached[1] + reached[2] + reached[3] >= wanted, tried, found);
  }
  VecF sum{};
  VecI above{};
  for (int64_t i = 0; i < cells; ++i) {
    const VecI key = load(keys + i * kLanes);
    const VecI counts = (key ^ splat_int(flip)) > found;
    above -= counts;
    sum += select(counts, values_of(key), VecF{});
  }
  const VecI threshold = found ^ splat_int(flip);
  sum += to_float(wanted - above) * values_of(threshold);
  return {sum, threshold};
}

template <typename Maps>
PW_INLINE Sides by_search_of(const Maps& maps, int64_t cells, int64_t top_count,
                             int64_t bottom_count, int32_t* scratch) {
  VecI keys[kList];
  for (int64_t first = 0; first < cells; first += kChunk) {
    const int n = cells - first < kChunk ? static_cast<int>(cells - first) : kChunk;
    read_keys(maps, first, n, keys);
    for (int j = 0; j < kChunk; ++j) store(scratch + (first + j) * kLanes, keys[j]);
  }
  const Side none{VecF{}, VecI{}};
  return {by_search(scratch, cells, top_count, 0),
          bottom_count > 0 ? by_search(scratch, cells, bottom_count, -1) : none};
}

template <typename Element>
void pool(const WeldonPoolParams& p, int threads) {
  typedef typename Element::Storage T;
  const int64_t rows = p.batch * p.channels, cells = p.height * p.width;
  const int64_t groups = (rows + kLanes - 1) / kLanes;
  const int64_t scratch =
      (cells + kWeldonMostLanes - 1) / kWeldonMostLanes * kWeldonMostLanes * kWeldonMostLanes;
  const int used = weldon_threads(p, threads);
  parallel_for(used, groups, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kLanes;
      const int count = rows - first < kLanes ? static_cast<int>(rows - first) : kLanes;
      const MapLanes<Element, const T> maps(static_cast<const T*>(p.maps), p.maps_stride,
                                            p.channels, p.height, p.width, first, count);
      Sides sides;
      if (weldon_searches(p)) {
        sides = by_search_of(maps, cells, p.top_count, p.bottom_count,
                             static_cast<int32_t*>(p.workspace) + thread * scratch);
      } else if (p.top_count > 1 || p.bottom_count > 1) {
        sides = by_lists(maps, cells, p.top_count, p.bottom_count);
      } else {
        sides = by_extremes(maps, cells, p.bottom_count);
      }
      VecF result = sides.top.sum / p.top_divisor;
      if (p.bottom_count > 0) result = result + sides.bottom.sum / p.bottom_divisor;
      store_tail<Element>(static_cast<T*>(p.out) + first, result, count);
      if (p.thresholds == nullptr) continue;
      for (int i = 0; i < count; ++i) {
        p.thresholds[2 * (first + i)] = sides.top.threshold[i];
        p.thresholds[2 * (first + i) + 1] = sides.bottom.threshold[i];
      }
    }
  });
}

// Which cells of kLanes maps count on one side, visited in order: those beyond the threshold, and
// of those equal to it the first ones that are still missing.
struct Selection {
  VecI threshold, missing, flip;

  PW_INLINE VecI beyond(VecI key) const { return (key ^ flip) > (threshold ^ flip); }
  PW_INLINE VecI take(VecI key) {
    const VecI equal = (key == threshold) & (missing > VecI{});
    missing += equal;  // a true lane is -1
    return beyond(key) | equal;
  }
};

// Gradients of maps [first, first + count), side by side in lanes.
template <typename Element>
void spread_lanes(const WeldonPoolBackwardParams& q, int64_t first, int count) {
  typedef typename Element::Storage T;
  const WeldonPoolParams& p = q.forward;
  const int64_t cells = p.height * p.width;
  const MapLanes<Element, const T> maps(static_cast<const T*>(p.maps), p.maps_stride, p.channels,
                                        p.height, p.width, first, count);
  const MapLanes<Element, T> grads(static_cast<T*>(q.grad_maps), q.grad_stride, p.channels,
                                   p.height, p.width, first, count);
  Selection top{VecI{}, splat_int(static_cast<int32_t>(p.top_count)), VecI{}};
  Selection bottom{VecI{}, splat_int(static_cast<int32_t>(p.bottom_count)), splat_int(-1)};
  for (int i = 0; i < count; ++i) {
    top.threshold[i] = p.thresholds[2 * (first + i)];
    bottom.threshold[i] = p.thresholds[2 * (first + i) + 1];
  }
  VecI keys[kList];
  for (int64_t at = 0; at < cells; at += kChunk) {
    const int n = cells - at < kChunk ? static_cast<int>(cells - at) : kChunk;
    read_keys(maps, at, n, keys);
    for (int j = 0; j < n; ++j) {
      top.missing += top.beyond(keys[j]);
      bottom.missing += bottom.beyond(keys[j]);
    }
  }
  const VecF grad = load_tail<Element>(static_cast<const T*>(q.grad_out) + first, count);
  const VecF large = grad / p.top_divisor, small = grad / p.bottom_divisor;
  VecF values[kChunk] = {};
  for (int64_t at = 0; at < cells; at += kChunk) {
    const int n = cells - at < kChunk ? static_cast<int>(cells - at) : kChunk;
    read_keys(maps, at, n, keys);
    for (int j = 0; j < n; ++j) {
      values[j] = select(top.take(keys[j]), large, VecF{});
      if (p.bottom_count > 0) values[j] += select(bottom.take(keys[j]), small, VecF{});
    }
    grads.write(at, n, values);
  }
}

// body(first cell, cells, keys, which of them are cells) for a map whose cells lie in a row.
template <typename Element, typename Body>
PW_INLINE void each_vector(const typename Element::Storage* map, int64_t cells, Body&& body) {
  int64_t c = 0;
  for (; c + kLanes <= cells; c += kLanes) {
    body(c, kLanes, order_keys(Element::load(map + c)), splat_int(-1));
  }
  if (c == cells) return;
  const int n = static_cast<int>(cells - c);
  body(c, n, order_keys(load_tail<Element>(map + c, n)), lane_numbers() < splat_int(n));
}

// The gradient of a map whose cells lie in a row, its own as well: cells in lanes, so that nothing
// is transposed. False, with nothing written, where more cells equal a threshold than count: which
// of them do depends on their order.
template <typename Element>
bool spread_row(const WeldonPoolParams& p, int64_t row, const typename Element::Storage* map,
                float grad, typename Element::Storage* to) {
  const int64_t cells = p.height * p.width;
  const VecI top = splat_int(p.thresholds[2 * row]), bottom = splat_int(p.thresholds[2 * row + 1]);
  VecI above{}, below{};  // with those that are equal
  each_vector<Element>(map, cells,
                       [&](int64_t, int, VecI key, VecI real) __attribute__((always_inline)) {
                         above -= (key >= top) & real;
                         below -= (key <= bottom) & real;
                       });
  int64_t large_cells = 0, small_cells = 0;
  for (int i = 0; i < kLanes; ++i) {
    large_cells += above[i];
    small_cells += below[i];
  }
  const bool both = p.bottom_count > 0;
  if (large_cells != p.top_count || (both && small_cells != p.bottom_count)) return false;
  const VecF large = splat(grad / p.top_divisor);
  const VecF small = splat(both ? grad / p.bottom_divisor : 0.0f);
  each_vector<Element>(map, cells,
                       [&](int64_t c, int n, VecI key, VecI) __attribute__((always_inline)) {
                         VecF value = select(key >= top, large, VecF{});
                         if (both) value += select(key <= bottom, small, VecF{});
                         if (n == kLanes) {
                           Element::store(to + c, value);
                         } else {
                           store_tail<Element>(to + c, value, n);
                         }
                       });
  return true;
}

bool in_a_row(const WeldonPoolParams& p, const int64_t (&stride)[4]) {
  return (p.width == 1 || stride[3] == 1) && (p.height == 1 || stride[2] == p.width);
}

template <typename Element>
void spread(const WeldonPoolBackwardParams& q, int threads) {
  typedef typename Element::Storage T;
  const WeldonPoolParams& p = q.forward;
  const int64_t rows = p.batch * p.channels, cells = p.height * p.width;
  const int used = useful_threads(threads, rows, static_cast<double>(rows) * cells);
  const bool by_rows = in_a_row(p, p.maps_stride) && in_a_row(p, q.grad_stride);
  const T* const grad_out = static_cast<const T*>(q.grad_out);
  parallel_for(used, (rows + kLanes - 1) / kLanes, [&](int64_t begin, int64_t end, int) {
    for (int64_t first = begin * kLanes; first < end * kLanes && first < rows; first += kLanes) {
      const int count = rows - first < kLanes ? static_cast<int>(rows - first) : kLanes;
      if (!by_rows) {
        spread_lanes<Element>(q, first, count);
        continue;
      }
      for (int64_t row = first; row < first + count; ++row) {
        const int64_t b = row / p.channels, c = row % p.channels;
        const T* map = static_cast<const T*>(p.maps) + b * p.maps_stride[0] + c * p.maps_stride[1];
        T* to = static_cast<T*>(q.grad_maps) + b * q.grad_stride[0] + c * q.grad_stride[1];
        if (!spread_row<Element>(p, row, map, load_scalar<Element>(grad_out + row), to)) {
          spread_lanes<Element>(q, row, 1);
        }
      }
    }
  });
}

Status forward(const WeldonPoolParams& p, int threads) {
  switch (p.dtype) {
    case DType::kFloat32: pool<Float32>(p, threads); return ok_status();
    case DType::kFloat16: pool<Float16>(p, threads); return ok_status();
    case DType::kBFloat16: pool<BFloat16>(p, threads); return ok_status();
    default: return unsupported("maps must be float32, float16 or bfloat16");
  }
}

Status backward(const WeldonPoolBackwardParams& q, int threads) {
  switch (q.forward.dtype) {
    case DType::kFloat32: spread<Float32>(q, threads); return ok_status();
    case DType::kFloat16: spread<Float16>(q, threads); return ok_status();
    case DType::kBFloat16: spread<BFloat16>(q, threads); return ok_status();
    default: return unsupported("maps must be float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace PW_LEVEL

extern const WeldonPoolTable PW_LEVEL_TABLE(kWeldonPool);
const WeldonPoolTable PW_LEVEL_TABLE(kWeldonPool) = {&PW_LEVEL::forward, &PW_LEVEL::backward};

}  // namespace patchword
