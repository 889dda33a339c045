// SPDX-License-Identifier: Apache-2.0
// First launch of the CUDA matcher: descriptors of any layout as padded 16-bit operands, with the
// factor and the term that turn a raw product into a score.
//
// Each row is scaled by a power of two so that its largest element lies in [2^14, 2^15): exact, and
// the low halves of split float32 then stay far from Half's subnormals. Traffic: descriptors read
// twice (the second time from cache), operands written once.
#pragma once

#include "kernels/common/packed_argmax.h"
#include "kernels/common/simt.cuh"
#include "kernels/correspondence/match_cuda_plan.h"

namespace patchword {
namespace {

constexpr int kPrepareThreads = 256;

// Rows of `side` that take part in pair `pair`.
PW_DEVICE std::int64_t length_of(const MatchSide& side, std::int64_t pair) {
  if (side.lengths == nullptr) return side.count;
  const std::int64_t length = side.lengths[pair];
  return length < 0 ? 0 : (length < side.count ? length : side.count);
}

PW_DEVICE float quiet_nan() { return bit_cast<float>(0x7fc00000u); }

// 2^exponent, for exponents of normal numbers.
PW_DEVICE float power_of_two(int exponent) {
  return bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
}

// One warp prepares one padded row.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kPrepareThreads)
    prepare_rows(MatchParams p, MatchCudaPlan plan, int which) {
  using Operand = typename simt::OperandOf<T>::Type;
  constexpr bool kSplit = simt::OperandOf<T>::kSplit;
  const MatchSide& side = which == 0 ? p.side0 : p.side1;
  const std::int64_t padded = plan.tiles[which] * kMatchTile;
  const std::int64_t at =
      static_cast<std::int64_t>(blockIdx.x) * (kPrepareThreads / 32) + simt::warp_id();
  if (at >= p.pairs * padded) return;
  const std::int64_t pair = at / padded, row = at % padded;
  const int lane = static_cast<int>(simt::lane_id());
  unsigned char* workspace = static_cast<unsigned char*>(p.workspace);
  Operand* high = reinterpret_cast<Operand*>(workspace + plan.operand[which]) + at * plan.depth;

  const bool inside = row < length_of(side, pair);
  const bool part =
      inside && (side.valid == nullptr ||
                 side.valid[pair * side.valid_stride[0] + row * side.valid_stride[1]] != 0);
  const T* source =
      static_cast<const T*>(side.descriptors) + pair * side.stride[0] + row * side.stride[1];
  // The largest magnitude; fmaxf would drop NaN, so NaN is carried by the sum below.
  float largest = 0.0f;
  for (std::int64_t d = lane; part && d < p.dim; d += 32) {
    largest = fmaxf(largest, fabsf(to_float(source[d * side.stride[2]])));
  }
  largest = simt::warp_reduce(largest, simt::Max{});
  int exponent = 0;
  if (largest > 0.0f && largest < bit_cast<float>(0x7f800000u)) {
    // Exponent of the largest element; subnormals count as the smallest normal number.
    const int stored = static_cast<int>(bit_cast<std::uint32_t>(largest) >> 23);
    exponent = 14 - ((stored == 0 ? 1 : stored) - 127);
    exponent = exponent > 126 ? 126 : exponent;
  }
  const float scale = power_of_two(exponent);

  float squares = 0.0f;
  for (std::int64_t d = lane; d < plan.depth; d += 32) {
    const float x = part && d < p.dim ? to_float(source[d * side.stride[2]]) * scale : 0.0f;
    squares = fmaf(x, x, squares);
    high[d] = from_float<Operand>(x);
    if constexpr (kSplit) {
      high[plan.low[which] + d] = from_float<Operand>(x - to_float(high[d]));
    }
  }
  squares = simt::warp_reduce(squares, simt::Sum{});
  if (lane != 0) return;

  const float back = power_of_two(-exponent);
  float factor = back, term = 0.0f;
  if (p.metric == MatchMetric::kCosine) factor = squares == 0.0f ? 0.0f : 1.0f / sqrtf(squares);
  if (which == 0) factor *= p.metric == MatchMetric::kL2 ? 2.0f * p.scale : p.scale;
  if (p.metric == MatchMetric::kL2) term = -(squares * back) * back;
  if (side.bias != nullptr && inside) term += side.bias[pair * side.count + row];
  if (!part) term = quiet_nan();
  reinterpret_cast<float*>(workspace + plan.factor[which])[at] = factor;
  reinterpret_cast<float*>(workspace + plan.term[which])[at] = term;
  reinterpret_cast<std::uint64_t*>(workspace + plan.keys[which])[at] = 0;
}

template <class T>
simt::Status prepare_both(const MatchParams& p, const MatchCudaPlan& plan, void* stream) {
  for (int which = 0; which < 2; ++which) {
    const std::int64_t rows = p.pairs * plan.tiles[which] * kMatchTile;
    const unsigned blocks = static_cast<unsigned>(simt::ceil_div(rows, kPrepareThreads / 32));
    const simt::Status status =
        PW_LAUNCH(prepare_rows<T>, blocks, kPrepareThreads, 0, stream, p, plan, which);
    if (!status.ok()) return status;
  }
  return {};
}

// Score of a raw product.
struct ScoreRule {
  bool clamp;  // minus a squared distance is never positive
  PW_DEVICE float operator()(float product, float factor0, float factor1, float term0,
                             float term1) const {
    const float score = fmaf(product * factor0, factor1, term0 + term1);
    return clamp && score > 0.0f ? 0.0f : score;
  }
};

}  // namespace
}  // namespace patchword
