// SPDX-License-Identifier: Apache-2.0
// Similarity maps on CUDA: a block owns 64 patches and sweeps the classes in tiles of 256.
//
// Up to 256 classes everything is one tile, and the softmax never leaves the block. Beyond, the
// block keeps maximum, sum and top-k per row while tiles pass, and the softmax takes a second sweep
// that multiplies again. Prompt groups take two launches: logits of the prompts to the workspace,
// then a sweep over classes that reduces them. Memory traffic: patches once per sweep and class
// tile, queries once per block from L2, each output once.
#include "kernels/common/simt.cuh"
#include "kernels/patch_similarity/patch_similarity.h"
#include "kernels/patch_similarity/similarity_finish.cuh"
#include "kernels/patch_similarity/similarity_product.cuh"

namespace patchword {
namespace {

struct SharedLayout {
  int z_step, arena, total;
  int kept;
};

// Bytes of dynamic shared memory: stages and logits over each other, then the small arrays.
PW_HOST_DEVICE SharedLayout shared_layout(int64_t classes, int top_k) {
  const int columns = static_cast<int>(classes < kMaxColumns ? classes : kMaxColumns);
  const int padded = (columns + 7) / 8 * 8;
  SharedLayout s;
  s.z_step = padded + 1;
  s.kept = top_k > 0 ? top_k : 1;
  const int stages = kStages * (kTileRows + padded) * kRowBytes;
  const int logits = kTileRows * s.z_step * 4;
  s.arena = ((stages > logits ? stages : logits) + 15) / 16 * 16;
  s.total = s.arena + kTileRows * s.kept * 8 + 4 * (3 * kTileRows + kMaxColumns) + kMaxColumns;
  return s;
}

// `rows` rows from `first` on, of one batch entry.
template <class T>
PW_DEVICE RowSource<T> row_source(const void* data, const int64_t (&stride)[3], int64_t batch,
                                  int64_t first, int rows) {
  constexpr int64_t kPerChunk = 16 / static_cast<int64_t>(sizeof(T));
  RowSource<T> source;
  source.first = static_cast<const T*>(data) + batch * stride[0] + first * stride[1];
  source.row_stride = stride[1];
  source.depth_stride = stride[2];
  source.rows = rows;
  source.vector = stride[2] == 1 && stride[1] % kPerChunk == 0 && stride[0] % kPerChunk == 0 &&
                  reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
  return source;
}

PW_DEVICE float inverse_norm(float squares, float eps) {
  const float norm = sqrtf(squares);
  return norm < eps ? 1.0f / eps : 1.0f / norm;
}

// Logits of prompts [c0, c0 + columns) for the block's patches.
template <class T>
PW_DEVICE void fill_products(const PatchSimilarityParams& p, LogitTile& t, unsigned char* arena,
                             float* row_squares, float* column_squares) {
  // In shared memory, since as registers they would live through the product loop and spill.
  PW_SHARED(RowSource<T>, sources, 2);
  if (threadIdx.x == 0) {
    sources[0] = row_source<T>(p.patches, p.patches_stride, t.batch, t.first_patch, t.rows);
    sources[1] = row_source<T>(p.queries, p.queries_stride, t.batch, t.first_class, t.columns);
  }
  simt::sync_block();
  product_tile<T>(sources[0], sources[1], p.dim, t.columns, arena, t.z, t.step, row_squares,
                  column_squares);

  const float scale = p.scale ? *p.scale : p.scale_value;
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows + t.columns; i += kThreads) {
    float* squares = i < kTileRows ? row_squares + i : column_squares + (i - kTileRows);
    const float factor = p.cosine ? inverse_norm(*squares, p.eps) : 1.0f;
    *squares = i < kTileRows ? factor : factor * scale;
  }
  simt::sync_block();
  for (int row = static_cast<int>(simt::warp_id()); row < t.rows; row += kWarps) {
    for (int c = static_cast<int>(simt::lane_id()); c < t.columns; c += simt::kWarpSize) {
      const float bias = p.bias ? p.bias[t.first_class + c] : p.bias_value;
      float& z = t.z[row * t.step + c];
      z = z * row_squares[row] * column_squares[c] + bias;
    }
  }
  simt::sync_block();
}

// Logits of classes [g0, g0 + columns) from those of the prompts, raw[B, N, C].
PW_DEVICE void fill_groups(const PatchSimilarityParams& p, LogitTile& t, const float* raw,
                           std::uint8_t* take_part) {
  const std::uint8_t* mask = p.class_mask ? p.class_mask + t.batch * p.mask_stride : nullptr;
  for (int i = static_cast<int>(threadIdx.x); i < t.rows * t.columns; i += kThreads) {
    const int row = i / t.columns, column = i % t.columns;
    const float* prompts = raw + (t.batch * p.num_patches + t.first_patch + row) * p.num_queries;
    const int64_t g = t.first_class + column;
    float best = bit_cast<float>(0x7fc00000u);  // loses to every number, stays when there is none
    float sum = 0.0f;
    int members = 0;
    for (int64_t k = p.group_offsets[g]; k < p.group_offsets[g + 1]; ++k) {
      const int64_t c = p.group_order[k];
      if (mask == nullptr || mask[c] != 0) {
        const float z = prompts[c];
        best = z > best || best != best ? z : best;
        sum += z;
        ++members;
      }
    }
    const float result = p.group_mean ? sum / static_cast<float>(members) : best;
    t.z[row * t.step + column] = members > 0 ? result : -infinity();
    if (row == 0) take_part[column] = members > 0;
  }
  simt::sync_block();
}

// One block: patches [64 i, 64 i + 64) of one batch entry. `raw` is written by a product sweep of
// grouped prompts and read by the sweep over their classes.
template <class T, bool Grouped>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) similarity_kernel(PatchSimilarityParams p, float* raw) {
  PW_DYNAMIC_SHARED(unsigned char, arena);
  const SharedLayout layout = shared_layout(p.num_classes, p.top_k);
  RowState state;
  state.kept = layout.kept;
  state.best = reinterpret_cast<std::uint64_t*>(arena + layout.arena);
  state.maximum = reinterpret_cast<float*>(state.best + kTileRows * state.kept);
  state.sum = state.maximum + kTileRows;
  float* row_squares = state.sum + kTileRows;
  float* column_squares = row_squares + kTileRows;
  std::uint8_t* take_part = reinterpret_cast<std::uint8_t*>(column_squares + kMaxColumns);

  const int64_t tiles = simt::ceil_div<int64_t>(p.num_patches, kTileRows);
  LogitTile t;
  t.z = reinterpret_cast<float*>(arena);
  t.step = layout.z_step;
  t.batch = blockIdx.x / tiles;
  t.first_patch = blockIdx.x % tiles * kTileRows;
  t.rows = static_cast<int>(simt::min<int64_t>(p.num_patches - t.first_patch, kTileRows));
  t.classes = p.num_classes;

  for (int i = static_cast<int>(threadIdx.x); i < kTileRows; i += kThreads) {
    state.maximum[i] = p.has_background ? p.background : -infinity();
    state.sum[i] = p.has_background && is_finite(p.background) ? 1.0f : 0.0f;
    for (int r = 0; r < state.kept; ++r) state.best[i * state.kept + r] = 0;
  }
  simt::sync_block();

  const bool wants_sum = p.softmax || p.argmax || p.logsumexp;
  const bool wants_rows = wants_sum || p.topk_values;
  const bool one_tile = p.num_classes <= kMaxColumns;
  const int sweeps = p.softmax && !one_tile ? 2 : 1;
  bool anything = p.has_background != 0;
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (int64_t c0 = 0; c0 < p.num_classes; c0 += kMaxColumns) {
      t.first_class = c0;
      t.columns = static_cast<int>(simt::min<int64_t>(p.num_classes - c0, kMaxColumns));
      simt::sync_block();  // the tile before is used up
      if constexpr (Grouped) {
        t.take_part = take_part;
        fill_groups(p, t, raw, take_part);
      } else {
        t.take_part = p.class_mask ? p.class_mask + t.batch * p.mask_stride + c0 : nullptr;
        fill_products<T>(p, t, arena, row_squares, column_squares);
      }
      for (int c = 0; !anything && c < t.columns; ++c) anything = !t.excluded(c);
      if (sweep == 0) {
        if (!Grouped && raw) {
          write_map<float>(t, raw, true, p.num_patches, [&](int r, int c) { return t.at(r, c); });
        }
        if (p.logits) {
          write_map<T>(t, p.logits, p.channels_last != 0, p.num_patches,
                       [&](int r, int c) { return t.at(r, c); });
        }
        if (p.sigmoid) {
          write_map<T>(t, p.sigmoid, p.channels_last != 0, p.num_patches, [&](int r, int c) {
            return t.excluded(c) ? 0.0f : 1.0f / (1.0f + simt::fast_exp2(-t.at(r, c) * kLog2E));
          });
        }
        if (p.minimum) update_extremes(t, p.minimum, p.maximum);
        if (wants_rows) {
          for (int row = static_cast<int>(simt::warp_id()); row < t.rows; row += kWarps) {
            update_row(t, row, state, wants_sum);
          }
        }
      }
      if (p.softmax && sweep == sweeps - 1) {
        simt::sync_block();  // the sums of all rows stand
        write_map<T>(t, p.softmax, p.channels_last != 0, p.num_patches, [&](int r, int c) {
          const float maximum = state.maximum[r];
          const float e = simt::fast_exp2((t.at(r, c) - shift_of(maximum)) * kLog2E);
          const float probability =
              is_finite(maximum) ? e / state.sum[r] : bit_cast<float>(0x7fc00000u);
          return t.excluded(c) ? 0.0f : probability;
        });
      }
    }
  }
  simt::sync_block();
  if (wants_rows) write_rows(p, t, state, anything);
}

PW_KERNEL void PW_LAUNCH_BOUNDS(256)
    begin_extremes_kernel(float* minimum, float* maximum, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) {
    reinterpret_cast<std::int32_t*>(minimum)[i] = ordered(infinity());
    reinterpret_cast<std::int32_t*>(maximum)[i] = ordered(-infinity());
  }
}

PW_KERNEL void PW_LAUNCH_BOUNDS(256)
    end_extremes_kernel(float* minimum, float* maximum, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) {
    minimum[i] = from_ordered(reinterpret_cast<std::int32_t*>(minimum)[i]);
    maximum[i] = from_ordered(reinterpret_cast<std::int32_t*>(maximum)[i]);
  }
}

template <class T, bool Grouped>
simt::Status launch_sweep(const PatchSimilarityParams& p, float* raw, void* stream) {
  const auto bytes = static_cast<size_t>(shared_layout(p.num_classes, p.top_k).total);
  if (bytes > 48 * 1024) {
    const simt::Status raised = PW_RAISE_DYNAMIC_SHARED((similarity_kernel<T, Grouped>), bytes);
    if (!raised.ok()) return raised;
  }
  const int64_t blocks = p.batch * simt::ceil_div<int64_t>(p.num_patches, kTileRows);
  return PW_LAUNCH((similarity_kernel<T, Grouped>), static_cast<unsigned>(blocks), kThreads, bytes,
                   stream, p, raw);
}

template <class T>
simt::Status launch_as(const PatchSimilarityParams& p, void* stream) {
  if (p.group_offsets == nullptr) return launch_sweep<T, false>(p, nullptr, stream);
  // Prompts first, every output off but the workspace.
  PatchSimilarityParams prompts{};
  prompts.patches = p.patches;
  prompts.queries = p.queries;
  prompts.scale = p.scale;
  prompts.bias = p.bias;
  prompts.scale_value = p.scale_value;
  prompts.bias_value = p.bias_value;
  prompts.cosine = p.cosine;
  prompts.eps = p.eps;
  prompts.batch = p.batch;
  prompts.num_patches = p.num_patches;
  prompts.dim = p.dim;
  prompts.num_queries = prompts.num_classes = p.num_queries;
  for (int i = 0; i < 3; ++i) {
    prompts.patches_stride[i] = p.patches_stride[i];
    prompts.queries_stride[i] = p.queries_stride[i];
  }
  float* raw = static_cast<float*>(p.workspace);
  const simt::Status first = launch_sweep<T, false>(prompts, raw, stream);
  return first.ok() ? launch_sweep<T, true>(p, raw, stream) : first;
}

simt::Status run(const PatchSimilarityParams& p, void* stream) {
  const int64_t extremes = p.minimum ? p.batch * p.num_classes : 0;
  const unsigned blocks = simt::blocks_for(extremes, 256);
  if (extremes > 0) {
    const simt::Status begun =
        PW_LAUNCH(begin_extremes_kernel, blocks, 256, 0, stream, p.minimum, p.maximum, extremes);
    if (!begun.ok()) return begun;
  }
  simt::Status status;
  if (p.batch > 0 && p.num_patches > 0) {
    switch (p.dtype) {
      case DType::kFloat16: status = launch_as<Half>(p, stream); break;
      case DType::kBFloat16: status = launch_as<BFloat16>(p, stream); break;
      default: status = launch_as<float>(p, stream); break;
    }
  }
  if (!status.ok() || extremes == 0) return status;
  return PW_LAUNCH(end_extremes_kernel, blocks, 256, 0, stream, p.minimum, p.maximum, extremes);
}

}  // namespace
}  // namespace patchword

// Stable entry of the CUDA library: patches and queries of one dtype; a workspace of B N C floats
// when there are groups.
PW_EXPORT int pw_cuda_patch_similarity(const patchword::PatchSimilarityParams* p, void* stream,
                                       char* message, size_t message_len) {
  return patchword::run(*p, stream).report(message, message_len);
}
