// SPDX-License-Identifier: Apache-2.0
// Sampling on CUDA: a warp per few points where channels are contiguous, transposing tiles where
// they are not; gradients by segments of points sorted by cell, without atomics.

#include "kernels/common/half.h"
#include "kernels/common/simt.cuh"
#include "kernels/sample_features/cell_points.cuh"
#include "kernels/sample_features/sample_features.h"
#include "kernels/sample_features/sample_point.h"

namespace patchword {
namespace {

using simt::Pack;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
// Lanes work out the points of their warp side by side: float64 is slow on many GPUs.
constexpr int kPointsPerWarp = 4;
// Channels of grad_features that one warp adds up, as kPerLane registers.
constexpr int kPerLane = 4;
// Points and channels of a transposing tile.
constexpr int kTile = 32;
constexpr int kPlanarChannels = 128;  // channels per block when nothing ties them together

PW_DEVICE float inverse_norm(float squares) {
  const float norm = sqrtf(squares);
  return 1.0f / (norm < kSampleNormEpsilon ? kSampleNormEpsilon : norm);  // NaN stays
}

// Sum of kPack channels at `c` of the corners that have weight; the loads go out together.
template <class T, int kPack>
PW_DEVICE void blend(const T* const (&corner)[4], const float (&weight)[4], int64_t c,
                     float (&sum)[kPack]) {
  Pack<T, kPack> values[4];
  PW_UNROLL
  for (int k = 0; k < 4; ++k) {
    if (weight[k] != 0.0f) values[k] = simt::load_pack<kPack>(corner[k] + c);
  }
  PW_UNROLL
  for (int i = 0; i < kPack; ++i) {
    sum[i] = 0.0f;
    PW_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (weight[k] != 0.0f) sum[i] = fmaf(weight[k], to_float(values[k][i]), sum[i]);
    }
  }
}

// A warp reads kPointsPerWarp points, channels in lanes, kPack at a time (16 bytes where aligned).
// Traffic: four vectors in, one out; normalising reads the four twice, the second time from L1.
template <class T, int kPack>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) sample_rows(const SampleFeaturesParams p) {
  const int lane = static_cast<int>(simt::lane_id());
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  const int64_t total = p.batch * p.num_points;
  const int64_t first = warp * kPointsPerWarp;
  const int64_t mine = first + lane % kPointsPerWarp;
  Corners corners{};
  int64_t offset[4] = {};
  if (mine < total) {
    const int64_t b = mine / p.num_points;
    const PointTaps taps = point_taps(p, b, mine - b * p.num_points);
    corners = corners_of(taps);
    PW_UNROLL
    for (int k = 0; k < 4; ++k) {
      offset[k] = b * p.features_stride[0] +
                  (taps.y.cell[0] + corners.row[k]) * p.features_stride[2] +
                  corners.column[k] * p.features_stride[3];
    }
  }
  for (int i = 0; i < kPointsPerWarp; ++i) {
    const T* corner[4];
    float weight[4];
    PW_UNROLL
    for (int k = 0; k < 4; ++k) {
      corner[k] = static_cast<const T*>(p.features) + simt::shuffle(offset[k], i);
      weight[k] = simt::shuffle(corners.weight[k], i);
    }
    if (first + i >= total) return;  // the same for the whole warp
    T* out = static_cast<T*>(p.out) + (first + i) * p.channels;
    float sum[kPack];
    float scale = 1.0f;
    if (p.normalize) {
      float squares = 0.0f;
      for (int64_t c = lane * kPack; c < p.channels; c += 32 * kPack) {
        blend<T, kPack>(corner, weight, c, sum);
        PW_UNROLL
        for (int j = 0; j < kPack; ++j) squares = fmaf(sum[j], sum[j], squares);
      }
      scale = inverse_norm(simt::warp_reduce(squares, simt::Sum{}));
    }
    for (int64_t c = lane * kPack; c < p.channels; c += 32 * kPack) {
      Pack<T, kPack> result;
      blend<T, kPack>(corner, weight, c, sum);
      PW_UNROLL
      for (int j = 0; j < kPack; ++j) result[j] = from_float<T>(sum[j] * scale);
      simt::store_pack(out + c, result);
    }
  }
}

// A block reads kTile points, points in lanes so that neighbours share cache lines of a plane, and
// writes them through a transposing tile with channels in lanes. Any strides.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    sample_planar(const SampleFeaturesParams p, int64_t span) {
  PW_SHARED(float, tile, kTile*(kTile + 1));
  PW_SHARED(float, norms, kWarps* kTile);
  const int lane = static_cast<int>(simt::lane_id());
  const int warp = static_cast<int>(simt::warp_id());
  const int64_t tiles = simt::ceil_div<int64_t>(p.num_points, kTile);
  const int64_t spans = simt::ceil_div<int64_t>(p.channels, span);
  const int64_t block = blockIdx.x;
  const int64_t b = block / (tiles * spans);
  const int64_t m0 = block / spans % tiles * kTile;
  const int64_t begin = block % spans * span;
  const int64_t end = simt::min<int64_t>(begin + span, p.channels);
  const bool real = m0 + lane < p.num_points;
  Corners corners{};
  const T* corner[4] = {};
  if (real) {
    const PointTaps taps = point_taps(p, b, m0 + lane);
    corners = corners_of(taps);
    PW_UNROLL
    for (int k = 0; k < 4; ++k) {
      corner[k] = static_cast<const T*>(p.features) + b * p.features_stride[0] +
                  (taps.y.cell[0] + corners.row[k]) * p.features_stride[2] +
                  corners.column[k] * p.features_stride[3];
    }
  }
  const auto value = [&](int64_t c) {
    float sum = 0.0f;
    PW_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (corners.weight[k] != 0.0f) {
        sum = fmaf(corners.weight[k], to_float(corner[k][c * p.features_stride[1]]), sum);
      }
    }
    return sum;
  };
  float scale = 1.0f;
  if (p.normalize) {
    float squares = 0.0f;
    for (int64_t c = begin + warp; c < end; c += kWarps) {
      const float v = value(c);
      squares = fmaf(v, v, squares);
    }
    norms[warp * kTile + lane] = squares;
    simt::sync_block();
    squares = 0.0f;
    for (int i = 0; i < kWarps; ++i) squares += norms[i * kTile + lane];
    scale = inverse_norm(squares);
  }
  for (int64_t c0 = begin; c0 < end; c0 += kTile) {
    for (int j = warp; j < kTile && c0 + j < end; j += kWarps) {
      tile[lane * (kTile + 1) + j] = value(c0 + j) * scale;
    }
    simt::sync_block();
    for (int j = warp; j < kTile && m0 + j < p.num_points; j += kWarps) {
      if (c0 + lane < end) {
        T* out = static_cast<T*>(p.out) + (b * p.num_points + m0 + j) * p.channels;
        out[c0 + lane] = from_float<T>(tile[j * (kTile + 1) + lane]);
      }
    }
    simt::sync_block();
  }
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) number_cells(const SampleFeaturesCellsParams q) {
  const SampleFeaturesParams& p = q.forward;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.batch * p.num_points) return;
  const int64_t b = i / p.num_points;
  const PointTaps taps = point_taps(p, b, i - b * p.num_points);
  q.cells[i] = (b * p.height + taps.y.cell[0]) * p.width + taps.x.cell[0];
}

// A warp owns 32 * kPerLane channels of one cell and adds, in a fixed order, what points give it.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    gather_gradient(const SampleFeaturesBackwardParams q, int64_t chunks) {
  const SampleFeaturesParams& p = q.forward;
  const int lane = static_cast<int>(simt::lane_id());
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  const int64_t cell = task / chunks;
  if (cell >= p.batch * p.height * p.width) return;
  const int64_t c0 = task % chunks * (32 * kPerLane);
  const int64_t b = cell / (p.height * p.width);
  const int32_t y = static_cast<int32_t>(cell / p.width - b * p.height);
  const int32_t x = static_cast<int32_t>(cell % p.width);
  const T* grad = static_cast<const T*>(q.grad_out);
  float sum[kPerLane] = {};
  const auto taps_of = [&](int64_t index) { return point_taps(p, b, index - b * p.num_points); };
  visit_points_at(q.order, q.starts, cell, p.width, y, x, taps_of, [&](float w, int64_t index) {
    const T* row = grad + index * p.channels;
    PW_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      const int64_t c = c0 + 32 * k + lane;
      if (c < p.channels) sum[k] = fmaf(w, to_float(row[c]), sum[k]);
    }
  });
  T* target = static_cast<T*>(q.grad_features) + b * q.grad_stride[0] + y * q.grad_stride[2] +
              x * q.grad_stride[3];
  PW_UNROLL
  for (int k = 0; k < kPerLane; ++k) {
    const int64_t c = c0 + 32 * k + lane;
    if (c < p.channels) target[c * q.grad_stride[1]] = from_float<T>(sum[k]);
  }
}

// A warp per point: products of grad_out with the four corners, then differences.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) gradient_of_points(const SampleFeaturesBackwardParams q) {
  const SampleFeaturesParams& p = q.forward;
  const int lane = static_cast<int>(simt::lane_id());
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (index >= p.batch * p.num_points) return;
  const int64_t b = index / p.num_points;
  const PointTaps taps = point_taps(p, b, index - b * p.num_points);
  const T* map = static_cast<const T*>(p.features) + b * p.features_stride[0];
  const T* grad = static_cast<const T*>(q.grad_out) + index * p.channels;
  float dots[4] = {};
  for (int64_t c = lane; c < p.channels; c += 32) {
    const float g = to_float(grad[c]);
    PW_UNROLL
    for (int k = 0; k < 4; ++k) {
      const T* corner = map + taps.y.cell[k / 2] * p.features_stride[2] +
                        taps.x.cell[k % 2] * p.features_stride[3];
      dots[k] = fmaf(g, to_float(corner[c * p.features_stride[1]]), dots[k]);
    }
  }
  PW_UNROLL
  for (int k = 0; k < 4; ++k) dots[k] = simt::warp_reduce(dots[k], simt::Sum{});
  if (lane == 0) point_gradient(taps, dots, q.grad_points + 2 * index);
}

bool packs(const SampleFeaturesParams& p, int64_t pack, int64_t element_bytes) {
  return simt::packs_at(p.out, element_bytes, pack, {p.channels}) &&
         simt::packs_at(p.features, element_bytes, pack,
                        {p.features_stride[0], p.features_stride[2], p.features_stride[3]});
}

template <class T>
simt::Status forward_as(const SampleFeaturesParams& p, void* stream) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t total = p.batch * p.num_points;
  if (p.features_stride[1] != 1 && p.channels > 1) {
    const int64_t span = p.normalize ? p.channels : kPlanarChannels;
    const int64_t blocks = p.batch * simt::ceil_div<int64_t>(p.num_points, kTile) *
                           simt::ceil_div<int64_t>(p.channels, span);
    return PW_LAUNCH((sample_planar<T>), simt::blocks_for(blocks, 1), dim3(kThreads), 0, stream, p,
                     span);
  }
  const dim3 grid = simt::blocks_for(total, kWarps * kPointsPerWarp);
  if (packs(p, kPack, sizeof(T))) {
    return PW_LAUNCH((sample_rows<T, kPack>), grid, dim3(kThreads), 0, stream, p);
  }
  return PW_LAUNCH((sample_rows<T, 1>), grid, dim3(kThreads), 0, stream, p);
}

template <class T>
simt::Status backward_as(const SampleFeaturesBackwardParams& q, void* stream) {
  const SampleFeaturesParams& p = q.forward;
  simt::Status status;
  if (q.grad_features != nullptr) {
    const int64_t chunks = simt::ceil_div<int64_t>(p.channels, 32 * kPerLane);
    const int64_t tasks = p.batch * p.height * p.width * chunks;
    status = PW_LAUNCH((gather_gradient<T>), simt::blocks_for(tasks, kWarps), dim3(kThreads), 0,
                       stream, q, chunks);
  }
  if (status.ok() && q.grad_points != nullptr) {
    status = PW_LAUNCH((gradient_of_points<T>), simt::blocks_for(p.batch * p.num_points, kWarps),
                       dim3(kThreads), 0, stream, q);
  }
  return status;
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_sample_features(const patchword::SampleFeaturesParams* p, void* stream,
                                      char* message, size_t length) {
  using namespace patchword;
  if (p->batch == 0 || p->num_points == 0 || p->channels == 0) return 0;
  return simt::report_for_dtype(
      p->dtype, "sample_features: features", message, length,
      [&](auto type) { return forward_as<typename decltype(type)::type>(*p, stream); });
}

PW_EXPORT int pw_cuda_sample_features_backward(const patchword::SampleFeaturesBackwardParams* q,
                                               void* stream, char* message, size_t length) {
  using namespace patchword;
  if (q->forward.batch == 0 || q->forward.num_points == 0 || q->forward.channels == 0) return 0;
  return simt::report_for_dtype(
      q->forward.dtype, "sample_features: features", message, length,
      [&](auto type) { return backward_as<typename decltype(type)::type>(*q, stream); });
}

PW_EXPORT int pw_cuda_sample_features_cells(const patchword::SampleFeaturesCellsParams* q,
                                            void* stream, char* message, size_t length) {
  using namespace patchword;
  if (q->forward.batch == 0 || q->forward.num_points == 0) return 0;
  const int64_t total = q->forward.batch * q->forward.num_points;
  return PW_LAUNCH((number_cells), simt::blocks_for(total, kThreads), dim3(kThreads), 0, stream, *q)
      .report(message, length);
}
