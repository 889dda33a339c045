// SPDX-License-Identifier: Apache-2.0
// InfoNCE on the CPU: for a block of channels all points are read, map row by map row, then every
// query takes its products from them; the backward the same way round and back.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/simd.h"
#include "kernels/common/threads.h"
#include "kernels/point_infonce/infonce_plan.h"
#include "kernels/point_infonce/infonce_point.h"
#include "kernels/point_infonce/infonce_row.h"
#include "kernels/point_infonce/map_rows.h"
#include "kernels/sample_features/planned_points.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

struct Alone {
  static constexpr int64_t first = 0, step = 1;
  static PW_INLINE float sum(float value) { return value; }
  static PW_INLINE float max(float value) { return value; }
};

// The workspace, by name.
struct Space {
  PlannedPoint* points;
  uint32_t *ends, *order;
  float *vectors, *weights, *pulls;
  char* panels;

  Space(const PointInfonceParams& p, const InfoncePlan& plan) {
    char* base = static_cast<char*>(p.workspace);
    points = reinterpret_cast<PlannedPoint*>(base + plan.points_at);
    ends = reinterpret_cast<uint32_t*>(base + plan.ends_at);
    order = reinterpret_cast<uint32_t*>(base + plan.order_at);
    vectors = reinterpret_cast<float*>(base + plan.vectors_at);
    weights = reinterpret_cast<float*>(base + plan.weights_at);
    pulls = reinterpret_cast<float*>(base + plan.pulls_at);
    panels = base + plan.panels_at;
  }
};

// Corners of all points, and the points sorted by map row; false when an image does not exist.
bool plan_points(const PointInfonceParams& p, const InfoncePlan& plan, const Space& space) {
  int missing = 0;
  parallel_for(plan.threads, plan.points, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / (1 + p.keys), j = i % (1 + p.keys);
      const int64_t image = image_of(p, t, j);
      PlannedPoint& point = space.points[i];
      point.bucket = 0;
      if (image < 0 || image >= p.batch) {
        __atomic_store_n(&missing, 1, __ATOMIC_RELAXED);
        continue;
      }
      const PointTaps taps = taps_of(p, t, j);
      Corners corners = corners_of(taps);
      point.count = keep_counting(corners);
      for (int k = 0; k < 4; ++k) {
        point.weight[k] = corners.weight[k];
        point.column[k] = corners.column[k];
        point.row[k] = corners.row[k];
      }
      point.bucket = static_cast<uint32_t>(image * p.height + taps.y.cell[0]);
    }
  });
  if (missing != 0) return false;
  sort_points(space.points, plan.points, plan.rows, space.ends, space.order);
  return true;
}

// Where thread `part` begins, so that all have as much to do: rows and points both cost.
int64_t first_row(const InfoncePlan& plan, const uint32_t* ends, int64_t part) {
  const int64_t total = plan.points + kInfonceRowCost * plan.rows;
  const int64_t wanted = total * part / plan.threads;
  int64_t low = 0, high = plan.rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const int64_t before = (middle == 0 ? 0 : ends[middle - 1]) + kInfonceRowCost * middle;
    if (before < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// body(thread, begin, end) for each thread's share of the map rows.
template <typename Body>
void share_rows(const InfoncePlan& plan, const Space& space, Body&& body) {
  parallel_for(plan.threads, plan.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = begin; part < end; ++part) {
      body(part, first_row(plan, space.ends, part), first_row(plan, space.ends, part + 1));
    }
  });
}

// action(point, rows) for every point, with `rows` open at the point's own.
template <typename MapRows, typename Element, typename Action>
void visit_rows(const MapBlock<Element>& map, const InfoncePlan& plan, const Space& space,
                Action&& action) {
  share_rows(plan, space, [&](int64_t thread, int64_t begin, int64_t end) {
    MapRows rows(map, space.panels + thread * plan.panel_bytes);
    int64_t i = begin == 0 ? 0 : space.ends[begin - 1];
    for (int64_t r = begin; r < end; ++r) {
      if (i == space.ends[r]) continue;
      rows.open(r);
      for (; i < space.ends[r]; ++i) action(static_cast<int64_t>(space.order[i]), rows);
    }
  });
}

template <typename Element, typename Action>
void visit_points(const MapBlock<Element>& map, const InfoncePlan& plan, const Space& space,
                  Action&& action) {
  if (map.stride[1] == 1) {
    visit_rows<RowsInPlace<Element>>(map, plan, space, action);
  } else {
    visit_rows<RowsTransposed<Element>>(map, plan, space, action);
  }
}

// vectors[point] = the block's channels at the point, 0 up to a whole number of lanes.
template <typename Element>
void read_vectors(const MapBlock<Element>& map, const InfoncePlan& plan, const Space& space) {
  const bool tail = map.channels % kLanes != 0;
  visit_points(map, plan, space, [&](int64_t index, auto& rows) __attribute__((always_inline)) {
    typedef typename std::remove_reference_t<decltype(rows)>::Source Source;
    const PlannedPoint& point = space.points[index];
    float* vector = space.vectors + index * kInfonceBlock;
    if (tail || point.count == 0) __builtin_memset(vector, 0, kInfonceBlock * sizeof(float));
    if (point.count == 0) return;
    Rows<Source> reader;
    for (int k = 0; k < point.count; ++k) {
      reader.corner[k] = rows.cell(point.row[k], point.column[k]);
    }
    if (point.count == 4) {
      blend<Float32, 4>(reader, point.weight, 4, map.channels, vector);
    } else {
      blend<Float32, 0>(reader, point.weight, point.count, map.channels, vector);
    }
  });
}

// Adds the block's channels to a query's products with its keys and to the squares of all.
void add_products(const float* vectors, int64_t keys, int64_t channels, float* dots,
                  float* squares) {
  for (int64_t j0 = 0; j0 <= keys; j0 += kLanes) {
    VecF product[kLanes], square[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const float* row = vectors + (j0 + i <= keys ? j0 + i : keys) * kInfonceBlock;
      product[i] = square[i] = VecF{};
      for (int64_t c = 0; c < channels; c += kLanes) {
        const VecF value = load(row + c);
        product[i] = fma(load(vectors + c), value, product[i]);
        square[i] = fma(value, value, square[i]);
      }
    }
    transpose(product);
    transpose(square);
    for (int i = 1; i < kLanes; ++i) {
      product[0] += product[i];
      square[0] += square[i];
    }
    for (int i = 0; i < kLanes && j0 + i <= keys; ++i) {
      squares[j0 + i] += square[0][i];
      if (j0 + i > 0) dots[j0 + i - 1] += product[0][i];
    }
  }
}

template <typename Element>
Status forward_as(const PointInfonceParams& p, int threads) {
  const InfoncePlan plan = infonce_plan(p, threads, false);
  const Space space(p, plan);
  if (!plan_points(p, plan, space)) return invalid("images must lie in 0..B-1");
  const int64_t vectors = 1 + p.keys;
  __builtin_memset(p.dots, 0, static_cast<size_t>(p.queries * p.keys) * sizeof(float));
  __builtin_memset(p.norms, 0, static_cast<size_t>(plan.points) * sizeof(float));
  for (int64_t c0 = 0; c0 < p.channels; c0 += kInfonceBlock) {
    const int64_t count = p.channels - c0 < kInfonceBlock ? p.channels - c0 : kInfonceBlock;
    read_vectors(map_block<Element>(p, c0, count), plan, space);
    parallel_for(plan.threads, p.queries, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        add_products(space.vectors + t * vectors * kInfonceBlock, p.keys, count,
                     p.dots + t * p.keys, p.norms + t * vectors);
      }
    });
  }
  parallel_for(plan.threads, p.queries, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* norms = p.norms + t * vectors;
      for (int64_t j = 0; j < vectors; ++j) norms[j] = __builtin_sqrtf(norms[j]);
      p.losses[t] =
          row_loss(Alone{}, norms, p.dots + t * p.keys, p.keys, p.sharpness, p.normalize != 0);
    }
  });
  return ok_status();
}

// Replaces a query's vectors by their gradients.
void turn_into_gradients(float* vectors, int64_t keys, int64_t channels, const float* weights,
                         const float* pulls) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const VecF query = load(vectors + c);
    VecF sum = -splat(pulls[0]) * query;
    for (int64_t j = 1; j <= keys; ++j) {
      float* row = vectors + j * kInfonceBlock + c;
      const VecF key = load(row), weight = splat(weights[j]);
      sum = fma(weight, key, sum);
      store(row, fma(weight, query, -splat(pulls[j]) * key));
    }
    store(vectors + c, sum);
  }
}

// Adds the points of row r to the sums of rows r and r + 1, or to those of r + 1 alone.
void add_row(const Space& space, int64_t r, bool below_only, int64_t channels,
             float* const (&sums)[2]) {
  for (int64_t i = r == 0 ? 0 : space.ends[r - 1]; i < space.ends[r]; ++i) {
    const int64_t index = space.order[i];
    const PlannedPoint& point = space.points[index];
    const float* vector = space.vectors + index * kInfonceBlock;
    for (int k = 0; k < point.count; ++k) {
      if (below_only && point.row[k] == 0) continue;
      float* cell = sums[(r + point.row[k]) & 1] + point.column[k] * kInfonceBlock;
      const VecF weight = splat(point.weight[k]);
      for (int64_t c = 0; c < channels; c += kLanes) {
        store(cell + c, fma(weight, load(vector + c), load(cell + c)));
      }
    }
  }
}

// Every row of the gradient is summed in float32 in the order of its points, whichever thread has
// it, and rounded once.
template <typename Element>
void scatter_gradients(const PointInfonceBackwardParams& q, const InfoncePlan& plan,
                       const Space& space, int64_t c0, int64_t count) {
  const PointInfonceParams& p = q.forward;
  const int64_t floats = p.width * kInfonceBlock;
  typename Element::Storage* grad =
      static_cast<typename Element::Storage*>(q.grad_features) + c0 * q.grad_stride[1];
  share_rows(plan, space, [&](int64_t thread, int64_t begin, int64_t end) {
    float* panel = reinterpret_cast<float*>(space.panels + thread * plan.panel_bytes);
    float* const sums[2] = {panel, panel + floats};
    __builtin_memset(panel, 0, static_cast<size_t>(2 * floats) * sizeof(float));
    if (begin < end && begin % p.height != 0) {
      add_row(space, begin - 1, true, count, sums);
    }
    for (int64_t r = begin; r < end; ++r) {
      add_row(space, r, false, count, sums);
      store_row<Element>(sums[r & 1], kInfonceBlock, p.width, count,
                         grad + r / p.height * q.grad_stride[0] + r % p.height * q.grad_stride[2],
                         q.grad_stride[1], q.grad_stride[3]);
      __builtin_memset(sums[r & 1], 0, static_cast<size_t>(floats) * sizeof(float));
    }
  });
}

// Products of the vectors' gradients with the four corners, then differences; adds up over blocks.
template <typename Element>
void gradient_of_points(const PointInfonceBackwardParams& q, const MapBlock<Element>& map,
                        const InfoncePlan& plan, const Space& space, bool first) {
  const PointInfonceParams& p = q.forward;
  visit_points(map, plan, space, [&](int64_t index, auto& rows) __attribute__((always_inline)) {
    typedef typename std::remove_reference_t<decltype(rows)>::Source Source;
    const int64_t t = index / (1 + p.keys), j = index % (1 + p.keys);
    const PointTaps taps = taps_of(p, t, j);
    Rows<Source> reader;
    for (int k = 0; k < 4; ++k) {
      // Both cells of an axis may be the same one at the border of the map.
      const int below = taps.y.cell[k / 2] == taps.y.cell[0] ? 0 : 1;
      reader.corner[k] = rows.cell(below, taps.x.cell[k % 2]);
    }
    float dots[4] = {};
    add_dots<Float32>(reader, space.vectors + index * kInfonceBlock, map.channels, dots);
    float part[2];
    point_gradient(taps, dots, part);
    float* grad =
        j == 0 ? q.grad_query_points + 2 * t : q.grad_key_points + 2 * (t * p.keys + j - 1);
    grad[0] = first ? part[0] : grad[0] + part[0];
    grad[1] = first ? part[1] : grad[1] + part[1];
  });
}

template <typename Element>
Status backward_as(const PointInfonceBackwardParams& q, int threads) {
  const PointInfonceParams& p = q.forward;
  const InfoncePlan plan = infonce_plan(p, threads, true);
  const Space space(p, plan);
  if (!plan_points(p, plan, space)) return invalid("images must lie in 0..B-1");
  const int64_t vectors = 1 + p.keys;
  parallel_for(plan.threads, p.queries, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      row_factors(Alone{}, p.norms + t * vectors, p.dots + t * p.keys, p.keys, p.sharpness,
                  p.normalize != 0, q.grad[t], space.weights + t * vectors,
                  space.pulls + t * vectors);
    }
  });
  for (int64_t c0 = 0; c0 < p.channels; c0 += kInfonceBlock) {
    const int64_t count = p.channels - c0 < kInfonceBlock ? p.channels - c0 : kInfonceBlock;
    const MapBlock<Element> map = map_block<Element>(p, c0, count);
    read_vectors(map, plan, space);
    parallel_for(plan.threads, p.queries, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        turn_into_gradients(space.vectors + t * vectors * kInfonceBlock, p.keys, count,
                            space.weights + t * vectors, space.pulls + t * vectors);
      }
    });
    if (q.grad_features != nullptr) scatter_gradients<Element>(q, plan, space, c0, count);
    if (q.grad_query_points != nullptr) gradient_of_points(q, map, plan, space, c0 == 0);
  }
  return ok_status();
}

Status forward(const PointInfonceParams& p, int threads) {
  switch (p.dtype) {
    case DType::kFloat32: return forward_as<Float32>(p, threads);
    case DType::kFloat16: return forward_as<Float16>(p, threads);
    case DType::kBFloat16: return forward_as<BFloat16>(p, threads);
    default: return unsupported("features must be float32, float16 or bfloat16");
  }
}

Status backward(const PointInfonceBackwardParams& q, int threads) {
  switch (q.forward.dtype) {
    case DType::kFloat32: return backward_as<Float32>(q, threads);
    case DType::kFloat16: return backward_as<Float16>(q, threads);
    case DType::kBFloat16: return backward_as<BFloat16>(q, threads);
    default: return unsupported("features must be float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace PW_LEVEL

extern const PointInfonceTable PW_LEVEL_TABLE(kPointInfonce);
const PointInfonceTable PW_LEVEL_TABLE(kPointInfonce) = {&PW_LEVEL::forward, &PW_LEVEL::backward};

}  // namespace patchword
