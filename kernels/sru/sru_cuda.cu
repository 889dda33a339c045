// SPDX-License-Identifier: Apache-2.0
// The recurrence on CUDA: a thread carries a few units of one sample through time and asks for the
// values of the next step before it works on this one.

#include "kernels/common/half.h"
#include "kernels/common/simt.cuh"
#include "kernels/sru/sru.h"

namespace patchword {
namespace {

using simt::Pack;

constexpr int kThreads = 128;

PW_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

PW_DEVICE int64_t length_of(const SruParams& p, int64_t b) {
  if (p.lengths == nullptr) return p.steps;
  const int64_t length = p.lengths[b];
  return length < 0 ? 0 : (length < p.steps ? length : p.steps);
}

// Which units of which sample a thread has, and in which order it goes through time.
struct Chain {
  int64_t b, unit, length;
  bool active, reversed;

  PW_DEVICE Chain(const SruParams& p, int pack) {
    const int64_t per_sample = p.units / pack;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    active = i < p.batch * per_sample;
    b = active ? i / per_sample : 0;
    unit = active ? i % per_sample * pack : 0;
    length = active ? length_of(p, b) : 0;
    reversed = p.bidirectional != 0 && unit >= p.units / 2;
  }
  PW_DEVICE int64_t time(int64_t step) const { return reversed ? length - 1 - step : step; }
};

template <int kPack>
PW_DEVICE Pack<float, kPack> load_or(const float* from, float otherwise) {
  if (from != nullptr) return simt::load_pack<kPack>(from);
  Pack<float, kPack> values;
  PW_UNROLL
  for (int k = 0; k < kPack; ++k) values[k] = otherwise;
  return values;
}

// u0, u1, u2 and the highway input of a step.
template <class T, int kPack>
struct Step {
  Pack<T, kPack> value[4];

  PW_DEVICE void load(const SruParams& p, int64_t t, int64_t b, int64_t unit) {
    const T* gates = static_cast<const T*>(p.gates) + t * p.gates_stride[0] +
                     b * p.gates_stride[1] + unit * p.gates_stride[3];
    PW_UNROLL
    for (int g = 0; g < 3; ++g) value[g] = simt::load_pack<kPack>(gates + g * p.gates_stride[2]);
    const T* highway = p.gate_count == 4
                           ? gates + 3 * p.gates_stride[2]
                           : static_cast<const T*>(p.highway) + t * p.highway_stride[0] +
                                 b * p.highway_stride[1] + unit * p.highway_stride[2];
    value[3] = simt::load_pack<kPack>(highway);
  }
};

template <class T, int kPack>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) run_forward(const SruParams p) {
  const Chain chain(p, kPack);
  if (!chain.active) return;
  const int64_t b = chain.b, unit = chain.unit, row = b * p.units + unit;
  const Pack<float, kPack> bias_f = simt::load_pack<kPack>(p.bias + unit);
  const Pack<float, kPack> bias_r = simt::load_pack<kPack>(p.bias + p.units + unit);
  const Pack<float, kPack> weight_f = simt::load_pack<kPack>(p.weight + unit);
  const Pack<float, kPack> weight_r = simt::load_pack<kPack>(p.weight + p.units + unit);
  const Pack<float, kPack> mask = load_or<kPack>(p.mask == nullptr ? nullptr : p.mask + row, 1.0f);
  Pack<float, kPack> c = load_or<kPack>(p.initial == nullptr ? nullptr : p.initial + row, 0.0f);
  const float scale = p.gate_count == 4 ? 1.0f : p.scale_x;
  T* out = static_cast<T*>(p.out);
  Step<T, kPack> next{};
  if (chain.length > 0) next.load(p, chain.time(0), b, unit);
  for (int64_t step = 0; step < chain.length; ++step) {
    const Step<T, kPack> now = next;
    if (step + 1 < chain.length) next.load(p, chain.time(step + 1), b, unit);
    const int64_t at = chain.time(step) * p.batch * p.units + row;
    const bool whole = p.last_only == 0 || step + 1 == chain.length;
    Pack<T, kPack> h;
    PW_UNROLL
    for (int k = 0; k < kPack; ++k) {
      const float before = c[k], candidate = to_float(now.value[0][k]);
      const float forget =
          sigmoid(fmaf(weight_f[k], before, to_float(now.value[1][k]) + bias_f[k]));
      c[k] = fmaf(before - candidate, forget, candidate);
      if (!whole) continue;
      float reset = sigmoid(fmaf(weight_r[k], before, to_float(now.value[2][k]) + bias_r[k]));
      float active = p.activation == SruActivation::kTanh ? tanhf(c[k]) : c[k];
      if (p.dropout == SruDropout::kDifference) {
        reset *= mask[k];
      } else {
        active *= mask[k];
      }
      const float x = to_float(now.value[3][k]) * scale;
      h[k] = from_float<T>(fmaf(active - x, reset, x));
    }
    if (p.states != nullptr) simt::store_pack(p.states + at, c);
    if (whole) simt::store_pack(out + (p.last_only ? row : at), h);
  }
  simt::store_pack(p.last_state + row, c);
  Pack<T, kPack> nothing;
  PW_UNROLL
  for (int k = 0; k < kPack; ++k) nothing[k] = from_float<T>(0.0f);
  for (int64_t t = chain.length; t < p.steps; ++t) {
    const int64_t at = t * p.batch * p.units + row;
    if (p.last_only == 0) simt::store_pack(out + at, nothing);
    if (p.states != nullptr) simt::store_pack(p.states + at, c);
  }
  if (p.last_only != 0 && chain.length == 0) simt::store_pack(out + row, nothing);
}

template <class T, int kPack>
PW_DEVICE void store_gradient(T* target, const float (&values)[kPack]) {
  Pack<T, kPack> pack;
  PW_UNROLL
  for (int k = 0; k < kPack; ++k) pack[k] = from_float<T>(values[k]);
  simt::store_pack(target, pack);
}

template <class T, int kPack>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) run_backward(const SruBackwardParams q) {
  const SruParams& p = q.forward;
  const Chain chain(p, kPack);
  if (!chain.active) return;
  const int64_t b = chain.b, unit = chain.unit, row = b * p.units + unit;
  const Pack<float, kPack> bias_f = simt::load_pack<kPack>(p.bias + unit);
  const Pack<float, kPack> bias_r = simt::load_pack<kPack>(p.bias + p.units + unit);
  const Pack<float, kPack> weight_f = simt::load_pack<kPack>(p.weight + unit);
  const Pack<float, kPack> weight_r = simt::load_pack<kPack>(p.weight + p.units + unit);
  const Pack<float, kPack> mask = load_or<kPack>(p.mask == nullptr ? nullptr : p.mask + row, 1.0f);
  const Pack<float, kPack> first =
      load_or<kPack>(p.initial == nullptr ? nullptr : p.initial + row, 0.0f);
  const float scale = p.gate_count == 4 ? 1.0f : p.scale_x;
  const T* grad_out = static_cast<const T*>(q.grad_out);
  Pack<float, kPack> carry = simt::load_pack<kPack>(q.grad_last + row);
  float sums[4][kPack] = {};
  float nothing[kPack] = {};
  Step<T, kPack> next{};
  Pack<float, kPack> after{};
  if (chain.length > 0) {
    const int64_t t = chain.time(chain.length - 1);
    next.load(p, t, b, unit);
    after = simt::load_pack<kPack>(p.states + t * p.batch * p.units + row);
  }
  for (int64_t step = p.steps - 1; step >= 0; --step) {
    const bool real = step < chain.length;
    const int64_t t = real ? chain.time(step) : step;
    const int64_t at = t * p.batch * p.units + row;
    T* gates = static_cast<T*>(q.grad_gates) + t * q.grad_stride[0] + b * q.grad_stride[1] +
               unit * q.grad_stride[3];
    T* highway =
        p.gate_count == 4 ? gates + 3 * q.grad_stride[2] : static_cast<T*>(q.grad_highway) + at;
    if (!real) {
      PW_UNROLL
      for (int g = 0; g < 3; ++g) store_gradient<T, kPack>(gates + g * q.grad_stride[2], nothing);
      store_gradient<T, kPack>(highway, nothing);
      continue;
    }
    const Step<T, kPack> now = next;
    Pack<float, kPack> before = first;
    if (step > 0) {
      const int64_t previous = chain.time(step - 1);
      next.load(p, previous, b, unit);
      before = simt::load_pack<kPack>(p.states + previous * p.batch * p.units + row);
    }
    const bool whole = p.last_only == 0 || step + 1 == chain.length;
    Pack<T, kPack> incoming{};
    if (whole) incoming = simt::load_pack<kPack>(grad_out + (p.last_only ? row : at));
    float made[4][kPack];
    PW_UNROLL
    for (int k = 0; k < kPack; ++k) {
      const float candidate = to_float(now.value[0][k]);
      const float forget =
          sigmoid(fmaf(weight_f[k], before[k], to_float(now.value[1][k]) + bias_f[k]));
      float d_state = carry[k], d_reset = 0.0f, d_highway = 0.0f;
      if (whole) {
        const float reset =
            sigmoid(fmaf(weight_r[k], before[k], to_float(now.value[2][k]) + bias_r[k]));
        const float x = to_float(now.value[3][k]) * scale;
        const float active = p.activation == SruActivation::kTanh ? tanhf(after[k]) : after[k];
        const float slope = p.activation == SruActivation::kTanh ? 1.0f - active * active : 1.0f;
        const bool difference = p.dropout == SruDropout::kDifference;
        const float blend = difference ? (active - x) * mask[k] : fmaf(active, mask[k], -x);
        const float out = to_float(incoming[k]);
        d_reset = out * blend * (reset * (1.0f - reset));
        d_state = fmaf(out * reset, slope * mask[k], d_state);
        d_highway = out * (1.0f - (difference ? reset * mask[k] : reset)) * scale;
      }
      const float d_forget = d_state * (before[k] - candidate) * (forget * (1.0f - forget));
      made[0][k] = d_state * (1.0f - forget);
      made[1][k] = d_forget;
      made[2][k] = d_reset;
      made[3][k] = d_highway;
      carry[k] = fmaf(d_reset, weight_r[k], fmaf(d_forget, weight_f[k], d_state * forget));
      sums[0][k] += d_forget;
      sums[1][k] += d_reset;
      sums[2][k] = fmaf(d_forget, before[k], sums[2][k]);
      sums[3][k] = fmaf(d_reset, before[k], sums[3][k]);
    }
    PW_UNROLL
    for (int g = 0; g < 3; ++g) store_gradient<T, kPack>(gates + g * q.grad_stride[2], made[g]);
    store_gradient<T, kPack>(highway, made[3]);
    after = before;
  }
  simt::store_pack(q.grad_initial + row, carry);
  PW_UNROLL
  for (int s = 0; s < 4; ++s) {
    store_gradient<float, kPack>(q.partial + (b * 4 + s) * p.units + unit, sums[s]);
  }
}

// Adds the samples' sums in their order: a thread per (sum, unit).
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) add_samples(const SruBackwardParams q) {
  const SruParams& p = q.forward;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= 4 * p.units) return;
  float total = 0.0f;
  for (int64_t b = 0; b < p.batch; ++b) total += q.partial[b * 4 * p.units + i];
  if (i < 2 * p.units) {
    q.grad_bias[i] = total;
  } else {
    q.grad_weight[i - 2 * p.units] = total;
  }
}

// Whether packs of `pack` units are aligned in every array and stay within one direction.
bool packs(const SruParams& p, const void* more, const int64_t* more_stride, int64_t pack,
           int64_t element_bytes) {
  const int64_t bytes = pack * element_bytes;
  const auto fits = [&](const void* base, const int64_t* stride, int count) {
    if (base == nullptr) return true;
    if (reinterpret_cast<uintptr_t>(base) % bytes != 0 || stride[count - 1] != 1) return false;
    for (int i = 0; i + 1 < count; ++i) {
      if (stride[i] % pack != 0) return false;
    }
    return true;
  };
  return p.units % (p.bidirectional ? 2 * pack : pack) == 0 && fits(p.gates, p.gates_stride, 4) &&
         fits(p.gate_count == 4 ? nullptr : p.highway, p.highway_stride, 3) &&
         fits(more, more_stride, 4);
}

// 4 units a thread need fewer instructions; with few chains, more threads matter more.
bool worth_packing(const SruParams& p) {
  return p.batch * p.units >= int64_t{4} * 2048 * simt::multiprocessor_count();
}

template <class T>
simt::Status forward_as(const SruParams& p, void* stream) {
  const int64_t chains = p.batch * p.units;
  if (worth_packing(p) && packs(p, nullptr, nullptr, 4, sizeof(T))) {
    return PW_LAUNCH((run_forward<T, 4>), simt::blocks_for(chains / 4, kThreads), dim3(kThreads), 0,
                     stream, p);
  }
  return PW_LAUNCH((run_forward<T, 1>), simt::blocks_for(chains, kThreads), dim3(kThreads), 0,
                   stream, p);
}

template <class T>
simt::Status backward_as(const SruBackwardParams& q, void* stream) {
  const SruParams& p = q.forward;
  const int64_t chains = p.batch * p.units;
  simt::Status status;
  if (worth_packing(p) && packs(p, q.grad_gates, q.grad_stride, 4, sizeof(T))) {
    status = PW_LAUNCH((run_backward<T, 4>), simt::blocks_for(chains / 4, kThreads), dim3(kThreads),
                       0, stream, q);
  } else {
    status = PW_LAUNCH((run_backward<T, 1>), simt::blocks_for(chains, kThreads), dim3(kThreads), 0,
                       stream, q);
  }
  if (!status.ok()) return status;
  return PW_LAUNCH((add_samples), simt::blocks_for(4 * p.units, kThreads), dim3(kThreads), 0,
                   stream, q);
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_sru(const patchword::SruParams* p, void* stream, char* message,
                          size_t length) {
  using namespace patchword;
  if (p->batch == 0 || p->units == 0) return 0;
  return simt::report_for_dtype(p->dtype, "sru: gates", message, length, [&](auto type) {
    return forward_as<typename decltype(type)::type>(*p, stream);
  });
}

PW_EXPORT int pw_cuda_sru_backward(const patchword::SruBackwardParams* q, void* stream,
                                   char* message, size_t length) {
  using namespace patchword;
  if (q->forward.batch == 0 || q->forward.units == 0) return 0;
  return simt::report_for_dtype(q->forward.dtype, "sru: gates", message, length, [&](auto type) {
    return backward_as<typename decltype(type)::type>(*q, stream);
  });
}
