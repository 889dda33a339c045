// SPDX-License-Identifier: Apache-2.0
// Gradients of attention on the CPU: queries in lanes, probabilities recomputed, all in float32.
//
// With enough problems for the threads, one sweep per problem forms every product once. Otherwise
// one sweep shares out the keys and another the queries, which forms two of the five products
// twice. Every gradient is the same chain of additions either way: over queries (keys) in ascending
// order, so the result does not depend on the number of threads.
#include "kernels/attention/attention_backward.h"

#include "kernels/attention/attention_pack.h"
#include "kernels/attention/attention_tile.h"
#include "kernels/attention/attention_work.h"
#include "kernels/common/threads.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Queries that pass over the keys together: the gradients of keys and values are loaded and stored
// once for all of them.
constexpr int kSubBlocks = kVectorBytes == 64 ? 1 : 2;
constexpr int kSweepQueries = kSubBlocks * kBlockQueries;
// Rows of keys of a tile of their gradients; lanes hold the head dimension there.
constexpr int kOuterRows = kVectorBytes == 64 ? 12 : 6;
constexpr int kOuterVectors = 2;
constexpr int kSweepKeys = 96;
static_assert(kSweepKeys % kOuterRows == 0 && kSweepKeys % kLanes == 0);

constexpr float kLog2E = 1.4426950408889634f;

// One thread's memory.
struct Scratch {
  float* key_groups;    // [group][dim][kLanes]
  float* value_groups;  // likewise
  float* key_slices;    // [slice][key][kRows]
  float* grad_k;        // [key][wide], sums over the queries
  float* grad_v;
  float* queries;     // [dim][kBlockQueries] per sub-block, times scale * log2(e)
  float* grads;       // likewise the gradients of the output, times scale
  float* query_rows;  // [query][wide]
  float* grad_rows;
  float* weights;  // [kSweepKeys][kSweepQueries], probabilities
  float* slopes;   // likewise, gradients of the scores
  float* grad_q;   // [wide][kBlockQueries] per sub-block
  float* lse;      // [kSweepQueries], base 2
  float* delta;    // [kSweepQueries], times scale
  int32_t* visible;
  int64_t bytes;
};

Scratch scratch_at(char* base, int64_t most_keys, int64_t dim) {
  Scratch s{};
  int64_t at = 0;
  auto take = [&](int64_t count) {
    float* region = reinterpret_cast<float*>(base + at);
    at += padded(count * 4, 64);
    return region;
  };
  const int64_t wide = padded(dim, kLanes);
  const int64_t keys = padded(most_keys, kSweepKeys);
  s.key_groups = take(keys * wide);
  s.value_groups = take(keys * wide);
  s.key_slices = take(keys * wide);
  s.grad_k = take(keys * wide);
  s.grad_v = take(keys * wide);
  s.queries = take(wide * kSweepQueries);
  s.grads = take(wide * kSweepQueries);
  s.query_rows = take(wide * kSweepQueries);
  s.grad_rows = take(wide * kSweepQueries);
  s.weights = take(kSweepKeys * kSweepQueries);
  s.slopes = take(kSweepKeys * kSweepQueries);
  s.grad_q = take(wide * kSweepQueries);
  s.lse = take(kSweepQueries);
  s.delta = take(kSweepQueries);
  s.visible = reinterpret_cast<int32_t*>(take(most_keys));
  s.bytes = at;
  return s;
}

template <typename Element>
void widen_rows(const typename Element::Storage* rows, int64_t stride, int64_t count, int64_t dim,
                float* out) {
  const int64_t wide = padded(dim, kLanes);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      store(out + i * wide + d, Words<Element, FloatProduct>::load(rows + i * stride, d, dim));
    }
  }
}

// Probabilities and slopes of `rows` packed keys from `key` on, against one sub-block.
__attribute__((noinline)) void weigh(const Scratch& scratch, int64_t dim, int64_t key, int rows,
                                     int sub) {
  const float* lse = scratch.lse + sub * kBlockQueries;
  const float* delta = scratch.delta + sub * kBlockQueries;
  const int64_t panel = sub * kBlockQueries * dim;
  for (int j = 0; j < rows; j += kRows) {
    const int64_t group = (key + j) / kLanes * kLanes * dim + (key + j) % kLanes;
    float* weights = scratch.weights + j * kSweepQueries + sub * kBlockQueries;
    float* slopes = scratch.slopes + j * kSweepQueries + sub * kBlockQueries;
    VecF sums[kRows][kVectors] = {};
    multiply<FloatProduct, kRows, kVectors>(scratch.key_groups + group, 1, kLanes,
                                            scratch.queries + panel, kBlockQueries, dim, sums);
    const Exponential exponential;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        store(weights + i * kSweepQueries + v * kLanes,
              exponential(sums[i][v] - load(lse + v * kLanes)));
      }
    }
    VecF products[kRows][kVectors] = {};
    multiply<FloatProduct, kRows, kVectors>(scratch.value_groups + group, 1, kLanes,
                                            scratch.grads + panel, kBlockQueries, dim, products);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const VecF weight = load(weights + i * kSweepQueries + v * kLanes);
        store(slopes + i * kSweepQueries + v * kLanes,
              weight * (products[i][v] - load(delta + v * kLanes)));
      }
    }
  }
}

// grad_q of one sub-block += its slopes times `rows` keys from `key` on.
__attribute__((noinline)) void add_to_queries(const Scratch& scratch, int64_t dim, int64_t key,
                                              int rows, int64_t steps, int sub) {
  const int64_t wide = padded(dim, kLanes);
  for (int64_t d = 0; d < dim; d += kRows) {
    float* block = scratch.grad_q + sub * kBlockQueries * wide + d * kBlockQueries;
    VecF sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[i][v] = key == 0 ? VecF{} : load(block + i * kBlockQueries + v * kLanes);
      }
    }
    multiply<FloatProduct, kRows, kVectors>(scratch.key_slices + (d / kRows * steps + key) * kRows,
                                            1, kRows, scratch.slopes + sub * kBlockQueries,
                                            kSweepQueries, rows, sums);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        store(block + i * kBlockQueries + v * kLanes, sums[i][v]);
      }
    }
  }
}

// target[key][d] += factors[key][query] * rows[query][d] for the keys of a block.
template <int Vectors>
PW_INLINE void outer_tile(const float* factors, const float* rows, int64_t count, int64_t wide,
                          float* target) {
  VecF sums[kOuterRows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < kOuterRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sums[i][v] = load(target + i * wide + v * kLanes);
  }
  multiply<FloatProduct, kOuterRows, Vectors>(factors, kSweepQueries, 1, rows, wide, count, sums);
#pragma GCC unroll 16
  for (int i = 0; i < kOuterRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) store(target + i * wide + v * kLanes, sums[i][v]);
  }
}

__attribute__((noinline)) void add_to_keys(const float* factors, const float* rows, int64_t count,
                                           int64_t wide, int num_keys, float* target) {
  for (int j = 0; j < num_keys; j += kOuterRows) {
    const float* tile = factors + j * kSweepQueries;
    int64_t d = 0;
    for (; d + kOuterVectors * kLanes <= wide; d += kOuterVectors * kLanes) {
      outer_tile<kOuterVectors>(tile, rows + d, count, wide, target + j * wide + d);
    }
    if (d < wide) outer_tile<1>(tile, rows + d, count, wide, target + j * wide + d);
  }
}

template <typename Element>
struct Sweep {
  typedef typename Element::Storage T;

  const AttentionBackwardParams& q;
  const AttentionParams& p;
  const AttentionProblem& problem;
  const AttentionStream& s;
  const AttentionGradStream& g;
  const Scratch& scratch;
  const int64_t dim, wide;
  const int32_t* index = nullptr;  // of the visible keys, or null
  int64_t keys;                    // visible

  Sweep(const AttentionBackwardParams& params, const AttentionProblem& which, const Scratch& memory)
      : q(params),
        p(params.forward),
        problem(which),
        s(*which.stream),
        g(params.streams[which.stream_index]),
        scratch(memory),
        dim(p.dim),
        wide(padded(p.dim, kLanes)),
        keys(which.num_keys) {
    if (const uint8_t* mask = attention_mask(problem)) {
      keys = attention_visible(problem, mask, scratch.visible);
      index = scratch.visible;
    }
  }

  RowList<T> key_rows(const void* tensor, const int64_t (&stride)[3], int64_t first) const {
    const T* rows =
        static_cast<const T*>(tensor) + attention_offset(problem, problem.first_key, stride);
    if (index == nullptr) return {rows + first * stride[2], stride[2], nullptr};
    return {rows, stride[2], index + first};
  }

  // Keys [first, first + count) of the visible ones.
  void pack_keys(int64_t first, int64_t count, bool wants_q) const {
    const RowList<T> k = key_rows(s.k, s.k_stride, first);
    pack_groups<Element, FloatProduct>(k, count, dim, scratch.key_groups);
    pack_groups<Element, FloatProduct>(key_rows(s.v, s.v_stride, first), count, dim,
                                       scratch.value_groups);
    if (wants_q) pack_slices<Element, FloatProduct>(k, count, dim, count, scratch.key_slices);
  }

  // Queries [q0, q0 + count) in both forms, with their statistics.
  void pack_queries(int64_t q0, int64_t count) const {
    const int64_t row = problem.first_query + q0;
    const T* queries = static_cast<const T*>(s.q) + attention_offset(problem, row, s.q_stride);
    const T* grads =
        static_cast<const T*>(g.grad_out) + attention_offset(problem, row, g.grad_out_stride);
    widen_rows<Element>(queries, s.q_stride[2], count, dim, scratch.query_rows);
    widen_rows<Element>(grads, g.grad_out_stride[2], count, dim, scratch.grad_rows);
    const RowList<float> query_list = {scratch.query_rows, wide, nullptr};
    const RowList<float> grad_list = {scratch.grad_rows, wide, nullptr};
    for (int64_t i = 0; i < padded(count, kBlockQueries); i += kLanes) {
      const int64_t at = i / kBlockQueries * kBlockQueries * dim + i % kBlockQueries;
      const int64_t left = count - i < kLanes ? count - i : kLanes;
      pack_lanes_of<Float32, FloatProduct>(query_list, i, left, dim, s.scale * kLog2E,
                                           kBlockQueries, scratch.queries + at);
      pack_lanes_of<Float32, FloatProduct>(grad_list, i, left, dim, s.scale, kBlockQueries,
                                           scratch.grads + at);
    }
    const T* out = static_cast<const T*>(s.out) + attention_offset(problem, row, s.out_stride);
    for (int64_t i = 0; i < padded(count, kBlockQueries); ++i) {
      scratch.lse[i] = scratch.delta[i] = 0.0f;
      if (i >= count) continue;
      VecF sum{};
      for (int64_t d = 0; d < dim; d += kLanes) {
        sum = fma(load(scratch.grad_rows + i * wide + d),
                  Words<Element, FloatProduct>::load(out + i * s.out_stride[2], d, dim), sum);
      }
      float delta = reduce_add(sum);
      const int64_t at = attention_offset(problem, row + i, s.lse_stride);
      if (g.grad_lse != nullptr) delta -= g.grad_lse[at];
      scratch.delta[i] = delta * s.scale;
      scratch.lse[i] = s.lse[at] * kLog2E;
    }
  }

  // Queries [q0, q0 + count) past the `num_keys` packed keys.
  void pass(int64_t q0, int64_t count, int64_t num_keys, bool wants_q, bool wants_k) const {
    pack_queries(q0, count);
    const int subs = static_cast<int>(ceil_div(count, kBlockQueries));
    for (int64_t k0 = 0; k0 < num_keys; k0 += kSweepKeys) {
      const int n = num_keys - k0 < kSweepKeys ? static_cast<int>(num_keys - k0) : kSweepKeys;
      for (int sub = 0; sub < subs; ++sub) {
        weigh(scratch, dim, k0, n, sub);
        if (wants_q) add_to_queries(scratch, dim, k0, n, num_keys, sub);
      }
      if (!wants_k) continue;
      // The last tile may reach beyond the keys: into rows that nobody reads.
      add_to_keys(scratch.weights, scratch.grad_rows, count, wide, n, scratch.grad_v + k0 * wide);
      add_to_keys(scratch.slopes, scratch.query_rows, count, wide, n, scratch.grad_k + k0 * wide);
    }
    if (!wants_q) return;
    float ones[kBlockQueries];
    for (float& one : ones) one = 1.0f;
    const int64_t row = problem.first_query + q0;
    T* out = static_cast<T*>(g.grad_q) + attention_offset(problem, row, g.grad_q_stride);
    for (int sub = 0; sub < subs; ++sub) {
      const int64_t left = count - sub * kBlockQueries;
      store_rows<Element>(scratch.grad_q + sub * kBlockQueries * wide, ones,
                          left < kBlockQueries ? left : kBlockQueries, dim,
                          out + sub * kBlockQueries * g.grad_q_stride[2], g.grad_q_stride[2]);
    }
  }

  void store_keys(const float* sums, void* grad, const int64_t (&stride)[3], int64_t first,
                  int64_t count) const {
    T* rows = static_cast<T*>(grad) + attention_offset(problem, problem.first_key, stride);
    for (int64_t i = 0; i < count; ++i) {
      T* row = rows + (index == nullptr ? first + i : index[first + i]) * stride[2];
      for (int64_t d = 0; d < dim; d += kLanes) {
        const VecF sum = load(sums + i * wide + d);
        if (dim - d >= kLanes) {
          Element::store(row + d, sum);
        } else {
          store_tail<Element>(row + d, sum, static_cast<int>(dim - d));
        }
      }
    }
  }

  // Gradients of queries in [q_begin, q_end) and of visible keys in [k_begin, k_end).
  void run(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end, bool wants_q,
           bool wants_k) const {
    if (k_end > keys) k_end = keys;
    if (q_end > problem.num_queries) q_end = problem.num_queries;
    const int64_t count = k_end > k_begin ? k_end - k_begin : 0;
    if (wants_q && count == 0) {
      T* rows = static_cast<T*>(g.grad_q);
      for (int64_t i = q_begin; i < q_end; ++i) {
        clear(rows + attention_offset(problem, problem.first_query + i, g.grad_q_stride));
      }
    }
    if (count == 0) return;
    pack_keys(k_begin, count, wants_q);
    if (wants_k) {
      const size_t bytes = static_cast<size_t>(padded(count, kOuterRows) * wide) * sizeof(float);
      __builtin_memset(scratch.grad_k, 0, bytes);
      __builtin_memset(scratch.grad_v, 0, bytes);
    }
    for (int64_t q0 = q_begin; q0 < q_end; q0 += kSweepQueries) {
      pass(q0, q_end - q0 < kSweepQueries ? q_end - q0 : kSweepQueries, count, wants_q, wants_k);
    }
    if (wants_k) {
      store_keys(scratch.grad_k, g.grad_k, g.grad_k_stride, k_begin, count);
      store_keys(scratch.grad_v, g.grad_v, g.grad_v_stride, k_begin, count);
    }
  }

  void clear(T* row) const { __builtin_memset(row, 0, static_cast<size_t>(dim) * sizeof(T)); }

  // Zeros for the keys that take no part.
  void clear_hidden() const {
    const uint8_t* mask = attention_mask(problem);
    // All rows of the element, also those beyond its length; ragged elements have no such rows.
    const int64_t rows = s.key_offsets == nullptr ? s.num_keys : problem.num_keys;
    for (int64_t i = mask == nullptr ? problem.num_keys : 0; i < rows; ++i) {
      if (i < problem.num_keys && mask[i] != 0) continue;
      const int64_t row = problem.first_key + i;
      clear(static_cast<T*>(g.grad_k) + attention_offset(problem, row, g.grad_k_stride));
      clear(static_cast<T*>(g.grad_v) + attention_offset(problem, row, g.grad_v_stride));
    }
  }
};

constexpr SplitProblems kWhole = {};
constexpr SplitKeys kByKeys = {kSweepKeys};
constexpr SplitQueries kByQueries = {kSweepQueries};

struct Plan {
  int threads;
  bool one_sweep;
  int64_t most_keys, bytes;  // bytes per thread
};

Plan plan_of(const AttentionBackwardParams& q, int threads) {
  const AttentionParams& p = q.forward;
  const AttentionSize size = attention_size(p, kWhole);
  Plan plan{};
  const int64_t problems = attention_problems(p);
  plan.threads = useful_threads(threads, problems * 64,
                                static_cast<double>(size.cost) * static_cast<double>(p.dim) * 5.0);
  // Five products where whole problems fill the threads, seven where they are shared out.
  const int64_t rounds = ceil_div(problems, plan.threads);
  plan.one_sweep = 5 * rounds * plan.threads <= 7 * problems;
  plan.most_keys = size.most_keys;
  plan.bytes = scratch_at(nullptr, size.most_keys, p.dim).bytes;
  return plan;
}

template <typename Element, typename Split, typename Run>
void sweep(const AttentionBackwardParams& q, const Plan& plan, const Split& split, Run&& run) {
  const AttentionParams& p = q.forward;
  const int64_t cost = attention_size(p, split).cost;
  parallel_for(plan.threads, plan.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const Scratch scratch =
          scratch_at(static_cast<char*>(p.workspace) + t * plan.bytes, plan.most_keys, p.dim);
      attention_share(p, split, cost, static_cast<int>(t), plan.threads,
                      [&](const AttentionProblem& problem, int64_t first, int64_t last) {
                        run(Sweep<Element>(q, problem, scratch), first, last);
                      });
    }
  });
}

template <typename Element>
Status backward_as(const AttentionBackwardParams& q, int threads) {
  const AttentionParams& p = q.forward;
  const Plan plan = plan_of(q, threads);
  if (p.workspace_bytes < plan.bytes * plan.threads) return invalid("workspace is too small");
  constexpr int64_t kAll = INT64_MAX;
  if (plan.one_sweep) {
    sweep<Element>(q, plan, kWhole, [](const Sweep<Element>& s, int64_t, int64_t) {
      s.clear_hidden();
      s.run(0, kAll, 0, kAll, true, true);
    });
    return ok_status();
  }
  sweep<Element>(q, plan, kByKeys, [](const Sweep<Element>& s, int64_t first, int64_t last) {
    s.run(0, kAll, first * kSweepKeys, last * kSweepKeys, false, true);
  });
  sweep<Element>(q, plan, kByQueries, [](const Sweep<Element>& s, int64_t first, int64_t last) {
    s.run(first * kSweepQueries, last * kSweepQueries, 0, kAll, true, false);
  });
  sweep<Element>(q, plan, kWhole,
                 [](const Sweep<Element>& s, int64_t, int64_t) { s.clear_hidden(); });
  return ok_status();
}

}  // namespace

Status attention_backward(const AttentionBackwardParams& q, int threads) {
  const Status status = attention_check(q.forward);
  if (!status.ok()) return status;
  switch (q.forward.dtype) {
    case DType::kFloat32: return backward_as<Float32>(q, threads);
    case DType::kFloat16: return backward_as<Float16>(q, threads);
    case DType::kBFloat16: return backward_as<BFloat16>(q, threads);
    default: return unsupported("dtype must be float32, float16 or bfloat16");
  }
}

int64_t attention_backward_workspace(const AttentionBackwardParams& q, int threads) {
  if (!attention_check(q.forward).ok()) return 0;
  const Plan plan = plan_of(q, threads);
  return plan.bytes * plan.threads;
}

}  // namespace PW_LEVEL
}  // namespace patchword
