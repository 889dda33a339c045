// SPDX-License-Identifier: Apache-2.0
// InfoNCE on CUDA: a warp per query reads its vectors where they lie in the maps; gradients by
// blocks of channels and by segments of points sorted by cell, without atomics.

#include "kernels/common/half.h"
#include "kernels/common/simt.cuh"
#include "kernels/point_infonce/infonce_point.h"
#include "kernels/point_infonce/infonce_row.h"
#include "kernels/point_infonce/point_infonce.h"
#include "kernels/sample_features/cell_points.cuh"

namespace patchword {
namespace {

using simt::Pack;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
// Points whose corners the lanes of a warp hold side by side, four lanes a point.
constexpr int kGroup = 8;
// Channels per lane: of the forward, and of the backward, whose blocks are in memory.
constexpr int kForwardValues = 8;
constexpr int kBackwardValues = static_cast<int>(kInfonceCudaBlock) / 32;
// Cells of a block of gather_cells.
constexpr int kTile = 32;
constexpr int kPitch = static_cast<int>(kInfonceCudaBlock) + 1;

struct WarpTeam {
  int64_t first;
  static constexpr int64_t step = 32;
  PW_DEVICE float sum(float value) const { return simt::warp_reduce(value, simt::Sum{}); }
  PW_DEVICE float max(float value) const { return simt::warp_reduce(value, simt::Max{}); }
};

// One corner of a point: lane 4 i + k of a warp holds corner k of point i.
struct CornerOfLane {
  int64_t offset;  // of the first channel
  float weight;
};

// Of points j, j + 1, ... of query t, `count` of them.
PW_DEVICE CornerOfLane corner_of_lane(const PointInfonceParams& p, int64_t t, int64_t j,
                                      int count) {
  const int lane = static_cast<int>(simt::lane_id());
  if (lane / 4 >= count) return {0, 0.0f};
  const int64_t image = image_of(p, t, j + lane / 4);
  // NaN makes the query's loss NaN, which is all that can be said without waiting.
  if (image < 0 || image >= p.batch) return {0, NAN};
  const PointTaps taps = taps_of(p, t, j + lane / 4);
  const bool below = (lane & 2) != 0, right = (lane & 1) != 0;
  const int64_t row = below ? taps.y.cell[1] : taps.y.cell[0];
  const int64_t column = right ? taps.x.cell[1] : taps.x.cell[0];
  const float weight =
      (below ? taps.y.weight[1] : taps.y.weight[0]) * (right ? taps.x.weight[1] : taps.x.weight[0]);
  return {image * p.features_stride[0] + row * p.features_stride[2] + column * p.features_stride[3],
          weight};
}

// Channel of value `i` of this lane in a stretch that begins at c0.
template <int kPack>
PW_DEVICE int64_t channel_of(int64_t c0, int i) {
  return c0 + i / kPack * (32 * kPack) + static_cast<int64_t>(simt::lane_id()) * kPack + i % kPack;
}

// Channels of point `i` of the group, 0 beyond the last; kPack > 1 where channels are contiguous.
template <class T, int kPack, int kValues>
PW_DEVICE void read_point(const PointInfonceParams& p, const CornerOfLane& mine, int i, int64_t c0,
                          float (&value)[kValues]) {
  int64_t offset[4];
  float weight[4];
  PW_UNROLL
  for (int k = 0; k < 4; ++k) {
    offset[k] = simt::shuffle(mine.offset, 4 * i + k);
    weight[k] = simt::shuffle(mine.weight, 4 * i + k);
  }
  const T* features = static_cast<const T*>(p.features);
  PW_UNROLL
  for (int s = 0; s < kValues; s += kPack) {
    const int64_t c = channel_of<kPack>(c0, s);
    Pack<T, kPack> corner[4];
    PW_UNROLL
    for (int k = 0; k < 4; ++k) {
      // A cell without weight is not read: it may hold NaN.
      if (c < p.channels && weight[k] != 0.0f) {
        corner[k] = simt::load_pack<kPack>(features + offset[k] + c * p.features_stride[1]);
      }
    }
    PW_UNROLL
    for (int j = 0; j < kPack; ++j) {
      float sum = 0.0f;
      PW_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (c < p.channels && weight[k] != 0.0f) sum = fmaf(weight[k], to_float(corner[k][j]), sum);
      }
      value[s + j] = sum;
    }
  }
}

// A warp per query. The query's channels stay in registers while its keys pass by.
// Four blocks a multiprocessor leave the packed form 128 registers; unasked, it takes 96 and
// spills.
template <class T, int kPack>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads, kPack == 1 ? 1 : 4)
    infonce_losses(const PointInfonceParams p) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (t >= p.queries) return;
  const int lane = static_cast<int>(simt::lane_id());
  const int64_t points = 1 + p.keys;
  const int64_t first = t * points;
  float* dots = p.dots + t * p.keys;
  float* norms = p.norms + first;
  int64_t c0 = 0;
  do {  // once without channels too, so that every product is written
    float query[kForwardValues];
    read_point<T, kPack>(p, corner_of_lane(p, t, 0, 1), 0, c0, query);
    for (int64_t j0 = 0; j0 < points; j0 += kGroup) {
      const int count = static_cast<int>(simt::min<int64_t>(kGroup, points - j0));
      const CornerOfLane corners = corner_of_lane(p, t, j0, count);
      for (int i = 0; i < count; ++i) {
        float key[kForwardValues];
        read_point<T, kPack>(p, corners, i, c0, key);
        float product = 0.0f, square = 0.0f;
        PW_UNROLL
        for (int v = 0; v < kForwardValues; ++v) {
          product = fmaf(query[v], key[v], product);
          square = fmaf(key[v], key[v], square);
        }
        product = simt::warp_reduce(product, simt::Sum{});
        square = simt::warp_reduce(square, simt::Sum{});
        const int64_t j = j0 + i;
        if (lane == 0) {
          norms[j] = c0 == 0 ? square : norms[j] + square;
          if (j > 0) dots[j - 1] = c0 == 0 ? product : dots[j - 1] + product;
        }
      }
    }
    c0 += 32 * kForwardValues;
  } while (c0 < p.channels);
  simt::sync_warp();
  for (int64_t j = lane; j < points; j += 32) norms[j] = sqrtf(norms[j]);
  simt::sync_warp();
  const float loss = row_loss(WarpTeam{lane}, norms, dots, p.keys, p.sharpness, p.normalize != 0);
  if (lane == 0) p.losses[t] = loss;
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) infonce_factors(const PointInfonceBackwardParams q) {
  const PointInfonceParams& p = q.forward;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (t >= p.queries) return;
  const int64_t first = t * (1 + p.keys);
  row_factors(WarpTeam{static_cast<int64_t>(simt::lane_id())}, p.norms + first, p.dots + t * p.keys,
              p.keys, p.sharpness, p.normalize != 0, q.grad[t], q.weights + first, q.pulls + first);
}

// A warp per query writes the gradients of its vectors, kInfonceCudaBlock channels from c0 on.
template <class T, int kPack>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    infonce_vectors(const PointInfonceBackwardParams q, int64_t c0) {
  const PointInfonceParams& p = q.forward;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (t >= p.queries) return;
  const int64_t points = 1 + p.keys;
  const int64_t first = t * points;
  const auto write = [&](int64_t point, const float (&value)[kBackwardValues]) {
    PW_UNROLL
    for (int v = 0; v < kBackwardValues; ++v) {
      q.vectors[point * kInfonceCudaBlock + channel_of<kPack>(0, v)] = value[v];
    }
  };
  float query[kBackwardValues], sum[kBackwardValues];
  read_point<T, kPack>(p, corner_of_lane(p, t, 0, 1), 0, c0, query);
  const float pull = q.pulls[first];
  PW_UNROLL
  for (int v = 0; v < kBackwardValues; ++v) sum[v] = -pull * query[v];
  for (int64_t j0 = 1; j0 < points; j0 += kGroup) {
    const int count = static_cast<int>(simt::min<int64_t>(kGroup, points - j0));
    const CornerOfLane corners = corner_of_lane(p, t, j0, count);
    for (int i = 0; i < count; ++i) {
      float key[kBackwardValues];
      read_point<T, kPack>(p, corners, i, c0, key);
      const float own = q.pulls[first + j0 + i], weight = q.weights[first + j0 + i];
      PW_UNROLL
      for (int v = 0; v < kBackwardValues; ++v) {
        sum[v] = fmaf(weight, key[v], sum[v]);
        key[v] = fmaf(weight, query[v], -own * key[v]);
      }
      write(first + j0 + i, key);
    }
  }
  write(first, sum);
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) infonce_cells(const PointInfonceCellsParams q) {
  const PointInfonceParams& p = q.forward;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.queries * (1 + p.keys)) return;
  const int64_t t = i / (1 + p.keys), j = i - t * (1 + p.keys);
  const int64_t image = image_of(p, t, j);
  if (image < 0 || image >= p.batch) {
    q.cells[i] = p.batch * p.height * p.width;
    return;
  }
  const PointTaps taps = taps_of(p, t, j);
  q.cells[i] = (image * p.height + taps.y.cell[0]) * p.width + taps.x.cell[0];
}

// A block owns kTile cells and kInfonceCudaBlock channels from c0 on. The sums go through shared
// memory, so that they are written along whatever is contiguous in the map.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    infonce_gather(const PointInfonceBackwardParams q, int64_t c0) {
  PW_SHARED(float, tile, kTile* kPitch);
  const PointInfonceParams& p = q.forward;
  const int lane = static_cast<int>(simt::lane_id());
  const int warp = static_cast<int>(simt::warp_id());
  const int64_t total = p.batch * p.height * p.width;
  const int64_t cell0 = static_cast<int64_t>(blockIdx.x) * kTile;
  for (int n = warp; n < kTile && cell0 + n < total; n += kWarps) {
    const int64_t cell = cell0 + n;
    const int32_t x = static_cast<int32_t>(cell % p.width);
    const int32_t y = static_cast<int32_t>(cell / p.width % p.height);
    float sum[kBackwardValues] = {};
    const auto read = [&](int64_t point) {
      return taps_of(p, point / (1 + p.keys), point % (1 + p.keys));
    };
    visit_points_at(q.order, q.starts, cell, p.width, y, x, read, [&](float w, int64_t point) {
      const float* vector = q.vectors + point * kInfonceCudaBlock + lane;
      PW_UNROLL
      for (int v = 0; v < kBackwardValues; ++v) sum[v] = fmaf(w, vector[32 * v], sum[v]);
    });
    PW_UNROLL
    for (int v = 0; v < kBackwardValues; ++v) tile[n * kPitch + 32 * v + lane] = sum[v];
  }
  simt::sync_block();
  const int channels = static_cast<int>(simt::min<int64_t>(kInfonceCudaBlock, p.channels - c0));
  const int cells = static_cast<int>(simt::min<int64_t>(kTile, total - cell0));
  const bool along_channels = q.grad_stride[1] == 1;
  const int wide = along_channels ? channels : cells, high = along_channels ? cells : channels;
  T* grad = static_cast<T*>(q.grad_features) + c0 * q.grad_stride[1];
  for (int i = warp; i < high; i += kWarps) {
    for (int j = lane; j < wide; j += 32) {
      const int n = along_channels ? i : j, c = along_channels ? j : i;
      const int64_t cell = cell0 + n;
      grad[cell / (p.height * p.width) * q.grad_stride[0] + c * q.grad_stride[1] +
           cell / p.width % p.height * q.grad_stride[2] + cell % p.width * q.grad_stride[3]] =
          from_float<T>(tile[n * kPitch + c]);
    }
  }
}

// A warp per point: products of its gradient with the four corners, then differences; adds up over
// the blocks of channels.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    infonce_points(const PointInfonceBackwardParams q, int64_t c0) {
  const PointInfonceParams& p = q.forward;
  const int lane = static_cast<int>(simt::lane_id());
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (index >= p.queries * (1 + p.keys)) return;
  const int64_t t = index / (1 + p.keys), j = index - t * (1 + p.keys);
  const int64_t image = image_of(p, t, j);
  const bool real = image >= 0 && image < p.batch;
  const PointTaps taps = taps_of(p, t, j);
  const T* map = static_cast<const T*>(p.features) + (real ? image : 0) * p.features_stride[0];
  float dots[4] = {};
  for (int64_t c = lane; c < kInfonceCudaBlock && c0 + c < p.channels; c += 32) {
    const float g = real ? q.vectors[index * kInfonceCudaBlock + c] : NAN;
    PW_UNROLL
    for (int k = 0; k < 4; ++k) {
      const T* corner = map + taps.y.cell[k / 2] * p.features_stride[2] +
                        taps.x.cell[k % 2] * p.features_stride[3];
      dots[k] = fmaf(g, to_float(corner[(c0 + c) * p.features_stride[1]]), dots[k]);
    }
  }
  PW_UNROLL
  for (int k = 0; k < 4; ++k) dots[k] = simt::warp_reduce(dots[k], simt::Sum{});
  if (lane != 0) return;
  float part[2];
  point_gradient(taps, dots, part);
  float* grad = j == 0 ? q.grad_query_points + 2 * t : q.grad_key_points + 2 * (t * p.keys + j - 1);
  grad[0] = c0 == 0 ? part[0] : grad[0] + part[0];
  grad[1] = c0 == 0 ? part[1] : grad[1] + part[1];
}

// Whether `pack` channels can be read as one access everywhere.
bool packs(const PointInfonceParams& p, int64_t pack, int64_t element_bytes) {
  return p.features_stride[1] == 1 && simt::packs_at(p.features, element_bytes, pack,
                                                     {p.channels, p.features_stride[0],
                                                      p.features_stride[2], p.features_stride[3]});
}

template <class T>
simt::Status forward_as(const PointInfonceParams& p, void* stream) {
  constexpr int kPack = 16 / sizeof(T);
  const dim3 grid = simt::blocks_for(p.queries, kWarps);
  if (packs(p, kPack, sizeof(T))) {
    return PW_LAUNCH((infonce_losses<T, kPack>), grid, dim3(kThreads), 0, stream, p);
  }
  return PW_LAUNCH((infonce_losses<T, 1>), grid, dim3(kThreads), 0, stream, p);
}

template <class T>
simt::Status backward_as(const PointInfonceBackwardParams& q, void* stream) {
  const PointInfonceParams& p = q.forward;
  const dim3 queries = simt::blocks_for(p.queries, kWarps);
  const bool pairs = packs(p, kBackwardValues, sizeof(T));
  simt::Status status = PW_LAUNCH((infonce_factors), queries, dim3(kThreads), 0, stream, q);
  for (int64_t c0 = 0; status.ok() && c0 < p.channels; c0 += kInfonceCudaBlock) {
    status = pairs ? PW_LAUNCH((infonce_vectors<T, kBackwardValues>), queries, dim3(kThreads), 0,
                               stream, q, c0)
                   : PW_LAUNCH((infonce_vectors<T, 1>), queries, dim3(kThreads), 0, stream, q, c0);
    if (status.ok() && q.grad_features != nullptr) {
      status = PW_LAUNCH((infonce_gather<T>), simt::blocks_for(p.batch * p.height * p.width, kTile),
                         dim3(kThreads), 0, stream, q, c0);
    }
    if (status.ok() && q.grad_query_points != nullptr) {
      status = PW_LAUNCH((infonce_points<T>), simt::blocks_for(p.queries * (1 + p.keys), kWarps),
                         dim3(kThreads), 0, stream, q, c0);
    }
  }
  return status;
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_point_infonce(const patchword::PointInfonceParams* p, void* stream,
                                    char* message, size_t length) {
  using namespace patchword;
  return simt::report_for_dtype(
      p->dtype, "point_infonce: features", message, length,
      [&](auto type) { return forward_as<typename decltype(type)::type>(*p, stream); });
}

PW_EXPORT int pw_cuda_point_infonce_backward(const patchword::PointInfonceBackwardParams* q,
                                             void* stream, char* message, size_t length) {
  using namespace patchword;
  return simt::report_for_dtype(
      q->forward.dtype, "point_infonce: features", message, length,
      [&](auto type) { return backward_as<typename decltype(type)::type>(*q, stream); });
}

PW_EXPORT int pw_cuda_point_infonce_cells(const patchword::PointInfonceCellsParams* q, void* stream,
                                          char* message, size_t length) {
  using namespace patchword;
  const int64_t total = q->forward.queries * (1 + q->forward.keys);
  return PW_LAUNCH((infonce_cells), simt::blocks_for(total, kThreads), dim3(kThreads), 0, stream,
                   *q)
      .report(message, length);
}
