// SPDX-License-Identifier: Apache-2.0
// The recurrence on the CPU: time outside, units in lanes, threads over runs of units.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/threads.h"
#include "kernels/sru/sru.h"
#include "kernels/sru/sru_steps.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// Units that one task carries through time: their rows of a step stay in the L1 cache.
constexpr int64_t kMostUnits = 256;

// How the units are dealt out. A run never crosses from one direction into the other.
struct Runs {
  int64_t half, block, per_half, count;
  bool both;

  Runs(const SruParams& p, int threads, int64_t tasks_per_run) : both(p.bidirectional != 0) {
    half = both ? p.units / 2 : p.units;
    block = kMostUnits;
    // Shorter runs feed more threads; the arithmetic of a unit does not depend on its run.
    while (block > 4 * kLanes && tasks_per_run * (both ? 2 : 1) * panels(half, block) < threads) {
      block /= 2;
    }
    per_half = panels(half, block);
    count = per_half * (both ? 2 : 1);
  }

  static int64_t panels(int64_t n, int64_t width) { return (n + width - 1) / width; }
  bool reversed(int64_t run) const { return run >= per_half; }
  int64_t first(int64_t run) const { return (reversed(run) ? half : 0) + run % per_half * block; }
  int64_t units(int64_t run) const {
    const int64_t left = half - run % per_half * block;
    return left < block ? left : block;
  }
};

int64_t length_of(const SruParams& p, int64_t b) {
  if (p.lengths == nullptr) return p.steps;
  const int64_t length = p.lengths[b];
  return length < 0 ? 0 : (length < p.steps ? length : p.steps);
}

template <typename Element>
void widen(const typename Element::Storage* from, int64_t stride, int64_t n, float* to) {
  int64_t j = 0;
  if (stride == 1) {
    for (; j + kLanes <= n; j += kLanes) store(to + j, Element::load(from + j));
  }
  for (; j < n; ++j) to[j] = load_scalar<Element>(from + j * stride);
}
template <>
void widen<Float32>(const float* from, int64_t stride, int64_t n, float* to) {
  for (int64_t j = 0; j < n; ++j) to[j] = from[j * stride];
}

template <typename Element>
void narrow(const float* from, int64_t stride, int64_t n, typename Element::Storage* to) {
  int64_t j = 0;
  if (stride == 1) {
    for (; j + kLanes <= n; j += kLanes) Element::store(to + j, load(from + j));
  }
  for (; j < n; ++j) store_scalar<Element>(to + j * stride, from[j]);
}
template <>
void narrow<Float32>(const float* from, int64_t stride, int64_t n, float* to) {
  for (int64_t j = 0; j < n; ++j) to[j * stride] = from[j];
}

// The floats at `from` with this stride: in place where they are contiguous floats, else copied.
template <typename Element>
PW_INLINE const float* readable(const typename Element::Storage* from, int64_t stride, int64_t n,
                                float* scratch) {
  if constexpr (sizeof(typename Element::Storage) == sizeof(float)) {
    if (stride == 1) return from;
  }
  widen<Element>(from, stride, n, scratch);
  return scratch;
}
// Where to write n floats that belong at `to`; `written` moves them there if that is not in place.
template <typename Element>
PW_INLINE float* writable(typename Element::Storage* to, int64_t stride, float* scratch) {
  if constexpr (sizeof(typename Element::Storage) == sizeof(float)) {
    if (stride == 1) return to;
  }
  return scratch;
}
template <typename Element>
PW_INLINE void written(typename Element::Storage* to, int64_t stride, int64_t n,
                       const float* scratch) {
  if constexpr (sizeof(typename Element::Storage) == sizeof(float)) {
    if (stride == 1) return;
  }
  narrow<Element>(scratch, stride, n, to);
}

template <typename Element>
void zero(typename Element::Storage* to, int64_t stride, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j * stride] = 0;  // all bits 0 is 0 in every type
}

template <typename Element>
struct Source {
  typedef typename Element::Storage Storage;
  const SruParams& p;
  float scratch[4][kMostUnits];
  float zeros[kMostUnits];  // the initial state when none is given

  explicit Source(const SruParams& params) : p(params) {
    for (int64_t j = 0; j < kMostUnits; ++j) zeros[j] = 0.0f;
  }

  const Storage* gate(int64_t t, int64_t b, int64_t g, int64_t j) const {
    return static_cast<const Storage*>(p.gates) + t * p.gates_stride[0] + b * p.gates_stride[1] +
           g * p.gates_stride[2] + j * p.gates_stride[3];
  }

  // What does not change from step to step.
  StepInputs constants(int64_t b, int64_t j) const {
    StepInputs in{};
    in.bias[0] = p.bias + j;
    in.bias[1] = p.bias + p.units + j;
    in.weight[0] = p.weight + j;
    in.weight[1] = p.weight + p.units + j;
    in.mask = p.mask == nullptr ? nullptr : p.mask + b * p.units + j;
    in.scale = p.gate_count == 4 ? 1.0f : p.scale_x;
    return in;
  }
  const float* initial(int64_t b, int64_t j) const {
    return p.initial == nullptr ? zeros : p.initial + b * p.units + j;
  }

  PW_INLINE void read(StepInputs& in, int64_t t, int64_t b, int64_t j, int64_t n, bool whole) {
    const int64_t stride = p.gates_stride[3];
    for (int g = 0; g < (whole ? 3 : 2); ++g) {
      in.gate[g] = readable<Element>(gate(t, b, g, j), stride, n, scratch[g]);
    }
    if (!whole) return;
    if (p.gate_count == 4) {
      in.highway = readable<Element>(gate(t, b, 3, j), stride, n, scratch[3]);
    } else {
      const Storage* x = static_cast<const Storage*>(p.highway) + t * p.highway_stride[0] +
                         b * p.highway_stride[1] + j * p.highway_stride[2];
      in.highway = readable<Element>(x, p.highway_stride[2], n, scratch[3]);
    }
  }
};

template <typename Element>
void run_forward(const SruParams& p, const Runs& runs, ForwardStep step_forward, int64_t run,
                 int64_t b) {
  typedef typename Element::Storage Storage;
  Source<Element> source(p);
  float held[kMostUnits], out[kMostUnits];
  const int64_t j = runs.first(run), n = runs.units(run), length = length_of(p, b);
  const bool reversed = runs.reversed(run);
  Storage* const h = static_cast<Storage*>(p.out);
  StepInputs in = source.constants(b, j);
  const float* state = source.initial(b, j);
  for (int64_t step = 0; step < length; ++step) {
    const int64_t t = reversed ? length - 1 - step : step;
    const bool whole = p.last_only == 0 || step == length - 1;
    source.read(in, t, b, j, n, whole);
    in.state = state;
    float* const after = p.states == nullptr ? held : p.states + (t * p.batch + b) * p.units + j;
    if (whole) {
      Storage* const target = h + (p.last_only ? b : t * p.batch + b) * p.units + j;
      step_forward(in, after, writable<Element>(target, 1, out), n);
      written<Element>(target, 1, n, out);
    } else {
      step_state(in, after, n);
    }
    state = after;
  }
  float* const last = p.last_state + b * p.units + j;
  for (int64_t i = 0; i < n; ++i) last[i] = state[i];
  for (int64_t t = length; t < p.steps; ++t) {
    const int64_t at = (t * p.batch + b) * p.units + j;
    if (p.last_only == 0) zero<Element>(h + at, 1, n);
    if (p.states == nullptr) continue;
    for (int64_t i = 0; i < n; ++i) p.states[at + i] = last[i];
  }
  if (p.last_only != 0 && length == 0) zero<Element>(h + b * p.units + j, 1, n);
}

template <typename Element>
void run_backward(const SruBackwardParams& q, const Runs& runs, BackwardStep step_backward,
                  int64_t run) {
  typedef typename Element::Storage Storage;
  const SruParams& p = q.forward;
  Source<Element> source(p);
  float carry[kMostUnits], incoming[kMostUnits], made[4][kMostUnits];
  float sums[4][kMostUnits], totals[4][kMostUnits];
  const int64_t j = runs.first(run), n = runs.units(run);
  const bool reversed = runs.reversed(run);
  const int64_t stride = q.grad_stride[3];
  for (int k = 0; k < 4; ++k) {
    for (int64_t i = 0; i < n; ++i) totals[k][i] = 0.0f;
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t length = length_of(p, b);
    StepInputs in = source.constants(b, j);
    StepGradients grad{};
    grad.carry = carry;
    // Sums of a sample first, then of the batch: two short chains of additions, not one long one.
    for (int k = 0; k < 4; ++k) {
      grad.sum[k] = sums[k];
      for (int64_t i = 0; i < n; ++i) sums[k][i] = 0.0f;
    }
    for (int64_t i = 0; i < n; ++i) carry[i] = q.grad_last[b * p.units + j + i];
    for (int64_t step = p.steps - 1; step >= 0; --step) {
      const bool real = step < length;
      const int64_t t = reversed && real ? length - 1 - step : step;
      Storage* target[4];
      for (int64_t g = 0; g < p.gate_count; ++g) {
        target[g] = static_cast<Storage*>(q.grad_gates) + t * q.grad_stride[0] +
                    b * q.grad_stride[1] + g * q.grad_stride[2] + j * stride;
      }
      const int64_t row = (t * p.batch + b) * p.units + j;
      int64_t pace[4] = {stride, stride, stride, stride};
      if (p.gate_count == 3) {
        target[3] = static_cast<Storage*>(q.grad_highway) + row;
        pace[3] = 1;
      }
      if (!real) {
        for (int g = 0; g < 4; ++g) zero<Element>(target[g], pace[g], n);
        continue;
      }
      const bool whole = p.last_only == 0 || step == length - 1;
      source.read(in, t, b, j, n, whole);
      const int64_t before = reversed ? t + 1 : t - 1;
      in.state = step == 0 ? source.initial(b, j) : p.states + (before * p.batch + b) * p.units + j;
      grad.next = p.states + row;
      for (int g = 0; g < 3; ++g) grad.gate[g] = writable<Element>(target[g], pace[g], made[g]);
      grad.highway = writable<Element>(target[3], pace[3], made[3]);
      if (whole) {
        const int64_t at = p.last_only ? b * p.units + j : row;
        grad.out = readable<Element>(static_cast<const Storage*>(q.grad_out) + at, 1, n, incoming);
        step_backward(in, grad, n);
      } else {
        step_state_backward(in, grad, n);
      }
      for (int g = 0; g < 4; ++g) written<Element>(target[g], pace[g], n, made[g]);
    }
    for (int64_t i = 0; i < n; ++i) q.grad_initial[b * p.units + j + i] = carry[i];
    for (int k = 0; k < 4; ++k) {
      for (int64_t i = 0; i < n; ++i) totals[k][i] += sums[k][i];
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    q.grad_bias[j + i] = totals[0][i];
    q.grad_bias[p.units + j + i] = totals[1][i];
    q.grad_weight[j + i] = totals[2][i];
    q.grad_weight[p.units + j + i] = totals[3][i];
  }
}

template <typename Element>
Status forward_as(const SruParams& p, int threads) {
  const Runs runs(p, threads, p.batch);
  const ForwardStep step = steps_of(p).forward;
  const int64_t tasks = p.batch * runs.count;
  const double nanoseconds = 1.0 * static_cast<double>(p.steps * p.batch * p.units);
  parallel_for(useful_threads(threads, tasks, nanoseconds), tasks,
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t i = begin; i < end; ++i) {
                   run_forward<Element>(p, runs, step, i % runs.count, i / runs.count);
                 }
               });
  return ok_status();
}

template <typename Element>
Status backward_as(const SruBackwardParams& q, int threads) {
  const SruParams& p = q.forward;
  const Runs runs(p, threads, 1);
  const BackwardStep step = steps_of(p).backward;
  const double nanoseconds = 2.0 * static_cast<double>(p.steps * p.batch * p.units);
  parallel_for(useful_threads(threads, runs.count, nanoseconds), runs.count,
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t i = begin; i < end; ++i) run_backward<Element>(q, runs, step, i);
               });
  return ok_status();
}

Status forward(const SruParams& p, int threads) {
  switch (p.dtype) {
    case DType::kFloat32: return forward_as<Float32>(p, threads);
    case DType::kFloat16: return forward_as<Float16>(p, threads);
    case DType::kBFloat16: return forward_as<BFloat16>(p, threads);
    default: return unsupported("gates must be float32, float16 or bfloat16");
  }
}

Status backward(const SruBackwardParams& q, int threads) {
  switch (q.forward.dtype) {
    case DType::kFloat32: return backward_as<Float32>(q, threads);
    case DType::kFloat16: return backward_as<Float16>(q, threads);
    case DType::kBFloat16: return backward_as<BFloat16>(q, threads);
    default: return unsupported("gates must be float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace PW_LEVEL

extern const SruTable PW_LEVEL_TABLE(kSru);
const SruTable PW_LEVEL_TABLE(kSru) = {&PW_LEVEL::forward, &PW_LEVEL::backward};

}  // namespace patchword
