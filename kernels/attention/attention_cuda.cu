// SPDX-License-Identifier: Apache-2.0
// Softmax attention forward: one launch for both streams, streaming softmax in base 2.
//
// A block of four warps owns 64 queries of one head, 16 a warp, and walks over the keys, or over
// its share of them. 16-bit types take 64 keys at a time and copy the next ones meanwhile; float32
// takes 32 or 16, one tile at a time, since it needs twice the shared memory.
#include "kernels/attention/attention_forms.h"
#include "kernels/attention/attention_split.cuh"
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
  // Of a multiprocessor: what the registers allow without spills.
  static constexpr int kBlocks = sizeof(T) == 4 || D > 64 ? 2 : D > 32 ? 3 : 4;
  static_assert(kKeyRun % kKeys == 0, "a share of the keys is made of whole tiles");
};

struct ForwardPlan {
  std::int64_t units0, units1;  // per head: tiles times splits
  AttentionPartials partials0, partials1;
  bool aligned0, aligned1;
};

// What a warp knows of its 16 queries; a lane of rows group and group + 8.
template <int D>
struct Softmax {
  float acc[D / 8][4];
  float largest[2], total[2];
};

// Takes a tile of keys in: `c` are its scores in base 2, -inf where a key takes no part.
template <class T, int D, int N>
PW_DEVICE void absorb(Softmax<D>& state, float (&c)[N][4], const T* v_tile) {
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    float highest = -INFINITY;
    PW_UNROLL
    for (int n = 0; n < N; ++n) {
      highest = simt::max(highest, simt::max(c[n][2 * half], c[n][2 * half + 1]));
    }
    const float now = simt::max(state.largest[half], simt::warp_reduce(highest, simt::Max{}, 4));
    // No key so far: any finite base makes all exponentials zero.
    const float base = now == -INFINITY ? 0.0f : now;
    const float shrink = simt::fast_exp2(state.largest[half] - base);
    state.largest[half] = now;
    state.total[half] *= shrink;
    PW_UNROLL
    for (int n = 0; n < N; ++n) {
      PW_UNROLL
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        c[n][i] = simt::fast_exp2(c[n][i] - base);
        state.total[half] += c[n][i];
      }
    }
    PW_UNROLL
    for (int n = 0; n < D / 8; ++n) {
      state.acc[n][2 * half] *= shrink;
      state.acc[n][2 * half + 1] *= shrink;
    }
  }
  Products<T, D>::accumulate(state.acc, c, v_tile);
}

template <class T, int D>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads, (ForwardShape<T, D>::kBlocks))
    attend(AttentionParams p, ForwardPlan plan) {
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
  const bool aligned = place.stream == 0 ? plan.aligned0 : plan.aligned1;
  const std::int64_t splits = place.stream == 0 ? plan.partials0.splits : plan.partials1.splits;
  const Span span = find_span(s.query_offsets, p.batch, s.num_queries, place.unit / splits);
  if (span.batch < 0) return;
  const Span key_span = rows_of(s.key_offsets, s.num_keys, span.batch);
  const std::int64_t split = place.unit % splits;
  const Share share = share_of(keys_of(s, key_span), split, splits);
  const Keys& keys = share.keys;
  const int dim = static_cast<int>(p.dim);
  const T* q = row_pointer<T>(s.q, s.q_stride, span.batch, place.head, span.first);
  const T* k = row_pointer<T>(s.k, s.k_stride, span.batch, place.head, key_span.first);
  const T* v = row_pointer<T>(s.v, s.v_stride, span.batch, place.head, key_span.first);

  // Starts the copies of one tile of keys and notes which of them take part.
  const int tiles = static_cast<int>(simt::ceil_div(keys.limit - share.first, std::int64_t{kKeys}));
  auto fetch = [&](int tile) {
    if (tile < tiles) {
      const int stage = tile % kStages;
      const std::int64_t start = share.first + static_cast<std::int64_t>(tile) * kKeys;
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
  const int warp_row = static_cast<int>(simt::warp_id()) * 16;
  const T* q_rows = q_tile + warp_row * Tile<T, D>::kStride;
  const float scale = s.scale * kLog2E;
  // A warp without queries only copies: of few queries, or at the end of a set.
  const bool busy = span.start + warp_row < span.count;
  Softmax<D> state;
  clear(state.acc);
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    state.largest[half] = -INFINITY;
    state.total[half] = 0.0f;
  }

  for (int tile = 0; tile < tiles; ++tile) {
    if constexpr (kStages > 1) fetch(tile + 1);
    simt::cp_async_wait_group<kStages - 1>();
    simt::sync_block();
    const int stage = tile % kStages;
    if (busy) {
      float c[kColumns][4];
      clear(c);
      Products<T, D>::dot_rows(c, q_rows, k_tiles + stage * kTile);
      PW_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) c[n][i] *= scale;
      }
      const std::int64_t end = share.first + (static_cast<std::int64_t>(tile) + 1) * kKeys;
      if (keys.mask != nullptr || end > keys.limit) {
        PW_UNROLL
        for (int n = 0; n < kColumns; ++n) {
          PW_UNROLL
          for (int i = 0; i < 4; ++i) {
            const bool taken = shown[stage * kKeys + n * 8 + 2 * quad + i % 2] != 0;
            c[n][i] = taken ? c[n][i] : -INFINITY;
          }
        }
      }
      absorb<T>(state, c, v_tiles + stage * kTile);
    }
    simt::sync_block();
    if constexpr (kStages == 1) fetch(tile + 1);
  }
  simt::cp_async_wait_all();

  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    state.total[half] = simt::warp_reduce(state.total[half], simt::Sum{}, 4);
  }
  const std::int64_t first_row = span.start + warp_row;
  if (splits > 1) {
    const AttentionPartials partials = place.stream == 0 ? plan.partials0 : plan.partials1;
    const std::int64_t rows_before =
        s.query_offsets == nullptr ? span.batch * s.num_queries : span.first;
    const std::int64_t slot = (split * p.heads + place.head) * partials.rows + rows_before;
    store_partial(p, partials, slot, first_row, span.count, state);
    return;
  }
  float factor[2];
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    factor[half] = state.total[half] == 0.0f ? 0.0f : 1.0f / state.total[half];
  }
  T* out = row_pointer<T>(s.out, s.out_stride, span.batch, place.head, span.first);
  store_rows<T, D>(out, s.out_stride[2], span.start, span.count, dim, state.acc, factor);
  if (s.lse != nullptr && quad == 0) {
    float* lse = row_pointer<float>(s.lse, s.lse_stride, span.batch, place.head, span.first);
    PW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = first_row + static_cast<int>(simt::lane_id()) / 4 + 8 * half;
      if (row >= span.count) continue;
      lse[row * s.lse_stride[2]] = natural_lse(state.largest[half], state.total[half]);
    }
  }
}

template <class T, int D>
simt::Status launch_attend(const AttentionParams& p, const AttentionForm& form, void* stream) {
  const AttentionWorkspace workspace = attention_workspace(p, form);
  ForwardPlan plan{};
  plan.partials0 = workspace.streams[0];
  plan.partials1 = workspace.streams[1];
  const auto units = [&](int i) {
    const AttentionStream& s = p.streams[i];
    return i < p.num_streams ? count_units(s.query_offsets, p.batch, s.num_queries) * form.splits[i]
                             : std::int64_t{0};
  };
  plan.units0 = units(0);
  plan.units1 = units(1);
  plan.aligned0 = stream_aligned<T>(p.streams[0], p.dim);
  plan.aligned1 = stream_aligned<T>(p.streams[1], p.dim);
  const std::int64_t blocks = (plan.units0 + plan.units1) * p.heads;
  if (blocks == 0) return simt::Status{};
  if (blocks > INT32_MAX) return too_many_blocks();
  constexpr int kBytes = ForwardShape<T, D>::kSharedBytes;
  simt::Status status = PW_RAISE_DYNAMIC_SHARED((attend<T, D>), kBytes);
  if (!status.ok()) return status;
  status =
      PW_LAUNCH((attend<T, D>), static_cast<unsigned>(blocks), kThreads, kBytes, stream, p, plan);
  return status.ok() ? merge_splits<T>(p, workspace, stream) : status;
}

template <class T>
simt::Status attend_any(const AttentionParams& p, void* stream) {
  const AttentionForm form = attention_form(p, simt::multiprocessor_count());
  if (form.warps) return attention_warps_forward(p, stream);
  if (p.dim <= 32) return launch_attend<T, 32>(p, form, stream);
  if (p.dim <= 64) return launch_attend<T, 64>(p, form, stream);
  if (p.dim <= 96) return launch_attend<T, 96>(p, form, stream);
  return launch_attend<T, 128>(p, form, stream);
}

}  // namespace
}  // namespace patchword

PW_EXPORT std::int64_t pw_cuda_attention_workspace(const patchword::AttentionParams* p) {
  using namespace patchword;
  const AttentionForm form = attention_form(*p, simt::multiprocessor_count());
  return attention_workspace(*p, form).floats * static_cast<std::int64_t>(sizeof(float));
}

PW_EXPORT int pw_cuda_attention(const patchword::AttentionParams* p, void* stream, char* message,
                                std::size_t message_length) {
  using namespace patchword;
  switch (p->dtype) {
    case DType::kFloat32: return attend_any<float>(*p, stream).report(message, message_length);
    case DType::kFloat16: return attend_any<Half>(*p, stream).report(message, message_length);
    default: return attend_any<BFloat16>(*p, stream).report(message, message_length);
  }
}
