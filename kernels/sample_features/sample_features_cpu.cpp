// SPDX-License-Identifier: Apache-2.0
// Bilinear and nearest sampling on the CPU: channels in lanes, four row pointers, weights once.
//
// A map whose channels are not contiguous is transposed kTransposedChannels at a time into the
// workspace, so that both layouts share one inner loop.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/simd.h"
#include "kernels/common/threads.h"
#include "kernels/sample_features/sample_features.h"
#include "kernels/sample_features/sample_point.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// out[0..channels) = sum of four weighted cells; `corners` point at the first of the channels.
template <typename Source, typename Element>
PW_INLINE void blend(const typename Source::Storage* const (&corners)[4], const float (&weight)[4],
                     int64_t channels, typename Element::Storage* out) {
  const VecF w[4] = {splat(weight[0]), splat(weight[1]), splat(weight[2]), splat(weight[3])};
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    VecF sum = w[0] * Source::load(corners[0] + c);
    for (int i = 1; i < 4; ++i) sum = fma(w[i], Source::load(corners[i] + c), sum);
    Element::store(out + c, sum);
  }
  if (const int n = static_cast<int>(channels - c); n > 0) {
    VecF sum = w[0] * load_tail<Source>(corners[0] + c, n);
    for (int i = 1; i < 4; ++i) sum = fma(w[i], load_tail<Source>(corners[i] + c, n), sum);
    store_tail<Element>(out + c, sum, n);
  }
}

PW_INLINE Taps taps_of(const SampleFeaturesParams& p, int64_t b, int64_t m) {
  const float* point = p.points + b * p.points_stride[0] + m * p.points_stride[1];
  return sample_taps(p, point[0], point[p.points_stride[2]]);
}

// Corners without weight may hold NaN or infinity, and 0 times those is not 0: read a cell that
// counts instead (any of them), or none at all.
template <typename Pointer>
PW_INLINE bool settle_corners(const float (&weight)[4], Pointer (&corners)[4]) {
  int counted = -1;
  for (int i = 0; i < 4; ++i) {
    if (weight[i] != 0.0f) counted = i;
  }
  if (counted < 0) return false;
  for (int i = 0; i < 4; ++i) {
    if (weight[i] == 0.0f) corners[i] = corners[counted];
  }
  return true;
}

template <typename Element>
void sample_channels_last(const SampleFeaturesParams& p, int threads) {
  typedef typename Element::Storage T;
  const T* features = static_cast<const T*>(p.features);
  T* out = static_cast<T*>(p.out);
  parallel_for(threads, p.batch * p.num_points, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / p.num_points;
      const Taps taps = taps_of(p, b, i % p.num_points);
      const T* map = features + b * p.features_stride[0];
      const T* corners[4];
      for (int k = 0; k < 4; ++k) {
        corners[k] = map + taps.y[k / 2] * p.features_stride[2] + taps.x[k % 2] * p.features_stride[3];
      }
      T* row = out + i * p.channels;
      if (settle_corners(taps.weight, corners)) {
        blend<Element, Element>(corners, taps.weight, p.channels, row);
      } else {
        __builtin_memset(row, 0, static_cast<size_t>(p.channels) * sizeof(T));
      }
    }
  });
}

// [h, w, count] in float32 from `count` channels of a map with any strides.
template <typename Element>
void transpose_channels(const SampleFeaturesParams& p, const typename Element::Storage* map,
                        int count, float* cells) {
  for (int64_t y = 0; y < p.height; ++y) {
    for (int c = 0; c < count; ++c) {
      const typename Element::Storage* row = map + c * p.features_stride[1] + y * p.features_stride[2];
      float* target = cells + y * p.width * kTransposedChannels + c;
      int64_t x = 0;
      if (p.features_stride[3] == 1) {
        for (; x + kLanes <= p.width; x += kLanes) {
          const VecF values = Element::load(row + x);
          for (int j = 0; j < kLanes; ++j) target[(x + j) * kTransposedChannels] = values[j];
        }
      }
      for (; x < p.width; ++x) {
        target[x * kTransposedChannels] = load_scalar<Element>(row + x * p.features_stride[3]);
      }
    }
  }
}

template <typename Element>
void sample_any_layout(const SampleFeaturesParams& p, int threads) {
  typedef typename Element::Storage T;
  const T* features = static_cast<const T*>(p.features);
  T* out = static_cast<T*>(p.out);
  const int64_t blocks = (p.channels + kTransposedChannels - 1) / kTransposedChannels;
  parallel_for(threads, p.batch * blocks, [&](int64_t begin, int64_t end, int thread) {
    float* cells = static_cast<float*>(p.workspace) +
                   static_cast<int64_t>(thread) * p.height * p.width * kTransposedChannels;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks;
      const int64_t c0 = i % blocks * kTransposedChannels;
      const int count = p.channels - c0 < kTransposedChannels
                            ? static_cast<int>(p.channels - c0) : kTransposedChannels;
      transpose_channels<Element>(
          p, features + b * p.features_stride[0] + c0 * p.features_stride[1], count, cells);
      for (int64_t m = 0; m < p.num_points; ++m) {
        const Taps taps = taps_of(p, b, m);
        const float* corners[4];
        for (int k = 0; k < 4; ++k) {
          corners[k] = cells + (taps.y[k / 2] * p.width + taps.x[k % 2]) * kTransposedChannels;
        }
        T* row = out + (b * p.num_points + m) * p.channels + c0;
        if (settle_corners(taps.weight, corners)) {
          blend<Float32, Element>(corners, taps.weight, count, row);
        } else {
          __builtin_memset(row, 0, static_cast<size_t>(count) * sizeof(T));
        }
      }
    }
  });
}

template <typename Element>
Status forward_as(const SampleFeaturesParams& p, int threads) {
  // About 0.1 ns per channel and corner once the map is in cache.
  const double cost = 0.5 * static_cast<double>(p.batch * p.num_points) * static_cast<double>(p.channels);
  const int useful = useful_threads(threads, p.batch * p.num_points, cost);
  if (p.features_stride[1] == 1) {
    sample_channels_last<Element>(p, useful);
  } else {
    sample_any_layout<Element>(p, useful);
  }
  return ok_status();
}

Status forward(const SampleFeaturesParams& p, int threads) {
  if (p.batch == 0 || p.num_points == 0 || p.channels == 0) return ok_status();
  if (p.height <= 0 || p.width <= 0) return invalid("features must have at least one cell");
  switch (p.dtype) {
    case DType::kFloat32: return forward_as<Float32>(p, threads);
    case DType::kFloat16: return forward_as<Float16>(p, threads);
    case DType::kBFloat16: return forward_as<BFloat16>(p, threads);
    default: return unsupported("features must be float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace PW_LEVEL

extern const SampleFeaturesTable PW_LEVEL_TABLE(kSampleFeatures);
const SampleFeaturesTable PW_LEVEL_TABLE(kSampleFeatures) = {&PW_LEVEL::forward};

}  // namespace patchword
