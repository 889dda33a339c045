// SPDX-License-Identifier: Apache-2.0
// Patches against queries on the CPU: patches in lanes, queries as broadcast rows.
//
// A task is a panel of kTileCols patches: it is packed into lanes (norms on the way), multiplied
// with all queries in slices of the depth, and finished while its logits are in L1. Softmax, top-k
// and the rest run over the queries and are therefore lane-wise.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/threads.h"
#include "kernels/patch_similarity/patch_similarity.h"
#include "kernels/patch_similarity/similarity_epilogue.h"
#include "kernels/patch_similarity/similarity_tile.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

constexpr int64_t kAlignFloats = 16;  // buffers start on cache lines

PW_INLINE int64_t aligned(int64_t floats) {
  return (floats + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
}

bool in_pairs(const PatchSimilarityParams& p) {
  return kHasPairs && p.dtype == DType::kBFloat16 && p.query_dtype == DType::kBFloat16 &&
         p.patches_stride[2] == 1;
}
// Depth of the packed panels in 32-bit words.
int64_t packed_depth(const PatchSimilarityParams& p) {
  return in_pairs(p) ? (p.dim + 1) / 2 : p.dim;
}
int64_t query_batches(const PatchSimilarityParams& p) { return p.shared_queries ? 1 : p.batch; }
int64_t packed_batch(const PatchSimilarityParams& p) {
  return aligned(p.num_queries) + aligned(p.num_queries * packed_depth(p));
}

// The workspace: queries | one part per thread | extremes per thread.
struct Layout {
  int64_t queries, panel, logits, classes, take_part, thread, extremes;

  explicit Layout(const PatchSimilarityParams& p) {
    queries = p.packed ? 0 : query_batches(p) * packed_batch(p);
    panel = aligned(packed_depth(p) * kTileCols);
    logits = aligned(p.num_queries * kTileCols);
    classes = p.group_offsets ? aligned(p.num_classes * kTileCols) : 0;
    take_part = p.group_offsets ? aligned(p.num_classes / 4 + 1) : 0;
    thread = panel + logits + classes + take_part;
    extremes = p.minimum ? 2 * aligned(p.batch * p.num_classes) : 0;
  }
  int64_t floats(int threads) const { return queries + threads * (thread + extremes); }
};

template <typename Element>
float pack_query_as(const PatchSimilarityParams& p, int64_t b, int64_t c, int height, bool pairs,
                    float* panel) {
  const auto* query = static_cast<const typename Element::Storage*>(p.queries) +
                      b * p.queries_stride[0] + c * p.queries_stride[1];
  return pack_query<Element>(query, p.queries_stride[2], p.dim, height, p.cosine != 0, p.eps, pairs,
                             panel);
}

Status pack(const PatchSimilarityParams& p, float* packed, int threads) {
  const Panels panels(p.num_queries);
  const int64_t depth = packed_depth(p);
  const bool pairs = in_pairs(p);
  const int useful =
      useful_threads(threads, query_batches(p) * panels.count,
                     0.3 * static_cast<double>(query_batches(p) * p.num_queries * p.dim));
  parallel_for(useful, query_batches(p) * panels.count, [&](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / panels.count;
      const int64_t index = task % panels.count;
      float* factors = packed + b * packed_batch(p);
      float* panel = factors + aligned(p.num_queries) + panels.start(index) * depth;
      const int height = panels.rows(index);
      for (int i = 0; i < height; ++i) {
        const int64_t c = panels.start(index) + i;
        float factor = 0.0f;
        switch (p.query_dtype) {
          case DType::kFloat16:
            factor = pack_query_as<Float16>(p, b, c, height, pairs, panel + i);
            break;
          case DType::kBFloat16:
            factor = pack_query_as<BFloat16>(p, b, c, height, pairs, panel + i);
            break;
          default: factor = pack_query_as<Float32>(p, b, c, height, pairs, panel + i); break;
        }
        factors[c] = factor;
      }
    }
  });
  return ok_status();
}

// Prompts to classes: z[C] into classes[G], and which classes take part.
void reduce_groups(const PatchSimilarityParams& p, const uint8_t* mask, const float* z, int vectors,
                   float* classes, uint8_t* take_part) {
  for (int64_t g = 0; g < p.num_classes; ++g) {
    for (int v = 0; v < vectors; ++v) {
      // A NaN start loses to every number and stays when there is none.
      VecF best = splat(__builtin_nanf(""));
      VecF sum{};
      int64_t members = 0;
      for (int64_t i = p.group_offsets[g]; i < p.group_offsets[g + 1]; ++i) {
        const int64_t c = p.group_order[i];
        if (mask != nullptr && mask[c] == 0) continue;
        const VecF value = load(z + c * kTileCols + v * kLanes);
        best = select((value > best) | (best != best), value, best);
        sum += value;
        ++members;
      }
      VecF result = p.group_mean ? sum * splat(1.0f / static_cast<float>(members)) : best;
      if (members == 0) result = splat(-kInfinity);
      store(classes + g * kTileCols + v * kLanes, result);
      take_part[g] = members > 0;
    }
  }
}

// Logits from products: every query has its factor and bias, every lane its norm.
PW_INLINE void apply_affine(const PatchSimilarityParams& p, const float* factors, float scale,
                            VecF lane_factor, float* z) {
  for (int64_t c = 0; c < p.num_queries; ++c) {
    const VecF bias = splat(p.bias ? p.bias[c] : p.bias_value);
    const VecF factor = splat(factors[c] * scale);
    float* row = z + c * kTileCols;
    store(row, fma(load(row) * lane_factor, factor, bias));
  }
}

// Buffers of one thread.
struct Scratch {
  float* panel;
  float* logits;
  float* classes;
  uint8_t* take_part;
  float* minimum;  // [B, G] of this thread, or null
  float* maximum;
};

// Packs words [d0, d0 + slice) of the depth of up to kLanes patches; returns their squares.
template <typename Element>
PW_INLINE VecF pack_slice(const PatchSimilarityParams& p, const typename Element::Storage* rows,
                          int count, int64_t d0, int64_t slice, bool pairs, float* lanes) {
  float* target = lanes + d0 * kTileCols;
  if constexpr (kHasPairs && sizeof(typename Element::Storage) == 2) {
    if (pairs) {
      const int64_t left = p.dim - 2 * d0;
      return pack_pair_lanes(rows + 2 * d0, p.patches_stride[1], count,
                             left < 2 * slice ? left : 2 * slice, target);
    }
  }
  return pack_lanes<Element>(rows + d0 * p.patches_stride[2], p.patches_stride[1],
                             p.patches_stride[2], count, slice, kTileCols, target);
}

template <typename Element>
void run_panel(const PatchSimilarityParams& p, const float* packed, int64_t b, int64_t first,
               const Scratch& s) {
  typedef typename Element::Storage T;
  const bool pairs = kHasPairs && in_pairs(p);
  const int64_t depth = packed_depth(p);
  const int64_t rest = p.num_patches - first;
  const int vectors = rest > kLanes ? kTileVectors : 1;
  const T* rows =
      static_cast<const T*>(p.patches) + b * p.patches_stride[0] + first * p.patches_stride[1];
  const float* factors = packed + (p.shared_queries ? 0 : b) * packed_batch(p);
  const float* panels = factors + aligned(p.num_queries);
  const auto multiply_slice = [&](int64_t d0, int64_t slice) {
    if (pairs) {
      multiply<PairProduct>(panels, s.panel, p.num_queries, depth, d0, slice, vectors, s.logits);
    } else {
      multiply<FloatProduct>(panels, s.panel, p.num_queries, depth, d0, slice, vectors, s.logits);
    }
  };
  int counts[kTileVectors];
  VecF squares[kTileVectors] = {};
  for (int v = 0; v < vectors; ++v) {
    const int64_t left = rest - v * kLanes;
    counts[v] = left < kLanes ? static_cast<int>(left) : kLanes;
  }
  // A slice is multiplied while it is still in L1 from being packed.
  for (int64_t d0 = 0; d0 == 0 || d0 < depth; d0 += kDepthBlock) {
    const int64_t slice = depth - d0 < kDepthBlock ? depth - d0 : kDepthBlock;
    for (int v = 0; v < vectors; ++v) {
      squares[v] += pack_slice<Element>(p, rows + v * kLanes * p.patches_stride[1], counts[v], d0,
                                        slice, pairs, s.panel + v * kLanes);
    }
    multiply_slice(d0, slice);
  }
  VecF lane_factor[kTileVectors];
  bool rescued = false;
  for (int v = 0; v < vectors; ++v) {
    lane_factor[v] = splat(1.0f);
    if (!p.cosine) continue;
    float* lanes = s.panel + v * kLanes;
    lane_factor[v] =
        pairs ? lane_factors<true>(squares[v], lanes, depth, counts[v], p.eps, &rescued)
              : lane_factors<false>(squares[v], lanes, depth, counts[v], p.eps, &rescued);
  }
  // Lanes have been scaled, so their products change too.
  for (int64_t d0 = 0; rescued && d0 < depth; d0 += kDepthBlock) {
    multiply_slice(d0, depth - d0 < kDepthBlock ? depth - d0 : kDepthBlock);
  }
  const float scale = p.scale ? *p.scale : p.scale_value;
  for (int v = 0; v < vectors; ++v) {
    apply_affine(p, factors, scale, lane_factor[v], s.logits + v * kLanes);
  }
  const uint8_t* mask = p.class_mask ? p.class_mask + b * p.mask_stride : nullptr;
  if (p.group_offsets) {
    reduce_groups(p, mask, s.logits, vectors, s.classes, s.take_part);
    mask = s.take_part;
  }
  for (int v = 0; v < vectors; ++v) {
    const int64_t left = rest - v * kLanes;
    Column column;
    column.z = (p.group_offsets ? s.classes : s.logits) + v * kLanes;
    column.step = kTileCols;
    column.classes = p.num_classes;
    column.take_part = mask;
    column.batch = b;
    column.first = first + v * kLanes;
    column.count = left < kLanes ? static_cast<int>(left) : kLanes;
    finish_column<Element>(p, column, s.minimum ? s.minimum + b * p.num_classes : nullptr,
                           s.maximum ? s.maximum + b * p.num_classes : nullptr);
  }
}

// Minimum and maximum commute exactly, so the split over threads does not show.
void merge_extremes(const PatchSimilarityParams& p, const float* parts, int64_t part, int threads) {
  const int64_t n = p.batch * p.num_classes;
  for (int64_t i = 0; i < n; ++i) {
    float low = kInfinity, high = -kInfinity;
    for (int t = 0; t < threads; ++t) {
      const float* minimum = parts + t * part;
      const float* maximum = minimum + part / 2;
      low = minimum[i] < low ? minimum[i] : low;
      high = maximum[i] > high ? maximum[i] : high;
    }
    p.minimum[i] = low;
    p.maximum[i] = high;
  }
}

template <typename Element>
Status forward_as(const PatchSimilarityParams& p, int threads) {
  const Layout layout(p);
  float* workspace = static_cast<float*>(p.workspace);
  const float* packed = p.packed;
  if (packed == nullptr) {
    pack(p, workspace, threads);
    packed = workspace;
  }
  float* thread_parts = workspace + layout.queries;
  float* extremes = thread_parts + threads * layout.thread;
  for (int64_t t = 0; p.minimum && t < threads; ++t) {
    float* part = extremes + t * layout.extremes;
    for (int64_t i = 0; i < layout.extremes; ++i) {
      part[i] = i < layout.extremes / 2 ? kInfinity : -kInfinity;
    }
  }
  const int64_t per_batch = panel_count(p.num_patches, kTileCols);
  // Measured: about 20 ps per product and 0.3 ns per patch element for packing.
  const double patch_elements =
      static_cast<double>(p.batch * p.num_patches) * static_cast<double>(p.dim);
  const double cost = patch_elements * (0.3 + 0.02 * static_cast<double>(p.num_queries));
  const int useful = useful_threads(threads, p.batch * per_batch, cost);
  parallel_for(useful, p.batch * per_batch, [&](int64_t begin, int64_t end, int thread) {
    Scratch s;
    s.panel = thread_parts + thread * layout.thread;
    s.logits = s.panel + layout.panel;
    s.classes = s.logits + layout.logits;
    s.take_part = reinterpret_cast<uint8_t*>(s.classes + layout.classes);
    s.minimum = p.minimum ? extremes + thread * layout.extremes : nullptr;
    s.maximum = p.minimum ? s.minimum + layout.extremes / 2 : nullptr;
    for (int64_t task = begin; task < end; ++task) {
      run_panel<Element>(p, packed, task / per_batch, task % per_batch * kTileCols, s);
    }
  });
  if (p.minimum) merge_extremes(p, extremes, layout.extremes, threads);
  return ok_status();
}

Status forward(const PatchSimilarityParams& p, int threads) {
  if (p.top_k < 0 || p.top_k > kMaxTopK) return invalid("top_k must be between 1 and 32");
  switch (p.dtype) {
    case DType::kFloat32: return forward_as<Float32>(p, threads);
    case DType::kFloat16: return forward_as<Float16>(p, threads);
    case DType::kBFloat16: return forward_as<BFloat16>(p, threads);
    default: return unsupported("patches must be float32, float16 or bfloat16");
  }
}

int64_t packed_size(const PatchSimilarityParams& p) { return query_batches(p) * packed_batch(p); }

int64_t workspace(const PatchSimilarityParams& p, int threads) {
  return Layout(p).floats(threads) * static_cast<int64_t>(sizeof(float));
}

}  // namespace
}  // namespace PW_LEVEL

extern const PatchSimilarityTable PW_LEVEL_TABLE(kPatchSimilarity);
const PatchSimilarityTable PW_LEVEL_TABLE(kPatchSimilarity) = {
    &PW_LEVEL::forward, &PW_LEVEL::pack, &PW_LEVEL::packed_size, &PW_LEVEL::workspace};

}  // namespace patchword
