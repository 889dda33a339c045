// SPDX-License-Identifier: Apache-2.0
// Gradients of attention of tiny sets: a warp per 16 rows of one head, nothing in shared memory, so
// that warps never wait for one another.
//
// Any lengths are right; sets of at most 16 rows are fast, since then all scores of a warp are one
// 16 x 16 tile that is made once.
#include "kernels/attention/attention_forms.h"
#include "kernels/attention/attention_warp_tiles.cuh"

namespace patchword {
namespace {

struct WarpGradPlan {
  std::int64_t query_units0, query_units1, key_units0, key_units1;  // per head
  bool aligned0, aligned1;
};

// One head of a stream in the backward pass.
template <class T>
struct GradRows {
  Rows<T> q, k, v, out, grad_out;
  const float *lse, *grad_lse;  // of the first query; the latter may be null
  std::int64_t lse_stride;
  float scale;

  // For rows group and group + 8 from `row0` on: the log-sum-exp in base 2, infinite where nothing
  // takes part, and delta = rowsum(grad_out * out) - grad_lse.
  PW_DEVICE void row_state(std::int64_t row0, float (&base)[2], float (&delta)[2]) const {
    const int group = static_cast<int>(simt::lane_id()) / 4;
    const int quad = static_cast<int>(simt::lane_id()) % 4;
    PW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = row0 + group + 8 * half;
      float sum = 0.0f;
      for (int start = 0; start < q.dim; start += 4 * kSlice<T>) {
        const Slice a = out.slice(row, start + quad * kSlice<T>);
        const Slice b = grad_out.slice(row, start + quad * kSlice<T>);
        PW_UNROLL
        for (int i = 0; i < kSlice<T>; ++i) sum += element<T>(a, i) * element<T>(b, i);
      }
      sum = simt::warp_reduce(sum, simt::Sum{}, 4);
      const bool there = q.there.visible(row);
      const float value = there ? lse[row * lse_stride] * kLog2E : INFINITY;
      base[half] = value == -INFINITY ? INFINITY : value;
      delta[half] = there && grad_lse != nullptr ? sum - grad_lse[row * lse_stride] : sum;
    }
  }
};

template <class T>
PW_DEVICE GradRows<T> grad_rows(const AttentionStream& s, const AttentionGradStream& g,
                                std::int64_t head, const Span& queries, const Span& key_span,
                                int dim, bool aligned) {
  const Keys all{queries.count, nullptr}, keys = keys_of(s, key_span);
  const std::int64_t b = queries.batch, q0 = queries.first, k0 = key_span.first;
  return GradRows<T>{
      Rows<T>{row_pointer<T>(s.q, s.q_stride, b, head, q0), s.q_stride[2], all, dim, aligned},
      Rows<T>{row_pointer<T>(s.k, s.k_stride, b, head, k0), s.k_stride[2], keys, dim, aligned},
      Rows<T>{row_pointer<T>(s.v, s.v_stride, b, head, k0), s.v_stride[2], keys, dim, aligned},
      Rows<T>{row_pointer<T>(static_cast<const void*>(s.out), s.out_stride, b, head, q0),
              s.out_stride[2], all, dim, aligned},
      Rows<T>{row_pointer<T>(g.grad_out, g.grad_out_stride, b, head, q0), g.grad_out_stride[2], all,
              dim, aligned},
      row_pointer<float>(s.lse, s.lse_stride, b, head, q0),
      g.grad_lse == nullptr ? nullptr : row_pointer<float>(g.grad_lse, s.lse_stride, b, head, q0),
      s.lse_stride[2],
      s.scale};
}

// grad_q of 16 queries.
template <class T>
PW_DEVICE void query_tile(const GradRows<T>& r, std::int64_t row0, T* grad_q,
                          std::int64_t grad_stride) {
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  const std::int64_t tiles = simt::ceil_div(r.k.there.limit, std::int64_t{kWarpRows});
  const float scale = r.scale * kLog2E, one[2] = {1.0f, 1.0f};
  float base[2], delta[2], ds[2][4];
  r.row_state(row0, base, delta);
  for (int first = 0; first < r.q.dim; first += kPass<T>) {
    float acc[kSlice<T>][4];
    clear(acc);
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      if (tiles > 1 || first == 0) {
        float c[2][4];
        score_tile(c, r.q, row0, r.k, tile * kWarpRows);
        score_tile(ds, r.grad_out, row0, r.v, tile * kWarpRows);
        PW_UNROLL
        for (int n = 0; n < 2; ++n) {
          PW_UNROLL
          for (int i = 0; i < 4; ++i) {
            const bool taken = r.k.there.visible(tile * kWarpRows + n * 8 + 2 * quad + i % 2);
            const float probability = simt::fast_exp2(c[n][i] * scale - base[i / 2]);
            ds[n][i] = taken ? probability * (ds[n][i] - delta[i / 2]) * r.scale : 0.0f;
          }
        }
      }
      gather_tile(acc, ds, r.k, tile * kWarpRows, first);
    }
    store_pass(grad_q, grad_stride, row0, r.q.there.limit, r.q.dim, r.q.aligned, acc, first, one);
  }
}

// grad_k and grad_v of 16 keys, of which `count` exist: scores are held transposed.
template <class T>
PW_DEVICE void key_tile(const GradRows<T>& r, std::int64_t row0, std::int64_t count, T* grad_k,
                        std::int64_t k_stride, T* grad_v, std::int64_t v_stride) {
  const int group = static_cast<int>(simt::lane_id()) / 4;
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  const std::int64_t tiles = simt::ceil_div(r.q.there.limit, std::int64_t{kWarpRows});
  const float scale = r.scale * kLog2E, one[2] = {1.0f, 1.0f};
  float prob[2][4], ds[2][4];
  for (int first = 0; first < r.q.dim; first += kPass<T>) {
    float acc_k[kSlice<T>][4], acc_v[kSlice<T>][4];
    clear(acc_k);
    clear(acc_v);
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      if (tiles > 1 || first == 0) {
        float base[2], delta[2];
        r.row_state(tile * kWarpRows, base, delta);
        score_tile(prob, r.k, row0, r.q, tile * kWarpRows);
        score_tile(ds, r.v, row0, r.grad_out, tile * kWarpRows);
        PW_UNROLL
        for (int n = 0; n < 2; ++n) {
          PW_UNROLL
          for (int j = 0; j < 2; ++j) {
            // Queries are columns here: row 8 n + 2 quad + j of row_state.
            const unsigned owner = 4u * static_cast<unsigned>(2 * quad + j);
            const float column_base = simt::shuffle(base[n], owner);
            const float column_delta = simt::shuffle(delta[n], owner);
            PW_UNROLL
            for (int half = 0; half < 2; ++half) {
              const int i = 2 * half + j;
              const bool taken = r.k.there.visible(row0 + group + 8 * half);
              prob[n][i] = taken ? simt::fast_exp2(prob[n][i] * scale - column_base) : 0.0f;
              ds[n][i] = taken ? prob[n][i] * (ds[n][i] - column_delta) * r.scale : 0.0f;
            }
          }
        }
      }
      gather_tile(acc_v, prob, r.grad_out, tile * kWarpRows, first);
      gather_tile(acc_k, ds, r.q, tile * kWarpRows, first);
    }
    store_pass(grad_k, k_stride, row0, count, r.q.dim, r.q.aligned, acc_k, first, one);
    store_pass(grad_v, v_stride, row0, count, r.q.dim, r.q.aligned, acc_v, first, one);
  }
}

// All gradients of a call: warps of queries come first, then warps of keys.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads, 2)
    gradients_warps(AttentionBackwardParams p, WarpGradPlan plan) {
  const AttentionParams& f = p.forward;
  std::int64_t unit = unit_of_warp();
  const std::int64_t query_units = (plan.query_units0 + plan.query_units1) * f.heads;
  const std::int64_t key_units = (plan.key_units0 + plan.key_units1) * f.heads;
  if (unit >= query_units + key_units) return;
  const bool owns_keys = unit >= query_units;
  if (owns_keys) unit -= query_units;
  const Place place = owns_keys ? find_place(plan.key_units0, plan.key_units1, f.heads, unit)
                                : find_place(plan.query_units0, plan.query_units1, f.heads, unit);
  const AttentionStream& s = f.streams[place.stream];
  const AttentionGradStream& g = p.streams[place.stream];
  const bool aligned = place.stream == 0 ? plan.aligned0 : plan.aligned1;
  const std::int64_t head = place.head;
  const int dim = static_cast<int>(f.dim);
  const Span span = find_span<kWarpRows>(owns_keys ? s.key_offsets : s.query_offsets, f.batch,
                                         owns_keys ? s.num_keys : s.num_queries, place.unit);
  if (span.batch < 0) return;
  if (owns_keys) {
    const Span queries = rows_of(s.query_offsets, s.num_queries, span.batch);
    key_tile(grad_rows<T>(s, g, head, queries, span, dim, aligned), span.start, span.count,
             row_pointer<T>(g.grad_k, g.grad_k_stride, span.batch, head, span.first),
             g.grad_k_stride[2],
             row_pointer<T>(g.grad_v, g.grad_v_stride, span.batch, head, span.first),
             g.grad_v_stride[2]);
  } else {
    const Span key_span = rows_of(s.key_offsets, s.num_keys, span.batch);
    query_tile(grad_rows<T>(s, g, head, span, key_span, dim, aligned), span.start,
               row_pointer<T>(g.grad_q, g.grad_q_stride, span.batch, head, span.first),
               g.grad_q_stride[2]);
  }
}

template <class T>
simt::Status launch_backward(const AttentionBackwardParams& p, void* stream) {
  const AttentionParams& f = p.forward;
  WarpGradPlan plan{};
  const auto aligned = [&](int i) {
    const AttentionStream& s = f.streams[i];
    const AttentionGradStream& g = p.streams[i];
    return stream_aligned<T>(s, f.dim) && rows_aligned<T>(s.out, s.out_stride, f.dim) &&
           rows_aligned<T>(g.grad_out, g.grad_out_stride, f.dim) &&
           rows_aligned<T>(g.grad_q, g.grad_q_stride, f.dim) &&
           rows_aligned<T>(g.grad_k, g.grad_k_stride, f.dim) &&
           rows_aligned<T>(g.grad_v, g.grad_v_stride, f.dim);
  };
  const auto units = [&](int i, bool keys) {
    const AttentionStream& s = f.streams[i];
    if (i >= f.num_streams) return std::int64_t{0};
    return keys ? count_units<kWarpRows>(s.key_offsets, f.batch, s.num_keys)
                : count_units<kWarpRows>(s.query_offsets, f.batch, s.num_queries);
  };
  plan.query_units0 = units(0, false);
  plan.query_units1 = units(1, false);
  plan.key_units0 = units(0, true);
  plan.key_units1 = units(1, true);
  plan.aligned0 = aligned(0);
  plan.aligned1 = aligned(1);
  const std::int64_t all =
      plan.query_units0 + plan.query_units1 + plan.key_units0 + plan.key_units1;
  const std::int64_t blocks = simt::ceil_div(all * f.heads, std::int64_t{kWarps});
  if (blocks == 0) return simt::Status{};
  if (blocks > INT32_MAX) return too_many_blocks();
  return PW_LAUNCH((gradients_warps<T>), static_cast<unsigned>(blocks), kThreads, 0, stream, p,
                   plan);
}

}  // namespace

simt::Status attention_warps_backward(const AttentionBackwardParams& p, void* stream) {
  switch (p.forward.dtype) {
    case DType::kFloat32: return launch_backward<float>(p, stream);
    case DType::kFloat16: return launch_backward<Half>(p, stream);
    default: return launch_backward<BFloat16>(p, stream);
  }
}

}  // namespace patchword
