// SPDX-License-Identifier: Apache-2.0
// What a thread makes of the values of its four pixels, class by class.
//
// A sink is built once, takes every class's values (kPasses times over) and finishes. Threads
// without pixels take nothing but finish too, so that a sink may use warp or block primitives.
#pragma once

#include "kernels/mask_upsample/upsample_tile.cuh"

namespace patchword {
namespace {

constexpr float kLog2e = 1.44269504088896341f;

// Classes that a block is responsible for.
struct ClassSpan {
  int64_t begin, end;
};

// Place of the thread's pixels in the output and which of them count.
struct PixelSpan {
  int64_t image;
  int32_t y, x;
  int32_t inside;      // pixels within the picture: 0 .. kPixels
  uint32_t evaluated;  // one bit per pixel

  PW_DEVICE PixelSpan(const MaskUpsampleParams& p, const Tile& tile, bool owns) {
    image = tile.image;
    y = static_cast<int32_t>(tile.y0) + tile.my_row();
    x = static_cast<int32_t>(tile.x0) + tile.my_column();
    const int64_t left = p.out_width - x;
    inside = !owns || y >= p.out_height || left <= 0
                 ? 0
                 : static_cast<int32_t>(simt::min<int64_t>(left, kPixels));
    evaluated = 0;
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      const bool counts =
          i < inside &&
          (p.region == nullptr || p.region[image * p.region_stride + y * p.out_width + x + i] != 0);
      evaluated |= (counts ? 1u : 0u) << i;
    }
  }

  PW_DEVICE bool evaluate(int i) const { return (evaluated >> i & 1u) != 0; }
  // Index of the first pixel in [B, H, W], or in map c of [B, C, H, W].
  PW_DEVICE int64_t at(const MaskUpsampleParams& p) const {
    return (image * p.out_height + y) * p.out_width + x;
  }
  PW_DEVICE int64_t at(const MaskUpsampleParams& p, int64_t c) const {
    return ((image * p.channels + c) * p.out_height + y) * p.out_width + x;
  }
};

// kPixels elements at out[at ..]: wide stores where whole and aligned.
template <class T>
PW_DEVICE void store_pixels(T* out, int64_t at, const T (&value)[kPixels], int inside) {
  constexpr int kWidth = sizeof(T) == 8 ? 2 : kPixels;
  T* target = out + at;
  if (inside == kPixels && reinterpret_cast<uintptr_t>(target) % (sizeof(T) * kWidth) == 0) {
    PW_UNROLL
    for (int i = 0; i < kPixels; i += kWidth) {
      simt::Pack<T, kWidth> pack;
      PW_UNROLL
      for (int j = 0; j < kWidth; ++j) pack[j] = value[i + j];
      simt::store_pack(target + i, pack);
    }
    return;
  }
  PW_UNROLL
  for (int i = 0; i < kPixels; ++i) {
    if (i < inside) target[i] = value[i];
  }
}

template <class T>
PW_DEVICE void store_labels_as(const MaskUpsampleParams& p, const PixelSpan& span,
                               const int32_t (&label)[kPixels]) {
  T typed[kPixels];
  PW_UNROLL
  for (int i = 0; i < kPixels; ++i) {
    typed[i] = static_cast<T>(span.evaluate(i) && label[i] >= 0 ? label[i] : p.ignore_index);
  }
  store_pixels(static_cast<T*>(p.out), span.at(p), typed, span.inside);
}

PW_DEVICE void store_labels(const MaskUpsampleParams& p, const PixelSpan& span,
                            const int32_t (&label)[kPixels]) {
  switch (p.label_dtype) {
    case DType::kUInt8: return store_labels_as<uint8_t>(p, span, label);
    case DType::kInt16: return store_labels_as<int16_t>(p, span, label);
    case DType::kInt32: return store_labels_as<int32_t>(p, span, label);
    default: return store_labels_as<int64_t>(p, span, label);
  }
}

PW_DEVICE int64_t target_label(const MaskUpsampleParams& p, int64_t at) {
  switch (p.label_dtype) {
    case DType::kUInt8: return static_cast<const uint8_t*>(p.target)[at];
    case DType::kInt16: return static_cast<const int16_t*>(p.target)[at];
    case DType::kInt32: return static_cast<const int32_t*>(p.target)[at];
    default: return static_cast<const int64_t*>(p.target)[at];
  }
}

// Four floats of map c in the dtype of the maps; pixels that are not evaluated become 0.
PW_DEVICE void store_map(const MaskUpsampleParams& p, const PixelSpan& span, int64_t c,
                         const float (&value)[kPixels]) {
  const int64_t at = span.at(p, c);
  if (p.dtype == DType::kFloat32) {
    float typed[kPixels];
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) typed[i] = span.evaluate(i) ? value[i] : 0.0f;
    store_pixels(static_cast<float*>(p.out), at, typed, span.inside);
    return;
  }
  uint16_t typed[kPixels];
  PW_UNROLL
  for (int i = 0; i < kPixels; ++i) {
    const float v = span.evaluate(i) ? value[i] : 0.0f;
    typed[i] = p.dtype == DType::kFloat16 ? float_to_half(v).bits : float_to_bfloat16(v).bits;
  }
  store_pixels(static_cast<uint16_t*>(p.out), at, typed, span.inside);
}

// Largest value and its class. A NaN never wins; minus infinity does when there is nothing else.
struct Best {
  float value[kPixels];
  int32_t label[kPixels];

  PW_DEVICE Best() {
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      value[i] = -INFINITY;
      label[i] = -1;
    }
  }

  PW_DEVICE void take(int64_t c, const float (&v)[kPixels]) {
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      if (v[i] > value[i] || (label[i] < 0 && v[i] == v[i])) {
        value[i] = v[i];
        label[i] = static_cast<int32_t>(c);
      }
    }
  }
};

// Sum of exp(scale (v - best)) while the best is still growing.
struct RunningSum {
  float sum[kPixels] = {};

  // Call before Best takes the same values.
  PW_DEVICE void take(const Best& best, const float (&v)[kPixels], float scale_log2e) {
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      if (v[i] == -INFINITY) continue;  // adds nothing, and would make a NaN beside itself
      const float difference = v[i] - best.value[i];
      const float e = simt::fast_exp2(-fabsf(difference) * scale_log2e);
      sum[i] = difference > 0.0f ? fmaf(sum[i], e, 1.0f) : sum[i] + e;
    }
  }

  // 1 / sum as torch has it: NaN where the best is infinite, 0 where nothing took part.
  PW_DEVICE float inverse(const Best& best, int i) const {
    if (best.label[i] < 0) return sum[i] == sum[i] ? 0.0f : sum[i];
    if (fabsf(best.value[i]) == INFINITY) return NAN;
    return 1.0f / sum[i];
  }
};

struct OnePassSink {
  static constexpr int kPasses = 1;
  // Blocks per multiprocessor: 84 registers a thread; with fewer the taps would be spilled.
  static constexpr int kBlocks = 3;
  PW_DEVICE void start(int) {}
  // Classes this far below the best may still matter.
  PW_DEVICE static float margin(const MaskUpsampleParams&) { return 0.0f; }
};

struct LabelSink : OnePassSink {
  const MaskUpsampleParams& p;
  const Tile& tile;
  bool owns;
  Best best;

  PW_DEVICE LabelSink(const MaskUpsampleParams& params, const Tile& block_tile, bool has_pixels,
                      const ClassSpan&)
      : p(params), tile(block_tile), owns(has_pixels) {}
  PW_DEVICE void take(int64_t c, const float (&v)[kPixels], int) { best.take(c, v); }
  PW_DEVICE void finish() { store_labels(p, PixelSpan(p, tile, owns), best.label); }
};

struct ConfidenceSink : OnePassSink {
  const MaskUpsampleParams& p;
  const Tile& tile;
  bool owns;
  Best best;
  RunningSum sum;

  PW_DEVICE ConfidenceSink(const MaskUpsampleParams& params, const Tile& block_tile,
                           bool has_pixels, const ClassSpan&)
      : p(params), tile(block_tile), owns(has_pixels) {}
  // Classes further below the best than this change the sum by less than its rounding.
  PW_DEVICE static float margin(const MaskUpsampleParams& params) {
    return (24.0f * 0.6931472f + logf(static_cast<float>(params.channels))) / params.scale;
  }
  PW_DEVICE void take(int64_t c, const float (&v)[kPixels], int) {
    sum.take(best, v, p.scale * kLog2e);
    best.take(c, v);
  }
  PW_DEVICE void finish() {
    const PixelSpan span(p, tile, owns);
    store_labels(p, span, best.label);
    float sure[kPixels];
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) sure[i] = span.evaluate(i) ? sum.inverse(best, i) : 0.0f;
    store_pixels(p.confidence, span.at(p), sure, span.inside);
  }
};

// Two passes over the classes: the sum, then the probabilities.
struct SoftmaxSink {
  static constexpr int kPasses = 2;
  static constexpr int kBlocks = 2;
  const MaskUpsampleParams& p;
  PixelSpan span;
  Best best;
  RunningSum sum;
  int32_t next = 0;  // classes below are written

  PW_DEVICE SoftmaxSink(const MaskUpsampleParams& params, const Tile& tile, bool owns,
                        const ClassSpan&)
      : p(params), span(params, tile, owns) {}
  PW_DEVICE static float margin(const MaskUpsampleParams&) { return 0.0f; }
  PW_DEVICE void start(int pass) {
    if (pass == 0) return;
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) sum.sum[i] = sum.inverse(best, i);
  }
  PW_DEVICE void take(int64_t c, const float (&v)[kPixels], int pass) {
    if (pass == 0) {
      sum.take(best, v, p.scale * kLog2e);
      best.take(c, v);
      return;
    }
    clear_to(c);
    float probability[kPixels];
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      probability[i] = simt::fast_exp2((v[i] - best.value[i]) * (p.scale * kLog2e)) * sum.sum[i];
    }
    store_map(p, span, c, probability);
    next = static_cast<int32_t>(c) + 1;
  }
  PW_DEVICE void finish() { clear_to(p.channels); }

  // Classes that take no part were not offered.
  PW_DEVICE void clear_to(int64_t c) {
    const float zeros[kPixels] = {};
    for (; next < c; ++next) store_map(p, span, next, zeros);
  }
};

// Counts go to global memory one by one: integer sums commute, so the result never varies.
struct ConfusionSink : OnePassSink {
  const MaskUpsampleParams& p;
  const Tile& tile;
  bool owns;
  Best best;

  PW_DEVICE ConfusionSink(const MaskUpsampleParams& params, const Tile& block_tile, bool has_pixels,
                          const ClassSpan&)
      : p(params), tile(block_tile), owns(has_pixels) {}
  PW_DEVICE void take(int64_t c, const float (&v)[kPixels], int) { best.take(c, v); }
  PW_DEVICE void finish() {
    const PixelSpan span(p, tile, owns);
    int64_t bin[kPixels];
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      bin[i] = -1;
      if (!span.evaluate(i) || best.label[i] < 0) continue;
      const int64_t row = target_label(p, span.at(p) + i);
      if (row == p.ignore_index || row < 0 || row >= p.channels) continue;
      bin[i] = row * p.channels + best.label[i];
    }
    // Neighbours mostly agree: one addition for a run of equal bins.
    int64_t run = 0;
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      ++run;
      if (i + 1 < kPixels && bin[i + 1] == bin[i]) continue;
      if (bin[i] >= 0) simt::atomic_add(p.confusion + bin[i], run);
      run = 0;
    }
  }
};

// Floats as unsigned numbers of the same order; NaN is left out before.
PW_DEVICE uint32_t ordered_bits(float v) {
  const uint32_t bits = bit_cast<uint32_t>(v + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
PW_DEVICE float from_ordered_bits(uint32_t bits) {
  return bit_cast<float>((bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits);
}

// Smallest and largest evaluated value of every map: workspace [B * C][2] ordered bits.
struct MeasureSink : OnePassSink {
  const MaskUpsampleParams& p;
  PixelSpan span;

  PW_DEVICE MeasureSink(const MaskUpsampleParams& params, const Tile& tile, bool owns,
                        const ClassSpan&)
      : p(params), span(params, tile, owns) {}
  PW_DEVICE void take(int64_t c, const float (&v)[kPixels], int) {
    uint32_t low = 0xffffffffu, high = 0u;
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      if (!span.evaluate(i) || v[i] != v[i]) continue;
      low = simt::min(low, ordered_bits(v[i]));
      high = simt::max(high, ordered_bits(v[i]));
    }
    uint32_t* range = static_cast<uint32_t*>(p.workspace) + 2 * (span.image * p.channels + c);
    // Most pixels change nothing: look before the atomic.
    const volatile uint32_t* current = range;
    if (low < current[0]) simt::atomic_min(range, low);
    if (high > current[1]) simt::atomic_max(range + 1, high);
  }
  PW_DEVICE void finish() {}
};

// Logits, sigmoid, min-max or threshold of every class; excluded classes are cleared on the way.
struct MapSink : OnePassSink {
  const MaskUpsampleParams& p;
  PixelSpan span;
  int64_t next, end;  // classes below `next` are written

  PW_DEVICE MapSink(const MaskUpsampleParams& params, const Tile& tile, bool owns,
                    const ClassSpan& classes)
      : p(params), span(params, tile, owns), next(classes.begin), end(classes.end) {}

  PW_DEVICE void take(int64_t c, const float (&v)[kPixels], int) {
    clear_to(c);
    next = c + 1;
    if (p.output == UpsampleOutput::kBinary) {
      const float threshold =
          p.thresholds == nullptr
              ? p.threshold
              : p.thresholds[span.image * p.thresholds_stride[0] + c * p.thresholds_stride[1]];
      uint8_t above[kPixels];
      PW_UNROLL
      for (int i = 0; i < kPixels; ++i) above[i] = span.evaluate(i) && v[i] > threshold ? 1 : 0;
      store_bytes(c, above);
      return;
    }
    float value[kPixels];
    float low = 0.0f, inverse_span = 0.0f;
    if (p.output == UpsampleOutput::kMinMax) range_of(c, low, inverse_span);
    PW_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      value[i] = v[i];
      if (p.output == UpsampleOutput::kSigmoid) {
        value[i] = 1.0f / (1.0f + simt::fast_exp2(-v[i] * (p.scale * kLog2e)));
      } else if (p.output == UpsampleOutput::kMinMax) {
        value[i] = (v[i] - low) * inverse_span;
      }
    }
    store_map(p, span, c, value);
  }
  PW_DEVICE void finish() { clear_to(end); }

  PW_DEVICE void range_of(int64_t c, float& low, float& inverse_span) const {
    const uint32_t* range =
        static_cast<const uint32_t*>(p.workspace) + 2 * (span.image * p.channels + c);
    low = from_ordered_bits(range[0]);
    const float high = from_ordered_bits(range[1]);
    const float size = high - low;
    inverse_span = size > kConstantSpan * fmaxf(-low, high) ? 1.0f / size : 0.0f;
  }

  PW_DEVICE void store_bytes(int64_t c, const uint8_t (&value)[kPixels]) const {
    store_pixels(static_cast<uint8_t*>(p.out), span.at(p, c), value, span.inside);
  }

  PW_DEVICE void clear_to(int64_t c) {
    const float zeros[kPixels] = {};
    const uint8_t none[kPixels] = {};
    for (; next < c; ++next) {
      if (p.output == UpsampleOutput::kBinary)
        store_bytes(next, none);
      else
        store_map(p, span, next, zeros);
    }
  }
};

}  // namespace
}  // namespace patchword
