// SPDX-License-Identifier: Apache-2.0
// Attention of tiny sets: a warp per 16 rows of one head, nothing in shared memory, so that
// warps never wait for one another.
//
// Any lengths are right; sets of at most 16 rows are fast, since then all scores of a warp are one
// 16 x 16 tile that is made once.
#include "kernels/attention/attention_forms.h"
#include "kernels/attention/attention_split.cuh"
#include "kernels/attention/attention_warp_tiles.cuh"

namespace patchword {
namespace {

struct WarpPlan {
  std::int64_t units0, units1;  // per head
  bool aligned0, aligned1;
};

template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads, 3) attend_warps(AttentionParams p, WarpPlan plan) {
  const std::int64_t unit = unit_of_warp();
  if (unit >= (plan.units0 + plan.units1) * p.heads) return;
  const Place place = find_place(plan.units0, plan.units1, p.heads, unit);
  const AttentionStream& s = p.streams[place.stream];
  const bool aligned = place.stream == 0 ? plan.aligned0 : plan.aligned1;
  const Span span = find_span<kWarpRows>(s.query_offsets, p.batch, s.num_queries, place.unit);
  if (span.batch < 0) return;
  const Span key_span = rows_of(s.key_offsets, s.num_keys, span.batch);
  const Keys keys = keys_of(s, key_span);
  const int dim = static_cast<int>(p.dim);
  const Rows<T> q{row_pointer<T>(s.q, s.q_stride, span.batch, place.head, span.first),
                  s.q_stride[2], Keys{span.count, nullptr}, dim, aligned};
  const Rows<T> k{row_pointer<T>(s.k, s.k_stride, span.batch, place.head, key_span.first),
                  s.k_stride[2], keys, dim, aligned};
  const Rows<T> v{row_pointer<T>(s.v, s.v_stride, span.batch, place.head, key_span.first),
                  s.v_stride[2], keys, dim, aligned};
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  const std::int64_t tiles = simt::ceil_div(keys.limit, std::int64_t{kWarpRows});
  const float scale = s.scale * kLog2E;

  float c[2][4];
  auto scores = [&](std::int64_t tile) {
    score_tile(c, q, span.start, k, tile * kWarpRows);
    PW_UNROLL
    for (int n = 0; n < 2; ++n) {
      PW_UNROLL
      for (int i = 0; i < 4; ++i) {
        const bool taken = keys.visible(tile * kWarpRows + n * 8 + 2 * quad + i % 2);
        c[n][i] = taken ? c[n][i] * scale : -INFINITY;
      }
    }
  };

  float largest[2] = {-INFINITY, -INFINITY}, base[2] = {0.0f, 0.0f}, total[2] = {0.0f, 0.0f};
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    scores(tile);
    PW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * half;
      const float highest =
          simt::max(simt::max(c[0][i], c[0][i + 1]), simt::max(c[1][i], c[1][i + 1]));
      const float now = simt::max(largest[half], simt::warp_reduce(highest, simt::Max{}, 4));
      base[half] = now == -INFINITY ? 0.0f : now;
      total[half] *= simt::fast_exp2(largest[half] - base[half]);
      largest[half] = now;
      PW_UNROLL
      for (int n = 0; n < 2; ++n) {
        total[half] += simt::fast_exp2(c[n][i] - base[half]);
        total[half] += simt::fast_exp2(c[n][i + 1] - base[half]);
      }
    }
  }
  float factor[2];
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    total[half] = simt::warp_reduce(total[half], simt::Sum{}, 4);
    factor[half] = total[half] == 0.0f ? 0.0f : 1.0f / total[half];
  }

  T* out = row_pointer<T>(s.out, s.out_stride, span.batch, place.head, span.first);
  for (int first = 0; first < dim; first += kPass<T>) {
    float acc[kSlice<T>][4];
    clear(acc);
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      if (tiles > 1) scores(tile);
      if (tiles > 1 || first == 0) {
        PW_UNROLL
        for (int n = 0; n < 2; ++n) {
          PW_UNROLL
          for (int i = 0; i < 4; ++i) c[n][i] = simt::fast_exp2(c[n][i] - base[i / 2]);
        }
      }
      gather_tile(acc, c, v, tile * kWarpRows, first);
    }
    store_pass(out, s.out_stride[2], span.start, span.count, dim, aligned, acc, first, factor);
  }
  if (s.lse != nullptr && quad == 0) {
    float* lse = row_pointer<float>(s.lse, s.lse_stride, span.batch, place.head, span.first);
    PW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = span.start + static_cast<int>(simt::lane_id()) / 4 + 8 * half;
      if (row < span.count) lse[row * s.lse_stride[2]] = natural_lse(largest[half], total[half]);
    }
  }
}

template <class T>
simt::Status launch_forward(const AttentionParams& p, void* stream) {
  WarpPlan plan{};
  const auto aligned = [&](const AttentionStream& s) {
    return stream_aligned<T>(s, p.dim) && rows_aligned<T>(s.out, s.out_stride, p.dim);
  };
  const auto units = [&](int i) {
    const AttentionStream& s = p.streams[i];
    return i < p.num_streams ? count_units<kWarpRows>(s.query_offsets, p.batch, s.num_queries)
                             : std::int64_t{0};
  };
  plan.units0 = units(0);
  plan.units1 = units(1);
  plan.aligned0 = aligned(p.streams[0]);
  plan.aligned1 = aligned(p.streams[1]);
  const std::int64_t blocks =
      simt::ceil_div((plan.units0 + plan.units1) * p.heads, std::int64_t{kWarps});
  if (blocks == 0) return simt::Status{};
  if (blocks > INT32_MAX) return too_many_blocks();
  return PW_LAUNCH((attend_warps<T>), static_cast<unsigned>(blocks), kThreads, 0, stream, p, plan);
}

}  // namespace

simt::Status attention_warps_forward(const AttentionParams& p, void* stream) {
  switch (p.dtype) {
    case DType::kFloat32: return launch_forward<float>(p, stream);
    case DType::kFloat16: return launch_forward<Half>(p, stream);
    default: return launch_forward<BFloat16>(p, stream);
  }
}

}  // namespace patchword
