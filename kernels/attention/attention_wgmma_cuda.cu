// SPDX-License-Identifier: Apache-2.0
// Softmax attention forward for sm_90a: a producer warpgroup copies, one or two others multiply.
//
// A consumer warpgroup owns 64 queries of one head; its scores and sums stay in registers, and the
// probabilities are the left operand of the second product without leaving them. Two consumers
// share the keys that the producer brings, two tiles deep; each goes at its own pace between two
// tiles, so that the exponentials of one run under the products of the other.
#include "kernels/attention/attention_tiles.cuh"
#include "kernels/common/wgmma.cuh"

namespace patchword {
namespace {

constexpr int kStages = 2;

// Rows of D columns in panels, which wgmma reads as they are.
template <int D>
struct Panels {
  static constexpr int kRowBytes = D == 32 ? 64 : 128;
  static constexpr int kColumns = kRowBytes / 2;
  static constexpr int kCount = (D + kColumns - 1) / kColumns;
  static constexpr int panel_bytes(int rows) { return rows * kRowBytes; }
  static constexpr int bytes(int rows) { return kCount * panel_bytes(rows); }
};

template <int D, int Consumers>
struct WgmmaShape {
  static constexpr int kQueries = 64 * Consumers;
  // Fewer keys let two blocks of a wide head share a multiprocessor.
  static constexpr int kKeys = D > 64 && Consumers == 1 ? 64 : 128;
  static constexpr int kThreads = (Consumers + 1) * simt::kWarpgroup;
  static constexpr int kBlocks = Consumers == 1 ? 2 : 1;  // a multiprocessor
  static constexpr int kQueryBytes = Panels<D>::bytes(kQueries);
  static constexpr int kKeyBytes = Panels<D>::bytes(kKeys);
  static constexpr int kSharedBytes = simt::kPanelAlignment + kQueryBytes + kStages * 2 * kKeyBytes;
};

#if PW_HAS_WGMMA

// Barriers of the whole block: a tile of keys has come, a tile may be overwritten.
constexpr int kFull = 1, kEmpty = kFull + kStages;

// Starts the copies of rows `start` ... of a set to panels; rows that `take` refuses and columns
// from `dim` on become zeros and are not read.
template <class T, int D, int Rows, class Take>
PW_DEVICE void copy_panels(unsigned char* to, const T* from, std::int64_t row_stride,
                           std::int64_t start, int dim, int thread, Take take) {
  using Shape = Panels<D>;
  constexpr int kChunks = D / 8, kPerPanel = Shape::kColumns / 8;
  // A thread copies one column of chunks in steps of whole swizzle patterns, so that both addresses
  // advance by constants. With 12 chunks a row, 32 threads have none.
  constexpr int kStep = simt::kWarpgroup / kChunks / 8 * 8;
  const int chunk = thread % kChunks, first = thread / kChunks;
  if (first >= kStep) return;
  to += chunk / kPerPanel * Shape::panel_bytes(Rows) +
        simt::panel_offset<Shape::kRowBytes>(first, chunk % kPerPanel);
  const T* row = from + (start + first) * row_stride + chunk * 8;
  PW_UNROLL
  for (int i = 0; i < Rows / kStep; ++i) {
    const bool there = chunk * 8 < dim && take(start + first + i * kStep);
    simt::cp_async<16>(to + i * kStep * Shape::kRowBytes, there ? row : from, there ? 16 : 0);
    row += kStep * row_stride;
  }
}

// Takes every row.
struct Whole {
  PW_DEVICE bool operator()(std::int64_t) const { return true; }
};

// Starts c = q k^T; the descriptors are of the warpgroup's first query and of the first key.
template <class T, int D, int Queries, int Keys>
PW_DEVICE void start_scores(float (&c)[Keys / 8][4], std::uint64_t queries, std::uint64_t keys) {
  using Shape = Panels<D>;
  constexpr int kSteps = Shape::kColumns / 16;
  simt::pin(c);
  simt::wgmma_fence();
  PW_UNROLL
  for (int k = 0; k < D / 16; ++k) {
    const int panel = k / kSteps, inside = k % kSteps * 32;
    simt::wgmma_k_major<T>(c, simt::advance(queries, panel * Shape::panel_bytes(Queries) + inside),
                           simt::advance(keys, panel * Shape::panel_bytes(Keys) + inside), k > 0);
  }
  simt::wgmma_commit();
}

// Starts acc += p v, p in pairs of T.
template <class T, int D, int Keys>
PW_DEVICE void start_sums(float (&acc)[D / 8][4], const std::uint32_t (&p)[Keys / 16][4],
                          std::uint64_t values) {
  simt::pin(acc);
  simt::wgmma_fence();
  PW_UNROLL
  for (int k = 0; k < Keys / 16; ++k) {
    simt::wgmma_mn_major<T>(acc, p[k], simt::advance(values, k * 16 * Panels<D>::kRowBytes), true);
  }
  simt::wgmma_commit();
}

// One step of the streaming softmax in base 2: scores become probabilities relative to the largest
// score so far, `total` and the sums of earlier keys follow. Rows of a half are 8 apart.
template <int Keys, int D>
PW_DEVICE void soften(float (&c)[Keys / 8][4], float (&acc)[D / 8][4], float (&largest)[2],
                      float (&total)[2], float scale) {
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    float highest = -INFINITY;
    PW_UNROLL
    for (int n = 0; n < Keys / 8; ++n) {
      highest = simt::max_number(highest, simt::max_number(c[n][2 * half], c[n][2 * half + 1]));
    }
    const float now = simt::max(largest[half], simt::warp_reduce(highest, simt::Max{}, 4) * scale);
    // No key so far: any finite base makes all exponentials zero.
    const float base = now == -INFINITY ? 0.0f : now;
    const float shrink = simt::fast_exp2(largest[half] - base);
    largest[half] = now;
    total[half] *= shrink;
    PW_UNROLL
    for (int n = 0; n < Keys / 8; ++n) {
      PW_UNROLL
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        c[n][i] = simt::fast_exp2(c[n][i] * scale - base);
        total[half] += c[n][i];
      }
    }
    PW_UNROLL
    for (int n = 0; n < D / 8; ++n) {
      acc[n][2 * half] *= shrink;
      acc[n][2 * half + 1] *= shrink;
    }
  }
}

#endif

struct WgmmaPlan {
  std::int64_t units0, units1;
};

template <class T, int D, int Consumers>
PW_KERNEL void PW_LAUNCH_BOUNDS((WgmmaShape<D, Consumers>::kThreads),
                                (WgmmaShape<D, Consumers>::kBlocks))
    attend_wgmma(AttentionParams p, WgmmaPlan plan) {
#if PW_HAS_WGMMA
  using Shape = WgmmaShape<D, Consumers>;
  constexpr int kKeys = Shape::kKeys, kQueries = Shape::kQueries, kThreads = Shape::kThreads;
  PW_DYNAMIC_SHARED(unsigned char, arena);
  PW_SHARED(unsigned char, shown, kStages* kKeys);
  unsigned char* const q_tile = simt::align_panels(arena);
  unsigned char* const k_tiles = q_tile + Shape::kQueryBytes;
  unsigned char* const v_tiles = k_tiles + kStages * Shape::kKeyBytes;

  const Place place = find_place(plan.units0, plan.units1, p.heads);
  const AttentionStream& s = p.streams[place.stream];
  const Span span = find_span<kQueries>(s.query_offsets, p.batch, s.num_queries, place.unit);
  if (span.batch < 0) return;
  const Span key_span = rows_of(s.key_offsets, s.num_keys, span.batch);
  const Keys keys = keys_of(s, key_span);
  const int tiles = static_cast<int>(simt::ceil_div(keys.limit, std::int64_t{kKeys}));

  // Whether every key of a tile takes part.
  const auto whole = [&](int tile) {
    return keys.mask == nullptr && static_cast<std::int64_t>(tile + 1) * kKeys <= keys.limit;
  };

  if (simt::warp_id() >= 4 * Consumers) {
    simt::lower_registers<56>();
    const int thread = static_cast<int>(threadIdx.x) - Consumers * simt::kWarpgroup;
    const int dim = static_cast<int>(p.dim);
    const T* q = row_pointer<T>(s.q, s.q_stride, span.batch, place.head, span.first);
    const T* k = row_pointer<T>(s.k, s.k_stride, span.batch, place.head, key_span.first);
    const T* v = row_pointer<T>(s.v, s.v_stride, span.batch, place.head, key_span.first);
    copy_panels<T, D, kQueries>(q_tile, q, s.q_stride[2], span.start, dim, thread,
                                Below{span.count});
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % kStages;
      const std::int64_t start = static_cast<std::int64_t>(tile) * kKeys;
      if (tile >= kStages) simt::sync_named(kEmpty + stage, kThreads);
      unsigned char* const k_tile = k_tiles + stage * Shape::kKeyBytes;
      unsigned char* const v_tile = v_tiles + stage * Shape::kKeyBytes;
      if (whole(tile)) {
        copy_panels<T, D, kKeys>(k_tile, k, s.k_stride[2], start, dim, thread, Whole{});
        copy_panels<T, D, kKeys>(v_tile, v, s.v_stride[2], start, dim, thread, Whole{});
      } else {
        copy_panels<T, D, kKeys>(k_tile, k, s.k_stride[2], start, dim, thread, Visible{keys});
        copy_panels<T, D, kKeys>(v_tile, v, s.v_stride[2], start, dim, thread, Visible{keys});
      }
      if (thread < kKeys) shown[stage * kKeys + thread] = keys.visible(start + thread) ? 1 : 0;
      simt::cp_async_wait_all();
      simt::fence_async_proxy();
      simt::arrive_named(kFull + stage, kThreads);
    }
    simt::cp_async_wait_all();
    return;
  }

  simt::raise_registers<Consumers == 1 ? 200 : 224>();  // what the producer leaves
  const int quad = static_cast<int>(simt::lane_id()) % 4;
  constexpr int kRowBytes = Panels<D>::kRowBytes;
  // All lanes have the same warpgroup; the shuffle tells the compiler.
  const int warpgroup = simt::shuffle(static_cast<int>(simt::warp_id()) / 4, 0);
  const std::uint64_t queries =
      simt::panel_descriptor<kRowBytes>(simt::shared_address(q_tile) + warpgroup * 64 * kRowBytes);
  const std::uint64_t first_keys = simt::panel_descriptor<kRowBytes>(simt::shared_address(k_tiles));
  const std::uint64_t first_values = simt::panel_descriptor<kRowBytes>(
      simt::shared_address(v_tiles), Panels<D>::panel_bytes(kKeys));
  const float scale = s.scale * kLog2E;
  // A positive scale is applied on the way into the exponential, after the search for the maximum.
  const float later = scale > 0.0f ? scale : 1.0f;
  float acc[D / 8][4];
  clear(acc);
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};

  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages;
    simt::sync_named(kFull + stage, kThreads);
    float c[kKeys / 8][4];
    start_scores<T, D, kQueries, kKeys>(c, queries,
                                        simt::advance(first_keys, stage * Shape::kKeyBytes));
    simt::wgmma_wait<0>(c);
    if (!(scale > 0.0f)) {
      PW_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) c[n][i] *= scale;
      }
    }
    if (!whole(tile)) {
      PW_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) {
        PW_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (shown[stage * kKeys + n * 8 + 2 * quad + i % 2] == 0) c[n][i] = -INFINITY;
        }
      }
    }
    soften<kKeys, D>(c, acc, largest, total, later);
    std::uint32_t pairs[kKeys / 16][4];
    PW_UNROLL
    for (int m = 0; m < kKeys / 16; ++m) {
      PW_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float* two = c[2 * m + r / 2] + r % 2 * 2;
        pairs[m][r] = pack_pair<T>(two[0], two[1]);
      }
    }
    start_sums<T, D, kKeys>(acc, pairs, simt::advance(first_values, stage * Shape::kKeyBytes));
    simt::wgmma_wait<0>(acc);
    if (tile + kStages < tiles) simt::arrive_named(kEmpty + stage, kThreads);
  }

  float factor[2];
  PW_UNROLL
  for (int half = 0; half < 2; ++half) {
    total[half] = simt::warp_reduce(total[half], simt::Sum{}, 4);
    factor[half] = total[half] == 0.0f ? 0.0f : 1.0f / total[half];
  }
  T* out = row_pointer<T>(s.out, s.out_stride, span.batch, place.head, span.first);
  store_rows<T, D>(out, s.out_stride[2], span.start, span.count, static_cast<int>(p.dim), acc,
                   factor);
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
#else
  simt::trap();  // the host launches it on sm_90a only
#endif
}

template <class T, int D, int Consumers>
simt::Status launch_wgmma(const AttentionParams& p, void* stream) {
  using Shape = WgmmaShape<D, Consumers>;
  std::int64_t units[kAttentionMaxStreams] = {0, 0};
  for (int i = 0; i < p.num_streams; ++i) {
    const AttentionStream& s = p.streams[i];
    units[i] = count_units<Shape::kQueries>(s.query_offsets, p.batch, s.num_queries);
  }
  const std::int64_t blocks = (units[0] + units[1]) * p.heads;
  if constexpr (Consumers == 2) {
    // Half the queries a block when whole ones would leave multiprocessors idle.
    if (blocks < simt::multiprocessor_count()) return launch_wgmma<T, D, 1>(p, stream);
  }
  if (blocks == 0) return simt::Status{};
  if (blocks > INT32_MAX) return too_many_blocks();
  constexpr int kBytes = Shape::kSharedBytes;
  simt::Status status = PW_RAISE_DYNAMIC_SHARED((attend_wgmma<T, D, Consumers>), kBytes);
  if (!status.ok()) return status;
  return PW_LAUNCH((attend_wgmma<T, D, Consumers>), static_cast<unsigned>(blocks), Shape::kThreads,
                   kBytes, stream, p, (WgmmaPlan{units[0], units[1]}));
}

template <class T>
simt::Status attend_any(const AttentionParams& p, void* stream) {
  if (p.dim <= 32) return launch_wgmma<T, 32, 2>(p, stream);
  if (p.dim <= 64) return launch_wgmma<T, 64, 2>(p, stream);
  if (p.dim <= 96) return launch_wgmma<T, 96, 2>(p, stream);
  return launch_wgmma<T, 128, 2>(p, stream);
}

// Why this kernel cannot do the call, or null.
const char* refusal(const AttentionParams& p) {
#if !defined(PATCHWORD_SIMT_HOST) && !defined(PATCHWORD_SM90A)
  return "attention: the wgmma kernel was not built; add the architecture 90a-real";
#endif
  if (!simt::device_has_wgmma()) {
    return "attention: the wgmma kernel needs a GPU of compute capability 9.0";
  }
  if (p.dtype == DType::kFloat32) return "attention: the wgmma kernel takes 16-bit types only";
  for (int i = 0; i < p.num_streams; ++i) {
    const AttentionStream& s = p.streams[i];
    if (!rows_aligned<Half>(s.q, s.q_stride, p.dim) ||
        !rows_aligned<Half>(s.k, s.k_stride, p.dim) ||
        !rows_aligned<Half>(s.v, s.v_stride, p.dim)) {
      return "attention: the wgmma kernel takes rows that lie at multiples of 16 bytes only";
    }
  }
  return nullptr;
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_attention_wgmma_takes(const patchword::AttentionParams* p) {
  return patchword::refusal(*p) == nullptr ? 1 : 0;
}

PW_EXPORT int pw_cuda_attention_wgmma(const patchword::AttentionParams* p, void* stream,
                                      char* message, std::size_t message_length) {
  using namespace patchword;
  if (const char* why = refusal(*p)) {
    return simt::Status{static_cast<int>(StatusCode::kUnsupported), why}.report(message,
                                                                                message_length);
  }
  return (p->dtype == DType::kFloat16 ? attend_any<Half>(*p, stream)
                                      : attend_any<BFloat16>(*p, stream))
      .report(message, message_length);
}
