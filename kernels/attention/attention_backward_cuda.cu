// SPDX-License-Identifier: Apache-2.0
// Gradients of softmax attention, bitwise repeatable: one kernel owns keys, one owns queries, and
// both work the probabilities out again from the log-sum-exp.
#include "kernels/attention/attention_forms.h"
#include "kernels/attention/attention_tiles.cuh"

namespace patchword {
namespace {

template <class T, int D>
struct BackwardShape {
  // Rows of a tile that is walked over; more of wide heads would not fit in registers.
  static constexpr int kColumns = sizeof(T) == 2 && D <= 64 ? 32 : 16;
  static constexpr int kStages = sizeof(T) == 2 ? 2 : 1;
  static constexpr int kSharedBytes =
      2 * Tile<T, D>::bytes(kRows) + 2 * kStages * Tile<T, D>::bytes(kColumns);
};

struct BackwardPlan {
  std::int64_t units0, units1;
  std::int64_t delta_offset[kAttentionMaxStreams];
  bool aligned[kAttentionMaxStreams];
};

// Rows of a stream in the order of `delta`: [batch, head, query], a ragged set as one element.
inline std::int64_t delta_rows(const AttentionParams& p, const AttentionStream& s) {
  return p.heads * attention_rows(s.query_offsets, p.batch, s.num_queries);
}
PW_DEVICE const float* delta_of(const AttentionParams& p, const BackwardPlan& plan, int stream,
                                const Span& span, std::int64_t head) {
  const AttentionStream& s = p.streams[stream];
  const std::int64_t batch = s.query_offsets == nullptr ? span.batch : 0;
  return static_cast<const float*>(p.workspace) +
         (stream == 0 ? plan.delta_offset[0] : plan.delta_offset[1]) +
         (batch * p.heads + head) * s.num_queries + span.first;
}

// delta = rowsum(grad_out * out) - grad_lse, a warp a row.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    row_delta(AttentionBackwardParams p, int stream, std::int64_t rows, float* delta) {
  const std::int64_t index =
      static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + simt::warp_id();
  if (index >= rows) return;
  const AttentionStream& s = p.forward.streams[stream];
  const AttentionGradStream& g = p.streams[stream];
  const std::int64_t row = index % s.num_queries, rest = index / s.num_queries;
  const std::int64_t head = rest % p.forward.heads, batch = rest / p.forward.heads;
  const T* out = row_pointer<T>(s.out, s.out_stride, batch, head, row);
  const T* grad = row_pointer<T>(g.grad_out, g.grad_out_stride, batch, head, row);
  float sum = 0.0f;
  for (int i = static_cast<int>(simt::lane_id()); i < p.forward.dim; i += 32) {
    sum += to_float(out[i]) * to_float(grad[i]);
  }
  sum = simt::warp_reduce(sum, simt::Sum{});
  if (simt::lane_id() == 0) {
    const float lse_grad = g.grad_lse == nullptr
                               ? 0.0f
                               : *row_pointer<float>(g.grad_lse, s.lse_stride, batch, head, row);
    delta[index] = sum - lse_grad;
  }
}

// The log-sum-exp in base 2, such that exp2(score - it) is 0 for rows without keys.
PW_DEVICE float base_of(const float* lse, std::int64_t row, std::int64_t stride, bool there) {
  const float value = there ? lse[row * stride] * kLog2E : INFINITY;
  return value == -INFINITY ? INFINITY : value;
}

// grad_k and grad_v of 64 keys: walks over the queries. Scores are held transposed, a row a key.
template <class T, int D>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads, 2)
    key_gradients(AttentionBackwardParams p, BackwardPlan plan) {
  using Shape = BackwardShape<T, D>;
  constexpr int kQueries = Shape::kColumns, kStages = Shape::kStages, kColumns = kQueries / 8;
  constexpr int kTile = kQueries * Tile<T, D>::kStride;
  PW_DYNAMIC_SHARED(T, arena);
  PW_SHARED(float, bases, kStages* kQueries);
  PW_SHARED(float, deltas, kStages* kQueries);
  T* const k_tile = arena;
  T* const v_tile = k_tile + kRows * Tile<T, D>::kStride;
  T* const q_tiles = v_tile + kRows * Tile<T, D>::kStride;
  T* const grad_tiles = q_tiles + kStages * kTile;

  const AttentionParams& f = p.forward;
  const Place place = find_place(plan.units0, plan.units1, f.heads);
  const AttentionStream& s = f.streams[place.stream];
  const AttentionGradStream& g = p.streams[place.stream];
  // Indexing a small array of a parameter would copy it to local memory.
  const bool aligned = place.stream == 0 ? plan.aligned[0] : plan.aligned[1];
  const Span span = find_span(s.key_offsets, f.batch, s.num_keys, place.unit);
  if (span.batch < 0) return;
  const Span queries = rows_of(s.query_offsets, s.num_queries, span.batch);
  const Keys keys = keys_of(s, span);
  const int dim = static_cast<int>(f.dim);
  const T* k = row_pointer<T>(s.k, s.k_stride, span.batch, place.head, span.first);
  const T* v = row_pointer<T>(s.v, s.v_stride, span.batch, place.head, span.first);
  const T* q = row_pointer<T>(s.q, s.q_stride, span.batch, place.head, queries.first);
  const T* grad =
      row_pointer<T>(g.grad_out, g.grad_out_stride, span.batch, place.head, queries.first);
  const float* lse = row_pointer<float>(s.lse, s.lse_stride, span.batch, place.head, queries.first);
  const float* delta = delta_of(f, plan, place.stream, queries, place.head);

  const int tiles = static_cast<int>(simt::ceil_div(queries.count, std::int64_t{kQueries}));
  auto fetch = [&](int tile) {
    if (tile < tiles) {
      const int stage = tile % kStages;
      const std::int64_t start = static_cast<std::int64_t>(tile) * kQueries;
      load_tile<T, D>(q_tiles + stage * kTile, kQueries, q, s.q_stride[2], start, dim, aligned,
                      Below{queries.count});
      load_tile<T, D>(grad_tiles + stage * kTile, kQueries, grad, g.grad_out_stride[2], start, dim,
                      aligned, Below{queries.count});
      if (threadIdx.x < kQueries) {
        const std::int64_t row = start + threadIdx.x;
        const bool there = row < queries.count;
        bases[stage * kQueries + threadIdx.x] = base_of(lse, row, s.lse_stride[2], there);
        deltas[stage * kQueries + threadIdx.x] = there ? delta[row] : 0.0f;
      }
    }
    simt::cp_async_commit();
  };

  load_tile<T, D>(k_tile, kRows, k, s.k_stride[2], span.start, dim, aligned, Visible{keys});
  load_tile<T, D>(v_tile, kRows, v, s.v_stride[2], span.start, dim, aligned, Visible{keys});
  fetch(0);

  const int warp_row = static_cast<int>(simt::warp_id()) * 16;
  const int group = static_cast<int>(simt::lane_id()) / 4;
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  const T* k_rows = k_tile + warp_row * Tile<T, D>::kStride;
  const T* v_rows = v_tile + warp_row * Tile<T, D>::kStride;
  bool taken[2];
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    taken[half] = keys.visible(span.start + warp_row + group + 8 * half);
  }
  const float scale = s.scale * kLog2E;
  // A warp without rows only copies.
  const bool busy = span.start + warp_row < span.count;
  float grad_k[D / 8][4], grad_v[D / 8][4];
  clear(grad_k);
  clear(grad_v);

  for (int tile = 0; tile < tiles; ++tile) {
    if constexpr (kStages > 1) fetch(tile + 1);
    simt::cp_async_wait_group<kStages - 1>();
    simt::sync_block();
    const int stage = tile % kStages;
    const T* q_tile = q_tiles + stage * kTile;
    const T* grad_tile = grad_tiles + stage * kTile;
    if (busy) {
      float prob[kColumns][4], ds[kColumns][4];
      clear(prob);
      clear(ds);
      Products<T, D>::dot_rows(prob, k_rows, q_tile);
      PW_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float base = bases[stage * kQueries + n * 8 + 2 * quad + i % 2];
          prob[n][i] = taken[i / 2] ? simt::fast_exp2(prob[n][i] * scale - base) : 0.0f;
        }
      }
      Products<T, D>::accumulate(grad_v, prob, grad_tile);
      Products<T, D>::dot_rows(ds, v_rows, grad_tile);
      PW_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float row_delta = deltas[stage * kQueries + n * 8 + 2 * quad + i % 2];
          ds[n][i] = taken[i / 2] ? prob[n][i] * (ds[n][i] - row_delta) * s.scale : 0.0f;
        }
      }
      Products<T, D>::accumulate(grad_k, ds, q_tile);
    }
    simt::sync_block();
    if constexpr (kStages == 1) fetch(tile + 1);
  }
  simt::cp_async_wait_all();
  const float one[2] = {1.0f, 1.0f};
  store_rows<T, D>(row_pointer<T>(g.grad_k, g.grad_k_stride, span.batch, place.head, span.first),
                   g.grad_k_stride[2], span.start, span.count, dim, grad_k, one);
  store_rows<T, D>(row_pointer<T>(g.grad_v, g.grad_v_stride, span.batch, place.head, span.first),
                   g.grad_v_stride[2], span.start, span.count, dim, grad_v, one);
}

// grad_q of 64 queries: walks over the keys.
template <class T, int D>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads, 2)
    query_gradients(AttentionBackwardParams p, BackwardPlan plan) {
  using Shape = BackwardShape<T, D>;
  constexpr int kKeys = Shape::kColumns, kStages = Shape::kStages, kColumns = kKeys / 8;
  constexpr int kTile = kKeys * Tile<T, D>::kStride;
  PW_DYNAMIC_SHARED(T, arena);
  PW_SHARED(unsigned char, shown, kStages* kKeys);
  T* const q_tile = arena;
  T* const grad_tile = q_tile + kRows * Tile<T, D>::kStride;
  T* const k_tiles = grad_tile + kRows * Tile<T, D>::kStride;
  T* const v_tiles = k_tiles + kStages * kTile;

  const AttentionParams& f = p.forward;
  const Place place = find_place(plan.units0, plan.units1, f.heads);
  const AttentionStream& s = f.streams[place.stream];
  const AttentionGradStream& g = p.streams[place.stream];
  // Indexing a small array of a parameter would copy it to local memory.
  const bool aligned = place.stream == 0 ? plan.aligned[0] : plan.aligned[1];
  const Span span = find_span(s.query_offsets, f.batch, s.num_queries, place.unit);
  if (span.batch < 0) return;
  const Span key_span = rows_of(s.key_offsets, s.num_keys, span.batch);
  const Keys keys = keys_of(s, key_span);
  const int dim = static_cast<int>(f.dim);
  const T* q = row_pointer<T>(s.q, s.q_stride, span.batch, place.head, span.first);
  const T* grad = row_pointer<T>(g.grad_out, g.grad_out_stride, span.batch, place.head, span.first);
  const T* k = row_pointer<T>(s.k, s.k_stride, span.batch, place.head, key_span.first);
  const T* v = row_pointer<T>(s.v, s.v_stride, span.batch, place.head, key_span.first);
  const float* lse = row_pointer<float>(s.lse, s.lse_stride, span.batch, place.head, span.first);
  const float* delta = delta_of(f, plan, place.stream, span, place.head);

  const int tiles = static_cast<int>(simt::ceil_div(keys.limit, std::int64_t{kKeys}));
  auto fetch = [&](int tile) {
    if (tile < tiles) {
      const int stage = tile % kStages;
      const std::int64_t start = static_cast<std::int64_t>(tile) * kKeys;
      load_tile<T, D>(k_tiles + stage * kTile, kKeys, k, s.k_stride[2], start, dim, aligned,
                      Visible{keys});
      load_tile<T, D>(v_tiles + stage * kTile, kKeys, v, s.v_stride[2], start, dim, aligned,
                      Visible{keys});
      if (threadIdx.x < kKeys) {
        shown[stage * kKeys + threadIdx.x] = keys.visible(start + threadIdx.x) ? 1 : 0;
      }
    }
    simt::cp_async_commit();
  };

  load_tile<T, D>(q_tile, kRows, q, s.q_stride[2], span.start, dim, aligned, Below{span.count});
  load_tile<T, D>(grad_tile, kRows, grad, g.grad_out_stride[2], span.start, dim, aligned,
                  Below{span.count});
  fetch(0);

  const int warp_row = static_cast<int>(simt::warp_id()) * 16;
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  const T* q_rows = q_tile + warp_row * Tile<T, D>::kStride;
  const T* grad_rows = grad_tile + warp_row * Tile<T, D>::kStride;
  float base[2], row_delta[2];
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row =
        span.start + warp_row + static_cast<int>(simt::lane_id()) / 4 + 8 * half;
    const bool there = row < span.count;
    base[half] = base_of(lse, row, s.lse_stride[2], there);
    row_delta[half] = there ? delta[row] : 0.0f;
  }
  const float scale = s.scale * kLog2E;
  // A warp without rows only copies.
  const bool busy = span.start + warp_row < span.count;
  float grad_q[D / 8][4];
  clear(grad_q);

  for (int tile = 0; tile < tiles; ++tile) {
    if constexpr (kStages > 1) fetch(tile + 1);
    simt::cp_async_wait_group<kStages - 1>();
    simt::sync_block();
    const int stage = tile % kStages;
    if (busy) {
      float prob[kColumns][4], ds[kColumns][4];
      clear(prob);
      clear(ds);
      Products<T, D>::dot_rows(prob, q_rows, k_tiles + stage * kTile);
      Products<T, D>::dot_rows(ds, grad_rows, v_tiles + stage * kTile);
      PW_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) {
          const bool taken = shown[stage * kKeys + n * 8 + 2 * quad + i % 2] != 0;
          const float probability = simt::fast_exp2(prob[n][i] * scale - base[i / 2]);
          ds[n][i] = taken ? probability * (ds[n][i] - row_delta[i / 2]) * s.scale : 0.0f;
        }
      }
      Products<T, D>::accumulate(grad_q, ds, k_tiles + stage * kTile);
    }
    simt::sync_block();
    if constexpr (kStages == 1) fetch(tile + 1);
  }
  simt::cp_async_wait_all();
  const float one[2] = {1.0f, 1.0f};
  store_rows<T, D>(row_pointer<T>(g.grad_q, g.grad_q_stride, span.batch, place.head, span.first),
                   g.grad_q_stride[2], span.start, span.count, dim, grad_q, one);
}

template <class T>
simt::Status launch_deltas(const AttentionBackwardParams& p, BackwardPlan& plan, void* stream) {
  simt::Status status;
  std::int64_t before = 0;
  for (int i = 0; i < p.forward.num_streams && status.ok(); ++i) {
    const std::int64_t rows = delta_rows(p.forward, p.forward.streams[i]);
    plan.delta_offset[i] = before;
    if (rows == 0) continue;
    const std::int64_t blocks = simt::ceil_div(rows, std::int64_t{kThreads / 32});
    if (blocks > INT32_MAX) return too_many_blocks();
    status = PW_LAUNCH(row_delta<T>, static_cast<unsigned>(blocks), kThreads, 0, stream, p, i, rows,
                       static_cast<float*>(p.forward.workspace) + before);
    before += rows;
  }
  return status;
}

template <class T, int D>
simt::Status launch_backward(const AttentionBackwardParams& p, void* stream) {
  constexpr int kBytes = BackwardShape<T, D>::kSharedBytes;
  BackwardPlan plan{};
  std::int64_t key_units[kAttentionMaxStreams] = {0, 0};
  std::int64_t query_units[kAttentionMaxStreams] = {0, 0};
  for (int i = 0; i < p.forward.num_streams; ++i) {
    const AttentionStream& s = p.forward.streams[i];
    key_units[i] = count_units(s.key_offsets, p.forward.batch, s.num_keys);
    query_units[i] = count_units(s.query_offsets, p.forward.batch, s.num_queries);
    plan.aligned[i] =
        rows_aligned<T>(s.q, s.q_stride, p.forward.dim) &&
        rows_aligned<T>(s.k, s.k_stride, p.forward.dim) &&
        rows_aligned<T>(s.v, s.v_stride, p.forward.dim) &&
        rows_aligned<T>(p.streams[i].grad_out, p.streams[i].grad_out_stride, p.forward.dim);
  }
  simt::Status status = launch_deltas<T>(p, plan, stream);
  const std::int64_t key_blocks = (key_units[0] + key_units[1]) * p.forward.heads;
  const std::int64_t query_blocks = (query_units[0] + query_units[1]) * p.forward.heads;
  if (key_blocks > INT32_MAX || query_blocks > INT32_MAX) return too_many_blocks();
  if (status.ok()) status = PW_RAISE_DYNAMIC_SHARED((key_gradients<T, D>), kBytes);
  if (status.ok() && key_blocks > 0) {
    plan.units0 = key_units[0];
    plan.units1 = key_units[1];
    status = PW_LAUNCH((key_gradients<T, D>), static_cast<unsigned>(key_blocks), kThreads, kBytes,
                       stream, p, plan);
  }
  if (status.ok()) status = PW_RAISE_DYNAMIC_SHARED((query_gradients<T, D>), kBytes);
  if (status.ok() && query_blocks > 0) {
    plan.units0 = query_units[0];
    plan.units1 = query_units[1];
    status = PW_LAUNCH((query_gradients<T, D>), static_cast<unsigned>(query_blocks), kThreads,
                       kBytes, stream, p, plan);
  }
  return status;
}

template <class T>
simt::Status backward_any(const AttentionBackwardParams& p, void* stream) {
  if (attention_form(p.forward, simt::multiprocessor_count()).warps) {
    return attention_warps_backward(p, stream);
  }
  if (p.forward.dim <= 32) return launch_backward<T, 32>(p, stream);
  if (p.forward.dim <= 64) return launch_backward<T, 64>(p, stream);
  return launch_backward<T, 128>(p, stream);
}

}  // namespace
}  // namespace patchword

PW_EXPORT std::int64_t pw_cuda_attention_backward_workspace(
    const patchword::AttentionBackwardParams* p) {
  using namespace patchword;
  const AttentionParams& f = p->forward;
  if (attention_form(f, simt::multiprocessor_count()).warps) return 0;
  std::int64_t rows = 0;
  for (int i = 0; i < f.num_streams; ++i) rows += delta_rows(f, f.streams[i]);
  return rows * static_cast<std::int64_t>(sizeof(float));
}

PW_EXPORT int pw_cuda_attention_backward(const patchword::AttentionBackwardParams* p, void* stream,
                                         char* message, std::size_t message_length) {
  using namespace patchword;
  switch (p->forward.dtype) {
    case DType::kFloat32: return backward_any<float>(*p, stream).report(message, message_length);
    case DType::kFloat16: return backward_any<Half>(*p, stream).report(message, message_length);
    default: return backward_any<BFloat16>(*p, stream).report(message, message_length);
  }
}
