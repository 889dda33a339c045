// SPDX-License-Identifier: Apache-2.0
// Softmax attention forward: one launch for both streams, streaming softmax in base 2.
//
// A block of four warps owns 64 queries of one head, 16 a warp, and walks over the keys. 16-bit
// types take 64 keys at a time and copy the next ones meanwhile; float32 takes 32 or 16, one tile
// at a time, since it needs twice the shared memory.
#include "kernels/attention/attention_tiles.cuh"

namespace patchword {
namespace {

template <class T, int D>
struct ForwardShape {
  // Wide heads in float32 leave registers for 16 keys only.
  static constexpr int kKeys = sizeof(T) == 2 ? 64 : D <= 96 ? 32 : 16;
  static constexpr int kStages = sizeof(T) == 2 ? 2 : 1;
  static constexpr int kSharedBytes =
      Tile<T, D>::bytes(kRows) + 2 * kStages * Tile<T, D>::bytes(kKeys);
};

struct ForwardPlan {
  std::int64_t units0, units1;
  bool aligned[kAttentionMaxStreams];
};

template <class T, int D>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads, 2) attend(AttentionParams p, ForwardPlan plan) {
  using Shape = ForwardShape<T, D>;
  constexpr int kKeys = Shape::kKeys, kStages = Shape::kStages, kColumns = kKeys / 8;
  constexpr int kTile = kKeys * Tile<T, D>::kStride;
  PW_DYNAMIC_SHARED(T, arena);
  PW_SHARED(unsigned char, shown, kStages* kKeys);
  T* const q_tile = arena;
  T* const k_tiles = arena + kRows * Tile<T, D>::kStride;
  T* const v_tiles = k_tiles + kStages * kTile;

  const Place place = find_place(plan.units0, plan.units1, p.heads);
  const AttentionStream& s = p.streams[place.stream];
  // Indexing a small array of a parameter would copy it to local memory.
  const bool aligned = place.stream == 0 ? plan.aligned[0] : plan.aligned[1];
  const Span span = find_span(s.query_offsets, p.batch, s.num_queries, place.unit);
  if (span.batch < 0) return;
  const Span key_span = rows_of(s.key_offsets, s.num_keys, span.batch);
  const Keys keys = keys_of(s, key_span);
  const int dim = static_cast<int>(p.dim);
  const T* q = row_pointer<T>(s.q, s.q_stride, span.batch, place.head, span.first);
  const T* k = row_pointer<T>(s.k, s.k_stride, span.batch, place.head, key_span.first);
  const T* v = row_pointer<T>(s.v, s.v_stride, span.batch, place.head, key_span.first);

  // Starts the copies of one tile of keys and notes which of them take part.
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
  fetch(0);

  const int quad = static_cast<int>(simt::lane_id()) % 4;
  const T* q_rows = q_tile + static_cast<int>(simt::warp_id()) * 16 * Tile<T, D>::kStride;
  const float scale = s.scale * kLog2E;
  float acc[D / 8][4];
  clear(acc);
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};

  for (int tile = 0; tile < tiles; ++tile) {
    if constexpr (kStages > 1) fetch(tile + 1);
    simt::cp_async_wait_group<kStages - 1>();
    simt::sync_block();
    const int stage = tile % kStages;
    float c[kColumns][4];
    clear(c);
    Products<T, D>::dot_rows(c, q_rows, k_tiles + stage * kTile);

    float highest[2] = {-INFINITY, -INFINITY};
    PW_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      PW_UNROLL
      for (int i = 0; i < 4; ++i) {
        const bool taken = shown[stage * kKeys + n * 8 + 2 * quad + i % 2] != 0;
        c[n][i] = taken ? c[n][i] * scale : -INFINITY;
        highest[i / 2] = simt::max(highest[i / 2], c[n][i]);
      }
    }
    PW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float now = simt::max(largest[half], simt::warp_reduce(highest[half], simt::Max{}, 4));
      // No key so far: any finite base makes all exponentials zero.
      const float base = now == -INFINITY ? 0.0f : now;
      const float shrink = simt::fast_exp2(largest[half] - base);
      largest[half] = now;
      total[half] *= shrink;
      PW_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        PW_UNROLL
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          c[n][i] = simt::fast_exp2(c[n][i] - base);
          total[half] += c[n][i];
        }
      }
      PW_UNROLL
      for (int n = 0; n < D / 8; ++n) {
        acc[n][2 * half] *= shrink;
        acc[n][2 * half + 1] *= shrink;
      }
    }
    Products<T, D>::accumulate(acc, c, v_tiles + stage * kTile);
    simt::sync_block();
    if constexpr (kStages == 1) fetch(tile + 1);
  }
  simt::cp_async_wait_all();

  float factor[2];
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    total[half] = simt::warp_reduce(total[half], simt::Sum{}, 4);
    factor[half] = total[half] == 0.0f ? 0.0f : 1.0f / total[half];
  }
  T* out = row_pointer<T>(s.out, s.out_stride, span.batch, place.head, span.first);
  store_rows<T, D>(out, s.out_stride[2], span.start, span.count, dim, acc, factor);
  if (s.lse != nullptr && quad == 0) {
    float* lse = row_pointer<float>(s.lse, s.lse_stride, span.batch, place.head, span.first);
    PW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = span.start + static_cast<int>(simt::warp_id()) * 16 +
                               static_cast<int>(simt::lane_id()) / 4 + 8 * half;
      if (row >= span.count) continue;
      lse[row * s.lse_stride[2]] =
          total[half] == 0.0f ? -INFINITY : (largest[half] + simt::fast_log2(total[half])) * kLn2;
    }
  }
}

template <class T, int D>
simt::Status launch_attend(const AttentionParams& p, void* stream) {
  ForwardPlan plan{};
  std::int64_t units[kAttentionMaxStreams] = {0, 0};
  for (int i = 0; i < p.num_streams; ++i) {
    const AttentionStream& s = p.streams[i];
    units[i] = count_units(s.query_offsets, p.batch, s.num_queries);
    plan.aligned[i] = rows_aligned<T>(s.q, s.q_stride, p.dim) &&
                      rows_aligned<T>(s.k, s.k_stride, p.dim) &&
                      rows_aligned<T>(s.v, s.v_stride, p.dim);
  }
  plan.units0 = units[0];
  plan.units1 = units[1];
  const std::int64_t blocks = (units[0] + units[1]) * p.heads;
  if (blocks == 0) return simt::Status{};
  if (blocks > INT32_MAX) return too_many_blocks();
  constexpr int kBytes = ForwardShape<T, D>::kSharedBytes;
  simt::Status status = PW_RAISE_DYNAMIC_SHARED((attend<T, D>), kBytes);
  if (!status.ok()) return status;
  return PW_LAUNCH((attend<T, D>), static_cast<unsigned>(blocks), kThreads, kBytes, stream, p,
                   plan);
}

template <class T>
simt::Status attend_any(const AttentionParams& p, void* stream) {
  if (p.dim <= 32) return launch_attend<T, 32>(p, stream);
  if (p.dim <= 64) return launch_attend<T, 64>(p, stream);
  if (p.dim <= 96) return launch_attend<T, 96>(p, stream);
  return launch_attend<T, 128>(p, stream);
}

}  // namespace
}  // namespace patchword

PW_EXPORT std::int64_t pw_cuda_attention_workspace(const patchword::AttentionParams*) { return 0; }

PW_EXPORT int pw_cuda_attention(const patchword::AttentionParams* p, void* stream, char* message,
                                std::size_t message_length) {
  using namespace patchword;
  switch (p->dtype) {
    case DType::kFloat32: return attend_any<float>(*p, stream).report(message, message_length);
    case DType::kFloat16: return attend_any<Half>(*p, stream).report(message, message_length);
    default: return attend_any<BFloat16>(*p, stream).report(message, message_length);
  }
}
