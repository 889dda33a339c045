// SPDX-License-Identifier: Apache-2.0
// One time step of a run of units, forward and backward: all of it in lanes. For level units only.
#pragma once

#include "kernels/sru/gate_math.h"
#include "kernels/sru/sru.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

PW_INLINE VecF load_units(const float* p, int n) {
  return n == kLanes ? load(p) : load_tail<Float32>(p, n);
}
PW_INLINE void store_units(float* p, VecF v, int n) {
  if (n == kLanes) {
    store(p, v);
  } else {
    store_tail<Float32>(p, v, n);
  }
}

// What a step reads; pointers to the first unit of the run.
struct StepInputs {
  const float* gate[3];  // u0, u1, u2
  const float* highway;  // u3 or x
  const float* bias[2];
  const float* weight[2];
  const float* mask;
  const float* state;  // before the step
  float scale;         // of the highway input
};

struct StepGradients {
  const float* out;   // of h
  const float* next;  // state after the step
  float* carry;       // of the state: after the step on entry, before it on return
  float* gate[3];     // of u0, u1, u2
  float* highway;     // of u3 or x
  float* sum[4];      // of both biases, both weights; added to
};

// Units whose gates are worked out before their outputs. Both chains of operations are long: side
// by side in one loop, a processor's window would not hold enough of them to stay busy.
constexpr int kPartVectors = 16;

// body(first unit, units) for every vector of [begin, end); the last one may be cut short.
template <typename Body>
PW_INLINE void each_vector(int64_t begin, int64_t end, Body&& body) {
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) body(j, kLanes);
  if (j < end) body(j, static_cast<int>(end - j));
}

// body(begin, end) for every part of [0, units).
template <typename Body>
PW_INLINE void each_part(int64_t units, Body&& body) {
  constexpr int64_t kPart = kPartVectors * kLanes;
  for (int64_t j = 0; j < units; j += kPart) body(j, j + kPart < units ? j + kPart : units);
}

// What holds for a whole call: one loop each, so that no branch sits inside. A function each as
// well, never inlined: element types share them.
template <bool Tanh_, bool Masked_, bool Difference_>
struct Variant {
  static constexpr bool kTanh = Tanh_, kMasked = Masked_, kDifference = Difference_;
};

PW_INLINE VecF forget_input(const StepInputs& in, VecF before, int64_t j, int n) {
  return fma(load_units(in.weight[0] + j, n), before,
             load_units(in.gate[1] + j, n) + load_units(in.bias[0] + j, n));
}
PW_INLINE VecF reset_input(const StepInputs& in, VecF before, int64_t j, int n) {
  return fma(load_units(in.weight[1] + j, n), before,
             load_units(in.gate[2] + j, n) + load_units(in.bias[1] + j, n));
}

// State and output after a step.
template <typename V>
__attribute__((noinline)) void step_forward(const StepInputs& given, float* state, float* out,
                                            int64_t units) {
  const StepInputs in = given;  // a copy that no store can change
  VecF resets[kPartVectors];
  each_part(units, [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
    each_vector(begin, end, [&](int64_t j, int n) __attribute__((always_inline)) {
      const VecF before = load_units(in.state + j, n);
      const VecF candidate = load_units(in.gate[0] + j, n);
      const Gates g = sigmoids(forget_input(in, before, j, n), reset_input(in, before, j, n));
      store_units(state + j, fma(before - candidate, g.forget, candidate), n);
      resets[(j - begin) / kLanes] = g.reset;
    });
    each_vector(begin, end, [&](int64_t j, int n) __attribute__((always_inline)) {
      const VecF after = load_units(state + j, n);
      const VecF x = load_units(in.highway + j, n) * splat(in.scale);
      VecF active = V::kTanh ? tanh(after) : after;
      VecF reset = resets[(j - begin) / kLanes];
      if constexpr (V::kMasked) {
        const VecF mask = load_units(in.mask + j, n);
        if constexpr (V::kDifference) {
          reset = reset * mask;
        } else {
          active = active * mask;
        }
      }
      store_units(out + j, fma(active - x, reset, x), n);
    });
  });
}

// State alone: the reset gate and the output are not worked out.
__attribute__((noinline)) void step_state(const StepInputs& given, float* state, int64_t units) {
  const StepInputs in = given;
  each_vector(0, units, [&](int64_t j, int n) __attribute__((always_inline)) {
    const VecF before = load_units(in.state + j, n);
    const VecF candidate = load_units(in.gate[0] + j, n);
    const VecF forget = sigmoid(forget_input(in, before, j, n));
    store_units(state + j, fma(before - candidate, forget, candidate), n);
  });
}

template <typename V>
__attribute__((noinline)) void step_backward(const StepInputs& given, const StepGradients& made,
                                             int64_t units) {
  const StepInputs in = given;
  const StepGradients grad = made;
  const VecF one = splat(1.0f);
  Gates gates[kPartVectors];
  VecF actives[kPartVectors];
  const auto finish = [&](const Gates& g, VecF active, int64_t j,
                          int n) __attribute__((always_inline)) {
    const VecF before = load_units(in.state + j, n);
    const VecF candidate = load_units(in.gate[0] + j, n);
    const VecF x = load_units(in.highway + j, n) * splat(in.scale);
    VecF slope = V::kTanh ? one - active * active : one;
    VecF share = g.reset;     // of the output that is not the highway input
    VecF blend = active - x;  // d out / d reset
    if constexpr (V::kMasked) {
      const VecF mask = load_units(in.mask + j, n);
      slope = slope * mask;
      if constexpr (V::kDifference) {
        share = share * mask;
        blend = blend * mask;
      } else {
        blend = fma(active, mask, -x);
      }
    }
    const VecF out = load_units(grad.out + j, n);
    const VecF d_reset = out * blend * (g.reset * (one - g.reset));
    const VecF d_state = fma(out * g.reset, slope, load_units(grad.carry + j, n));
    const VecF d_forget = d_state * (before - candidate) * (g.forget * (one - g.forget));
    store_units(grad.gate[0] + j, d_state * (one - g.forget), n);
    store_units(grad.gate[1] + j, d_forget, n);
    store_units(grad.gate[2] + j, d_reset, n);
    store_units(grad.highway + j, out * (one - share) * splat(in.scale), n);
    store_units(grad.carry + j,
                fma(d_reset, load_units(in.weight[1] + j, n),
                    fma(d_forget, load_units(in.weight[0] + j, n), d_state * g.forget)),
                n);
    const VecF terms[4] = {d_forget, d_reset, d_forget * before, d_reset * before};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      store_units(grad.sum[k] + j, load_units(grad.sum[k] + j, n) + terms[k], n);
    }
  };
  each_part(units, [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
    each_vector(begin, end, [&](int64_t j, int n) __attribute__((always_inline)) {
      const VecF before = load_units(in.state + j, n);
      gates[(j - begin) / kLanes] =
          sigmoids(forget_input(in, before, j, n), reset_input(in, before, j, n));
    });
    each_vector(begin, end, [&](int64_t j, int n) __attribute__((always_inline)) {
      const VecF after = load_units(grad.next + j, n);
      actives[(j - begin) / kLanes] = V::kTanh ? tanh(after) : after;
    });
    each_vector(begin, end, [&](int64_t j, int n) __attribute__((always_inline)) {
      const int64_t at = (j - begin) / kLanes;
      finish(gates[at], actives[at], j, n);
    });
  });
}

// A step whose output nobody reads: the gradients of u2 and of the highway input are 0.
__attribute__((noinline)) void step_state_backward(const StepInputs& given,
                                                   const StepGradients& made, int64_t units) {
  const StepInputs in = given;
  const StepGradients grad = made;
  const VecF one = splat(1.0f);
  each_vector(0, units, [&](int64_t j, int n) __attribute__((always_inline)) {
    const VecF before = load_units(in.state + j, n);
    const VecF candidate = load_units(in.gate[0] + j, n);
    const VecF forget = sigmoid(forget_input(in, before, j, n));
    const VecF carry = load_units(grad.carry + j, n);
    const VecF d_forget = carry * (before - candidate) * (forget * (one - forget));
    store_units(grad.gate[0] + j, carry * (one - forget), n);
    store_units(grad.gate[1] + j, d_forget, n);
    store_units(grad.gate[2] + j, VecF{}, n);
    store_units(grad.highway + j, VecF{}, n);
    store_units(grad.carry + j, fma(d_forget, load_units(in.weight[0] + j, n), carry * forget), n);
    store_units(grad.sum[0] + j, load_units(grad.sum[0] + j, n) + d_forget, n);
    store_units(grad.sum[2] + j, fma(d_forget, before, load_units(grad.sum[2] + j, n)), n);
  });
}

typedef void (*ForwardStep)(const StepInputs& in, float* state, float* out, int64_t units);
typedef void (*BackwardStep)(const StepInputs& in, const StepGradients& grad, int64_t units);

struct Steps {
  ForwardStep forward;
  BackwardStep backward;
};

template <typename V>
Steps steps_as() {
  return {&step_forward<V>, &step_backward<V>};
}

// The steps of what the parameters ask for.
inline Steps steps_of(const SruParams& p) {
  const bool masked = p.mask != nullptr, difference = p.dropout == SruDropout::kDifference;
  if (p.activation == SruActivation::kTanh) {
    if (!masked) return steps_as<Variant<true, false, false>>();
    return difference ? steps_as<Variant<true, true, true>>()
                      : steps_as<Variant<true, true, false>>();
  }
  if (!masked) return steps_as<Variant<false, false, false>>();
  return difference ? steps_as<Variant<false, true, true>>()
                    : steps_as<Variant<false, true, false>>();
}

}  // namespace
}  // namespace PW_LEVEL
}  // namespace patchword
