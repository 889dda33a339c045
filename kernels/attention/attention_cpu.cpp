// SPDX-License-Identifier: Apache-2.0
// Attention on the CPU, forward: queries in lanes, so that no reduction runs across lanes.
#include "kernels/attention/attention.h"

#include "kernels/attention/attention_backward.h"
#include "kernels/attention/attention_few.h"
#include "kernels/attention/attention_pack.h"
#include "kernels/attention/attention_tile.h"
#include "kernels/attention/attention_work.h"
#include "kernels/common/cpu_levels.h"
#include "kernels/common/threads.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

constexpr SplitQueries kSplit = {kBlockQueries};
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// One thread's memory. Keys and values are packed anew for every problem: each thread has the whole
// packed set in its own cache, and needs no barrier.
struct Scratch {
  float* keys;       // [group][word][kLanes]
  float* values;     // [slice][step][kRows]
  float* queries;    // [word][kBlockQueries]
  float* scores;     // [kBlockKeys][kBlockQueries], then probabilities
  float* sums;       // [dim][kBlockQueries], the output before its division
  int32_t* visible;  // keys that take part
  int64_t bytes;

  // kRows packed keys from `key` on.
  PW_INLINE const float* group(int64_t key, int64_t words) const {
    return keys + key / kLanes * kLanes * words + key % kLanes;
  }
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
  s.keys = take(padded(most_keys, kLanes) * wide);
  s.values = take(most_keys * wide);
  s.queries = take(wide * kBlockQueries);
  s.scores = take(kBlockKeys * kBlockQueries);
  s.sums = take(wide * kBlockQueries);
  s.visible = reinterpret_cast<int32_t*>(take(most_keys));
  s.bytes = at;
  return s;
}

// Scores of kRows keys from `group` on, and the running maximum of the first `rows` of them.
template <typename Product, int Vectors>
PW_INLINE void score_tile(const float* keys, const float* queries, int64_t words, float factor,
                          int rows, float* scores, VecF (&top)[Vectors]) {
  VecF sums[kRows][Vectors] = {};
  multiply<Product, kRows, Vectors>(keys, 1, kLanes, queries, kBlockQueries, words, sums);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      if (Product::kStep != 1) sums[i][v] *= splat(factor);
      store(scores + i * kBlockQueries + v * kLanes, sums[i][v]);
      if (i < rows) top[v] = larger(sums[i][v], top[v]);
    }
  }
}

// Scores in place to probabilities relative to `top`; returns their sums. For pairs the two rows of
// a step become one row of words.
template <typename Product, int Vectors>
PW_INLINE void exponentials(int count, const VecF (&top)[Vectors], float* scores,
                            VecF (&total)[Vectors]) {
  const Exponential exponential;
  for (int v = 0; v < Vectors; ++v) {
    VecF sum = total[v];
    float* at = scores + v * kLanes;
    if constexpr (Product::kStep == 1) {
#pragma GCC unroll 2
      for (int j = 0; j < count; ++j, at += kBlockQueries) {
        const VecF p = exponential(load(at) - top[v]);
        store(at, p);
        sum += p;
      }
    } else {
      float* to = at;
      for (int j = 0; j < count; j += 2, at += 2 * kBlockQueries, to += kBlockQueries) {
        const VecF low = exponential(load(at) - top[v]);
        VecF high{};
        if (j + 1 < count) high = exponential(load(at + kBlockQueries) - top[v]);
        sum += low + high;
        // Rounded to the nearest bfloat16; probabilities are not negative, ties are too rare to
        // mind which way they go.
        const VecU a = (bit_cast<VecU>(low) + 0x8000u) >> 16;
        const VecU b = (bit_cast<VecU>(high) + 0x8000u) & 0xffff0000u;
        store(to, bit_cast<VecF>(a | b));
      }
    }
    total[v] = sum;
  }
}

// Up to Vectors * kLanes packed queries against all packed keys: their sums, and per query what
// divides them and the log-sum-exp.
template <typename Product, int Vectors>
__attribute__((noinline)) void attend(const Scratch& scratch, int64_t keys, int64_t dim,
                                      float factor, float* inverse, float* lse) {
  const int64_t words = ceil_div(dim, Product::kStep);
  const int64_t steps = ceil_div(keys, Product::kStep);
  VecF top[Vectors], total[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    // Not -inf: a block of keys with scores of -inf must not make NaN of those to come.
    top[v] = splat(-__FLT_MAX__);
    total[v] = VecF{};
  }
  for (int64_t k0 = 0; k0 < keys; k0 += kBlockKeys) {
    const int n = keys - k0 < kBlockKeys ? static_cast<int>(keys - k0) : kBlockKeys;
    VecF before[Vectors];
    for (int v = 0; v < Vectors; ++v) before[v] = top[v];
    int j = 0;
    for (; j + kRows <= n; j += kRows) {
      score_tile<Product, Vectors>(scratch.group(k0 + j, words), scratch.queries, words, factor,
                                   kRows, scratch.scores + j * kBlockQueries, top);
    }
    if (j < n) {
      score_tile<Product, Vectors>(scratch.group(k0 + j, words), scratch.queries, words, factor,
                                   n - j, scratch.scores + j * kBlockQueries, top);
    }
    VecF shrink[Vectors];
    for (int v = 0; v < Vectors; ++v) {
      shrink[v] = Exponential()(before[v] - top[v]);
      total[v] *= shrink[v];
    }
    exponentials<Product, Vectors>(n, top, scratch.scores, total);
    const int64_t depth = ceil_div(n, Product::kStep);
    for (int64_t d = 0; d < dim; d += kRows) {
      VecF sums[kRows][Vectors];
      float* block = scratch.sums + d * kBlockQueries;
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          sums[i][v] = k0 == 0 ? VecF{} : load(block + i * kBlockQueries + v * kLanes) * shrink[v];
        }
      }
      const float* values = scratch.values + (d / kRows * steps + k0 / Product::kStep) * kRows;
      multiply<Product, kRows, Vectors>(values, 1, kRows, scratch.scores, kBlockQueries, depth,
                                        sums);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          store(block + i * kBlockQueries + v * kLanes, sums[i][v]);
        }
      }
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    store(inverse + v * kLanes, splat(1.0f) / total[v]);
    store(lse + v * kLanes, top[v]);
    for (int i = 0; i < kLanes; ++i) {
      lse[v * kLanes + i] = kLn2 * lse[v * kLanes + i] + __builtin_logf(total[v][i]);
    }
  }
}

// `count` queries from q0 on: packed, attended, stored.
template <typename Element, typename Product>
void run_block(const AttentionParams& p, const AttentionProblem& problem, const Scratch& scratch,
               int64_t keys, int64_t q0, int64_t count) {
  typedef typename Element::Storage T;
  const AttentionStream& s = *problem.stream;
  const float factor = s.scale * kLog2E;
  const int64_t row = problem.first_query + q0;
  const RowList<T> rows = {static_cast<const T*>(s.q) + attention_offset(problem, row, s.q_stride),
                           s.q_stride[2], nullptr};
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    pack_lanes_of<Element, Product>(rows, i, n, p.dim, factor, kBlockQueries, scratch.queries + i);
  }
  float inverse[kBlockQueries], lse[kBlockQueries];
  if (count > 2 * kLanes) {
    attend<Product, 3>(scratch, keys, p.dim, factor, inverse, lse);
  } else if (count > kLanes) {
    attend<Product, 2>(scratch, keys, p.dim, factor, inverse, lse);
  } else {
    attend<Product, 1>(scratch, keys, p.dim, factor, inverse, lse);
  }
  store_rows<Element>(scratch.sums, inverse, count, p.dim,
                      static_cast<T*>(s.out) + attention_offset(problem, row, s.out_stride),
                      s.out_stride[2]);
  if (s.lse == nullptr) return;
  float* target = s.lse + attention_offset(problem, row, s.lse_stride);
  for (int64_t i = 0; i < count; ++i) target[i * s.lse_stride[2]] = lse[i];
}

// Queries without any key: zeros and -inf.
template <typename Element>
void clear(const AttentionParams& p, const AttentionProblem& problem, int64_t q0, int64_t count) {
  typedef typename Element::Storage T;
  const AttentionStream& s = *problem.stream;
  const int64_t first = problem.first_query + q0;
  T* out = static_cast<T*>(s.out) + attention_offset(problem, first, s.out_stride);
  for (int64_t i = 0; i < count; ++i) {
    __builtin_memset(out + i * s.out_stride[2], 0, static_cast<size_t>(p.dim) * sizeof(T));
    if (s.lse != nullptr) {
      s.lse[attention_offset(problem, first + i, s.lse_stride)] = -__builtin_inff();
    }
  }
}

// All queries of a problem that has at most kFewQueries of them.
template <typename Element>
void run_few(const AttentionParams& p, const AttentionProblem& problem, const Scratch& scratch,
             const RowList<typename Element::Storage>& k,
             const RowList<typename Element::Storage>& v, int64_t keys) {
  typedef typename Element::Storage T;
  const AttentionStream& s = *problem.stream;
  const int64_t wide = padded(p.dim, kLanes);
  const VecF factor = splat(s.scale * kLog2E);
  const T* q =
      static_cast<const T*>(s.q) + attention_offset(problem, problem.first_query, s.q_stride);
  // Two or four queries at a time: rows without a query are 0 and what becomes of them is dropped.
  for (int64_t i = 0; i < kFewQueries; ++i) {
    for (int64_t d = 0; d < wide; d += kLanes) {
      VecF x{};
      if (i < problem.num_queries) {
        x = Words<Element, FloatProduct>::load(q + i * s.q_stride[2], d, p.dim) * factor;
      }
      store(scratch.queries + i * wide + d, x);
    }
  }
  float top[kFewQueries], total[kFewQueries];
  auto attend_some = problem.num_queries == 1   ? &attend_few<Element, 1>
                     : problem.num_queries == 2 ? &attend_few<Element, 2>
                                                : &attend_few<Element, kFewQueries>;
  attend_some(k, v, keys, p.dim, scratch.queries, scratch.scores, scratch.sums, top, total);
  for (int64_t i = 0; i < problem.num_queries; ++i) {
    T* out =
        static_cast<T*>(s.out) + attention_offset(problem, problem.first_query + i, s.out_stride);
    const VecF inverse = splat(1.0f / total[i]);
    for (int64_t d = 0; d < p.dim; d += kLanes) {
      const VecF x = load(scratch.sums + i * wide + d) * inverse;
      if (d + kLanes <= p.dim) {
        Element::store(out + d, x);
      } else {
        store_tail<Element>(out + d, x, static_cast<int>(p.dim - d));
      }
    }
    if (s.lse == nullptr) continue;
    s.lse[attention_offset(problem, problem.first_query + i, s.lse_stride)] =
        kLn2 * top[i] + __builtin_logf(total[i]);
  }
}

template <typename Element, typename Product>
void run_problem(const AttentionParams& p, const AttentionProblem& problem, int64_t first,
                 int64_t last, const Scratch& scratch) {
  typedef typename Element::Storage T;
  const AttentionStream& s = *problem.stream;
  int64_t keys = problem.num_keys;
  const int32_t* index = nullptr;
  if (const uint8_t* mask = attention_mask(problem)) {
    keys = attention_visible(problem, mask, scratch.visible);
    index = scratch.visible;
  }
  if (keys > 0) {
    const int64_t steps = ceil_div(keys, Product::kStep);
    const RowList<T> k = {
        static_cast<const T*>(s.k) + attention_offset(problem, problem.first_key, s.k_stride),
        s.k_stride[2], index};
    const RowList<T> v = {
        static_cast<const T*>(s.v) + attention_offset(problem, problem.first_key, s.v_stride),
        s.v_stride[2], index};
    // Pairs of bfloat16 have no such form: their products round once for two elements.
    if (Product::kStep == 1 && problem.num_queries <= kFewQueries) {
      run_few<Element>(p, problem, scratch, k, v, keys);
      return;
    }
    pack_groups<Element, Product>(k, keys, p.dim, scratch.keys);
    pack_slices<Element, Product>(v, keys, p.dim, steps, scratch.values);
  }
  for (int64_t block = first; block < last; ++block) {
    const int64_t q0 = block * kBlockQueries;
    const int64_t left = problem.num_queries - q0;
    const int64_t count = left < kBlockQueries ? left : kBlockQueries;
    if (keys == 0) {
      clear<Element>(p, problem, q0, count);
    } else {
      run_block<Element, Product>(p, problem, scratch, keys, q0, count);
    }
  }
}

int64_t scratch_bytes(const AttentionParams& p, int64_t most_keys) {
  return scratch_at(nullptr, most_keys, p.dim).bytes;
}

// One nanosecond does about 16 multiplications and additions.
int threads_for(const AttentionParams& p, int64_t cost, int threads) {
  const double work = static_cast<double>(cost) * kBlockQueries * static_cast<double>(p.dim);
  return useful_threads(threads, cost, work / 16.0);
}

template <typename Element, typename Product>
Status forward_as(const AttentionParams& p, int threads) {
  const AttentionSize size = attention_size(p, kSplit);
  threads = threads_for(p, size.cost, threads);
  const int64_t bytes = scratch_bytes(p, size.most_keys);
  if (p.workspace_bytes < bytes * threads) return invalid("workspace is too small");
  parallel_for(threads, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const Scratch scratch =
          scratch_at(static_cast<char*>(p.workspace) + t * bytes, size.most_keys, p.dim);
      attention_share(p, kSplit, size.cost, static_cast<int>(t), threads,
                      [&](const AttentionProblem& problem, int64_t first, int64_t last) {
                        run_problem<Element, Product>(p, problem, first, last, scratch);
                      });
    }
  });
  return ok_status();
}

#if defined(PW_LEVEL_AVX512_BF16) || defined(PW_LEVEL_AVX512_EMULATED)
// The emulated level takes the pairs too, so that their logic is tested without the instruction.
typedef PairProduct BFloat16Product;
#else
typedef FloatProduct BFloat16Product;
#endif

Status forward(const AttentionParams& p, int threads) {
  const Status status = attention_check(p);
  if (!status.ok()) return status;
  switch (p.dtype) {
    case DType::kFloat32: return forward_as<Float32, FloatProduct>(p, threads);
    case DType::kFloat16: return forward_as<Float16, FloatProduct>(p, threads);
    case DType::kBFloat16: return forward_as<BFloat16, BFloat16Product>(p, threads);
    default: return unsupported("dtype must be float32, float16 or bfloat16");
  }
}

int64_t forward_workspace(const AttentionParams& p, int threads) {
  if (!attention_check(p).ok()) return 0;
  const AttentionSize size = attention_size(p, kSplit);
  return scratch_bytes(p, size.most_keys) * threads_for(p, size.cost, threads);
}

}  // namespace
}  // namespace PW_LEVEL

extern const AttentionTable PW_LEVEL_TABLE(kAttention);
const AttentionTable PW_LEVEL_TABLE(kAttention) = {
    &PW_LEVEL::forward, &PW_LEVEL::attention_backward, &PW_LEVEL::forward_workspace,
    &PW_LEVEL::attention_backward_workspace};

}  // namespace patchword
