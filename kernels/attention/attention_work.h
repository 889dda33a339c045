// SPDX-License-Identifier: Apache-2.0
// The problems of a call, one per stream, batch element and head, and how threads share them.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/common/portable.h"

namespace patchword {

// One problem: where its rows begin and how many they are.
struct AttentionProblem {
  const AttentionStream* stream;
  int32_t stream_index;
  int64_t b, h;
  int64_t first_query, num_queries;  // rows of q within batch element b, after b * stride
  int64_t first_key, num_keys;       // keys up to the length of the element; masked ones included
};

PW_PORTABLE AttentionProblem attention_problem(const AttentionParams& p, int64_t index) {
  const int64_t per_stream = p.batch * p.heads;
  AttentionProblem problem{};
  problem.stream_index = static_cast<int32_t>(index / per_stream);
  problem.stream = &p.streams[problem.stream_index];
  problem.b = index % per_stream / p.heads;
  problem.h = index % p.heads;
  const AttentionStream& s = *problem.stream;
  problem.num_queries = s.num_queries;
  if (s.query_offsets != nullptr) {
    problem.first_query = s.query_offsets[problem.b];
    problem.num_queries = s.query_offsets[problem.b + 1] - problem.first_query;
  }
  problem.num_keys = s.num_keys;
  if (s.key_offsets != nullptr) {
    problem.first_key = s.key_offsets[problem.b];
    problem.num_keys = s.key_offsets[problem.b + 1] - problem.first_key;
  }
  if (s.key_lengths != nullptr) {
    const int64_t length = s.key_lengths[problem.b];
    if (length < problem.num_keys) problem.num_keys = length < 0 ? 0 : length;
  }
  return problem;
}

PW_PORTABLE int64_t attention_problems(const AttentionParams& p) {
  return p.num_streams * p.batch * p.heads;
}

PW_PORTABLE const uint8_t* attention_mask(const AttentionProblem& problem) {
  const AttentionStream& s = *problem.stream;
  if (s.key_mask == nullptr) return nullptr;
  return s.key_mask + problem.b * s.mask_stride + problem.first_key;
}

// Element offset of the problem's first row in a tensor with these strides.
PW_PORTABLE int64_t attention_offset(const AttentionProblem& problem, int64_t first_row,
                                     const int64_t (&stride)[3]) {
  return problem.b * stride[0] + problem.h * stride[1] + first_row * stride[2];
}

// How a problem is cut into units of equal work, and what one of them costs: proportional to the
// arithmetic, plus what a unit costs anyway.
struct SplitQueries {
  int64_t block;
  int64_t units(const AttentionProblem& p) const { return (p.num_queries + block - 1) / block; }
  int64_t cost(const AttentionProblem& p) const { return p.num_keys + 16; }
};
struct SplitKeys {
  int64_t block;
  int64_t units(const AttentionProblem& p) const { return (p.num_keys + block - 1) / block; }
  int64_t cost(const AttentionProblem& p) const { return p.num_queries + 16; }
};
struct SplitProblems {
  int64_t units(const AttentionProblem&) const { return 1; }
  int64_t cost(const AttentionProblem& p) const { return p.num_queries * p.num_keys / 16 + 16; }
};

PW_PORTABLE Status attention_check_offsets(const int64_t* offsets, int64_t batch, int64_t rows) {
  if (offsets == nullptr) return ok_status();
  bool right = offsets[0] == 0 && offsets[batch] == rows;
  for (int64_t b = 0; b < batch; ++b) right = right && offsets[b] <= offsets[b + 1];
  return right ? ok_status() : invalid("offsets must ascend from 0 to the number of rows");
}

// What the CPU can see: offsets are read on the host.
PW_PORTABLE Status attention_check(const AttentionParams& p) {
  if (p.num_streams < 1 || p.num_streams > kAttentionMaxStreams) {
    return invalid("num_streams must be 1 or 2");
  }
  if (p.dim < 1 || p.dim > kAttentionMaxDim) return unsupported("dim must be 1 to 128");
  for (int i = 0; i < p.num_streams; ++i) {
    const AttentionStream& s = p.streams[i];
    if (s.num_keys >= int64_t{1} << 31) return unsupported("a set has 2^31 keys or more");
    Status status = attention_check_offsets(s.query_offsets, p.batch, s.num_queries);
    if (status.ok()) status = attention_check_offsets(s.key_offsets, p.batch, s.num_keys);
    if (!status.ok()) return status;
  }
  return ok_status();
}

struct AttentionSize {
  int64_t cost;       // of all units of all problems
  int64_t most_keys;  // of one problem
};

template <typename Split>
PW_PORTABLE AttentionSize attention_size(const AttentionParams& p, const Split& split) {
  AttentionSize size{};
  const int64_t problems = attention_problems(p);
  for (int64_t i = 0; i < problems; i += p.heads) {
    const AttentionProblem problem = attention_problem(p, i);
    size.cost += p.heads * split.units(problem) * split.cost(problem);
    if (problem.num_keys > size.most_keys) size.most_keys = problem.num_keys;
  }
  return size;
}

// body(problem, first unit, end unit) for the part of the work that belongs to this thread: the
// units whose work begins in the thread's share of the whole.
template <typename Split, typename Body>
PW_PORTABLE void attention_share(const AttentionParams& p, const Split& split, int64_t cost,
                                 int thread, int threads, Body&& body) {
  const int64_t begin = cost * thread / threads;
  const int64_t end = cost * (thread + 1) / threads;
  const int64_t problems = attention_problems(p);
  int64_t at = 0;
  for (int64_t i = 0; i < problems && at < end; ++i) {
    const AttentionProblem problem = attention_problem(p, i);
    const int64_t units = split.units(problem);
    const int64_t each = split.cost(problem);
    // Units u with begin <= at + u * each < end.
    int64_t first = at >= begin ? 0 : (begin - at + each - 1) / each;
    int64_t last = (end - at + each - 1) / each;
    if (first > units) first = units;
    if (last > units) last = units;
    if (first < last) body(problem, first, last);
    at += units * each;
  }
}

// Numbers of the keys that take part, for a problem with a mask; returns how many they are.
PW_PORTABLE int64_t attention_visible(const AttentionProblem& problem, const uint8_t* mask,
                                      int32_t* visible) {
  int64_t count = 0;
  for (int64_t i = 0; i < problem.num_keys; ++i) {
    visible[count] = static_cast<int32_t>(i);
    count += mask[i] != 0;
  }
  return count;
}

}  // namespace patchword
