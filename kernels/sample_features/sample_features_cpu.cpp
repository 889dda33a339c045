// SPDX-License-Identifier: Apache-2.0
// Sampling on the CPU: channels in lanes, weights once per point, many points sorted by cell.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/simd.h"
#include "kernels/common/threads.h"
#include "kernels/sample_features/planned_points.h"
#include "kernels/sample_features/sample_features.h"
#include "kernels/sample_features/sample_plan.h"
#include "kernels/sample_features/sample_point.h"
#include "kernels/sample_features/sample_rows.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

template <typename T>
PW_INLINE T* region(const SampleFeaturesParams& p, int64_t at) {
  return reinterpret_cast<T*>(static_cast<char*>(p.workspace) + at);
}

// Points of the whole batch with their corners, and the bucket that each sorts into.
void plan_points(const SampleFeaturesParams& p, int threads, int shift, int64_t row_buckets,
                 PlannedPoint* points) {
  parallel_for(threads, p.batch * p.num_points, [&](int64_t begin, int64_t end, int) {
    int64_t b = begin / p.num_points;
    int64_t m = begin % p.num_points;
    for (int64_t i = begin; i < end; ++i) {
      const PointTaps taps = point_taps(p, b, m);
      Corners corners = corners_of(taps);
      PlannedPoint& point = points[i];
      point.count = keep_counting(corners);
      for (int k = 0; k < 4; ++k) {
        point.weight[k] = corners.weight[k];
        point.column[k] = corners.column[k];
        point.row[k] = corners.row[k];
      }
      point.bucket =
          static_cast<uint32_t>(taps.y.cell[0] * row_buckets + (taps.x.cell[0] >> shift));
      if (++m == p.num_points) {
        m = 0;
        ++b;
      }
    }
  });
}

// Visits every point, sorted by cell: action(thread, index, point, window, c0, count) gets the two
// map rows of the point, `count` channels from c0 on.
template <typename Element, typename Action>
void visit_sorted(const SampleFeaturesParams& p, const SamplePlan& plan, Action&& action) {
  typedef typename Element::Storage T;
  PlannedPoint* points = region<PlannedPoint>(p, plan.points_at);
  uint32_t* ends = region<uint32_t>(p, plan.ends_at);
  uint32_t* order = region<uint32_t>(p, plan.order_at);
  plan_points(p, plan.threads, plan.shift, plan.row_buckets, points);
  parallel_for(plan.threads, p.batch, [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) {
      sort_points(points + b * p.num_points, p.num_points, plan.buckets, ends + b * plan.buckets,
                  order + b * p.num_points);
    }
  });
  const int64_t pitch = round_up(plan.block, 16);
  parallel_for(plan.threads, p.batch * p.num_points, [&](int64_t begin, int64_t end, int thread) {
    float* panel = region<float>(p, plan.panels_at) + thread * plan.panel_floats;
    while (begin < end) {
      const int64_t b = begin / p.num_points;
      const int64_t base = b * p.num_points;
      const int64_t first = begin - base;
      const int64_t last = end - base < p.num_points ? end - base : p.num_points;
      const T* map = static_cast<const T*>(p.features) + b * p.features_stride[0];
      const uint32_t* image_ends = ends + b * plan.buckets;
      const uint32_t* image_order = order + base;
      for (int64_t c0 = 0; c0 < p.channels; c0 += plan.block) {
        const int64_t count = p.channels - c0 < plan.block ? p.channels - c0 : plan.block;
        int64_t held[2] = {-1, -1};
        int64_t y = 0;
        for (int64_t i = first; i < last;) {
          while (image_ends[(y + 1) * plan.row_buckets - 1] <= i) ++y;
          const int64_t row_end = image_ends[(y + 1) * plan.row_buckets - 1];
          const int64_t stop = row_end < last ? row_end : last;
          const int64_t below = y + 1 < p.height ? y + 1 : y;
          if (plan.panel_floats == 0) {
            const Window<Element> window = {
                {map + c0 + y * p.features_stride[2], map + c0 + below * p.features_stride[2]},
                p.features_stride[3]};
            for (; i < stop; ++i) {
              const int64_t m = image_order[i];
              action(thread, base + m, points[base + m], window, c0, count);
            }
          } else {
            const int64_t needed[2] = {y, below};
            for (const int64_t wanted : needed) {
              if (held[wanted & 1] == wanted) continue;
              held[wanted & 1] = wanted;
              fill_panel<Element>(map + c0 * p.features_stride[1] + wanted * p.features_stride[2],
                                  p.features_stride[1], p.features_stride[3], p.width, count, pitch,
                                  panel + (wanted & 1) * p.width * pitch);
            }
            const Window<Float32> window = {
                {panel + (y & 1) * p.width * pitch, panel + (below & 1) * p.width * pitch}, pitch};
            for (; i < stop; ++i) {
              const int64_t m = image_order[i];
              action(thread, base + m, points[base + m], window, c0, count);
            }
          }
        }
      }
      begin = base + last;
    }
  });
}

template <typename Element>
struct Forward {
  const SampleFeaturesParams& p;
  const SamplePlan& plan;

  typedef typename Element::Storage T;

  template <typename Reader>
  PW_INLINE void write(int thread, const Reader& reader, const float (&weight)[4], int count,
                       int64_t channels, T* out) const {
    if (count == 0) {
      __builtin_memset(out, 0, static_cast<size_t>(channels) * sizeof(T));
    } else if (p.normalize) {
      float* vector = region<float>(p, plan.vectors_at) + thread * round_up(p.channels, 16);
      blend_normalized<Element, 0>(reader, weight, count, channels, vector, out);
    } else if (count == 4) {
      blend<Element, 4>(reader, weight, count, channels, out);
    } else {
      blend<Element, 0>(reader, weight, count, channels, out);
    }
  }

  template <typename Source>
  PW_INLINE void operator()(int thread, int64_t index, const PlannedPoint& point,
                            const Window<Source>& window, int64_t c0, int64_t channels) const {
    Rows<Source> rows;
    for (int k = 0; k < 4; ++k) {
      rows.corner[k] = window.row[point.row[k]] + point.column[k] * window.pitch;
    }
    write(thread, rows, point.weight, point.count, channels,
          static_cast<T*>(p.out) + index * p.channels + c0);
  }

  // Without a plan: every point finds its corners by itself.
  void direct() const {
    parallel_for(plan.threads, p.batch * p.num_points, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / p.num_points;
        const PointTaps taps = point_taps(p, b, i % p.num_points);
        Corners corners = corners_of(taps);
        const int count = keep_counting(corners);
        T* out = static_cast<T*>(p.out) + i * p.channels;
        const T* map = static_cast<const T*>(p.features) + b * p.features_stride[0];
        const T* corner[4];
        for (int k = 0; k < 4; ++k) {
          corner[k] = map + (taps.y.cell[0] + corners.row[k]) * p.features_stride[2] +
                      corners.column[k] * p.features_stride[3];
        }
        if (p.features_stride[1] == 1) {
          const Rows<Element> rows = {{corner[0], corner[1], corner[2], corner[3]}};
          write(thread, rows, corners.weight, count, p.channels, out);
        } else {
          const Strided<Element> rows = {{corner[0], corner[1], corner[2], corner[3]},
                                         p.features_stride[1]};
          write(thread, rows, corners.weight, count, p.channels, out);
        }
      }
    });
  }
};

template <typename Element>
Status forward_as(const SampleFeaturesParams& p, int threads) {
  const SamplePlan plan = sample_plan(p, threads);
  const Forward<Element> forward{p, plan};
  if (plan.sorted) {
    visit_sorted<Element>(p, plan, forward);
  } else {
    forward.direct();
  }
  return ok_status();
}

// Gradient of the points: products of grad_out with the four corners, then differences.
template <typename Element>
struct PointGradient {
  const SampleFeaturesBackwardParams& q;
  const SampleFeaturesParams& p;

  typedef typename Element::Storage T;

  template <typename Reader>
  PW_INLINE void add(int64_t index, const PointTaps& taps, const Reader& reader, int64_t c0,
                     int64_t count) const {
    float* grad = q.grad_points + 2 * index;
    float dots[4] = {};
    add_dots<Element>(reader, static_cast<const T*>(q.grad_out) + index * p.channels + c0, count,
                      dots);
    float part[2];
    point_gradient(taps, dots, part);
    grad[0] = c0 == 0 ? part[0] : grad[0] + part[0];
    grad[1] = c0 == 0 ? part[1] : grad[1] + part[1];
  }

  template <typename Source>
  PW_INLINE void operator()(int, int64_t index, const PlannedPoint&, const Window<Source>& window,
                            int64_t c0, int64_t count) const {
    const PointTaps taps = point_taps(p, index / p.num_points, index % p.num_points);
    Rows<Source> rows;
    for (int k = 0; k < 4; ++k) {
      // Both cells of an axis may be the same one at the border of the map.
      const int row = taps.y.cell[k / 2] == taps.y.cell[0] ? 0 : 1;
      rows.corner[k] = window.row[row] + taps.x.cell[k % 2] * window.pitch;
    }
    add(index, taps, rows, c0, count);
  }

  void direct(int threads) const {
    parallel_for(threads, p.batch * p.num_points, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / p.num_points;
        const PointTaps taps = point_taps(p, b, i % p.num_points);
        const T* map = static_cast<const T*>(p.features) + b * p.features_stride[0];
        Strided<Element> rows;
        rows.stride = p.features_stride[1];
        for (int k = 0; k < 4; ++k) {
          rows.corner[k] = map + taps.y.cell[k / 2] * p.features_stride[2] +
                           taps.x.cell[k % 2] * p.features_stride[3];
        }
        add(i, taps, rows, 0, p.channels);
      }
    });
  }
};

// Adds the weighted gradients of all points to a block of channels, point after point, in float32.
template <typename Element>
void add_points(const SampleFeaturesBackwardParams& q, const PlannedPoint* points, int64_t b,
                int64_t c0, int64_t count, float* cells) {
  typedef typename Element::Storage T;
  const SampleFeaturesParams& p = q.forward;
  const T* grad = static_cast<const T*>(q.grad_out) + b * p.num_points * p.channels + c0;
  for (int64_t m = 0; m < p.num_points; ++m, grad += p.channels) {
    const PlannedPoint& point = points[b * p.num_points + m];
    for (int k = 0; k < point.count; ++k) {
      const int64_t cell = (static_cast<int64_t>(point.bucket) + point.row[k]) * p.width;
      float* sums = cells + (cell + point.column[k]) * kGradientBlock;
      const VecF w = splat(point.weight[k]);
      each_chunk(count, [&](int64_t c, int n) __attribute__((always_inline)) {
        store(sums + c, fma(w, load_chunk<Element>(grad + c, n), load(sums + c)));
      });
    }
  }
}

// Rounds a block of sums [h, w, kGradientBlock] into grad_features with its strides.
template <typename Element>
void write_block(const SampleFeaturesBackwardParams& q, int64_t b, int64_t c0, int64_t count,
                 const float* cells) {
  typedef typename Element::Storage T;
  const SampleFeaturesParams& p = q.forward;
  T* map = static_cast<T*>(q.grad_features) + b * q.grad_stride[0] + c0 * q.grad_stride[1];
  for (int64_t y = 0; y < p.height; ++y) {
    const float* row = cells + y * p.width * kGradientBlock;
    T* target = map + y * q.grad_stride[2];
    store_row<Element>(row, kGradientBlock, p.width, count, target, q.grad_stride[1],
                       q.grad_stride[3]);
  }
}

template <typename Element>
void gradient_of_features(const SampleFeaturesBackwardParams& q, int threads) {
  const SampleFeaturesParams& p = q.forward;
  const GradientPlan plan = gradient_plan(p, threads);
  PlannedPoint* points = region<PlannedPoint>(p, 0);
  // One bucket per row: the bucket is the row, which is all that adding needs.
  plan_points(p, plan.threads, 31, 1, points);
  parallel_for(plan.threads, p.batch * plan.blocks, [&](int64_t begin, int64_t end, int thread) {
    float* cells = region<float>(p, plan.cells_at) + thread * plan.block_floats;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / plan.blocks;
      const int64_t c0 = i % plan.blocks * kGradientBlock;
      const int64_t count = p.channels - c0 < kGradientBlock ? p.channels - c0 : kGradientBlock;
      __builtin_memset(cells, 0, static_cast<size_t>(plan.block_floats) * sizeof(float));
      add_points<Element>(q, points, b, c0, count, cells);
      write_block<Element>(q, b, c0, count, cells);
    }
  });
}

template <typename Element>
Status backward_as(const SampleFeaturesBackwardParams& q, int threads) {
  const SampleFeaturesParams& p = q.forward;
  if (q.grad_features != nullptr) gradient_of_features<Element>(q, threads);
  if (q.grad_points != nullptr && p.num_points > 0) {
    const SamplePlan plan = sample_plan(p, threads);
    const PointGradient<Element> gradient{q, p};
    if (plan.sorted) {
      visit_sorted<Element>(p, plan, gradient);
    } else {
      gradient.direct(plan.threads);
    }
  }
  return ok_status();
}

Status check(const SampleFeaturesParams& p) {
  if (p.height <= 0 || p.width <= 0) return invalid("features must have at least one cell");
  if (p.height > kSampleMaxSide || p.width > kSampleMaxSide) {
    return unsupported("features must have at most 2^24 cells along each axis");
  }
  return ok_status();
}

Status forward(const SampleFeaturesParams& p, int threads) {
  if (p.batch == 0 || p.num_points == 0 || p.channels == 0) return ok_status();
  const Status status = check(p);
  if (!status.ok()) return status;
  switch (p.dtype) {
    case DType::kFloat32: return forward_as<Float32>(p, threads);
    case DType::kFloat16: return forward_as<Float16>(p, threads);
    case DType::kBFloat16: return forward_as<BFloat16>(p, threads);
    default: return unsupported("features must be float32, float16 or bfloat16");
  }
}

Status backward(const SampleFeaturesBackwardParams& q, int threads) {
  const SampleFeaturesParams& p = q.forward;
  if (p.batch == 0 || p.channels == 0) return ok_status();
  const Status status = check(p);
  if (!status.ok()) return status;
  switch (p.dtype) {
    case DType::kFloat32: return backward_as<Float32>(q, threads);
    case DType::kFloat16: return backward_as<Float16>(q, threads);
    case DType::kBFloat16: return backward_as<BFloat16>(q, threads);
    default: return unsupported("features must be float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace PW_LEVEL

extern const SampleFeaturesTable PW_LEVEL_TABLE(kSampleFeatures);
const SampleFeaturesTable PW_LEVEL_TABLE(kSampleFeatures) = {&PW_LEVEL::forward,
                                                             &PW_LEVEL::backward};

}  // namespace patchword
