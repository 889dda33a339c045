// SPDX-License-Identifier: Apache-2.0
// Logits, sigmoid, min-max and thresholds on the CPU: every map by itself.
//
// A low-resolution row is expanded to the full width once (a ring of as many rows as there are
// taps); every output row is then a vertical mix of contiguous rows, streamed to the output.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/threads.h"
#include "kernels/mask_upsample/axis_rows.h"

namespace patchword {
namespace PW_LEVEL {

Status upsample_maps(const MaskUpsampleParams& p, const UpsamplePlan& plan, int threads);

namespace {

constexpr float kLog2e = 1.44269504088896341f;
// Pixels that one step thresholds: 32 bytes of output.
constexpr int kByteStep = 32;

// 1 where value > threshold, as kByteStep bytes.
PW_INLINE void store_greater(uint8_t* out, const VecF (&value)[kByteStep / kLanes],
                             VecF threshold) {
#if defined(__AVX512F__)
  const __m512 t = bit_cast<__m512>(threshold);
  const uint32_t low = _mm512_cmp_ps_mask(bit_cast<__m512>(value[0]), t, _CMP_GT_OQ);
  const uint32_t high = _mm512_cmp_ps_mask(bit_cast<__m512>(value[1]), t, _CMP_GT_OQ);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_maskz_set1_epi8(low | high << 16, 1));
#elif defined(__AVX2__) && PW_VECTOR_BYTES == 32
  __m256i m[4];
  for (int i = 0; i < 4; ++i) m[i] = bit_cast<__m256i>(VecI(value[i] > threshold));
  const __m256i low = _mm256_packs_epi32(m[0], m[1]);
  const __m256i high = _mm256_packs_epi32(m[2], m[3]);
  // The packs work on 128-bit halves: groups of four lie in the order 0 2 4 6 1 3 5 7.
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                                    _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm256_and_si256(bytes, _mm256_set1_epi8(1)));
#else
  typedef int8_t VecByte __attribute__((vector_size(kLanes)));
  for (int i = 0; i < kByteStep / kLanes; ++i) {
    const VecByte bytes = __builtin_convertvector(VecI(value[i] > threshold), VecByte) & 1;
    __builtin_memcpy(out + i * kLanes, &bytes, sizeof(bytes));
  }
#endif
}

class MapWorker {
 public:
  MapWorker(const MaskUpsampleParams& params, const UpsamplePlan& plan, int thread)
      : p_(params), plan_(plan) {
    const MapScratch s = map_scratch(plan);
    unsigned char* at = plan.scratch + thread * plan.scratch_stride;
    row_ = reinterpret_cast<float*>(at);
    ring_ = reinterpret_cast<float*>(at + s.row);
    difference_ = reinterpret_cast<float*>(at + s.row + s.ring);
    for (int64_t i = 0; i < s.ring / 4; ++i) ring_[i] = 0.0f;
    for (int64_t i = 0; i < plan.padded_width; ++i) difference_[i] = 0.0f;
  }

  // Rows of vertical cells [begin, end) of one map.
  void run(int64_t map, int64_t begin, int64_t end) {
    map_ = map;
    image_ = map / p_.channels;
    const int64_t channel = map % p_.channels;
    if (p_.class_mask != nullptr && p_.class_mask[image_ * p_.class_mask_stride + channel] == 0) {
      clear(plan_.y.cell[begin], plan_.y.cell[end]);
      return;
    }
    source_ = image_ * p_.logits_stride[0] + channel * p_.logits_stride[1];
    threshold_ =
        p_.thresholds == nullptr
            ? p_.threshold
            : p_.thresholds[image_ * p_.thresholds_stride[0] + channel * p_.thresholds_stride[1]];
    for (int t = 0; t < 4; ++t) slot_row_[t] = -1;
    if (p_.output == UpsampleOutput::kMinMax) {
      lowest_ = splat(__builtin_inff());
      highest_ = splat(-__builtin_inff());
      for (int64_t cell = begin; cell < end; ++cell) mix_cell<true>(cell);
      low_ = reduce_min(lowest_);
      const float high = reduce_max(highest_), span = high - low_;
      const float largest = -low_ > high ? -low_ : high;
      inverse_span_ = span > kConstantSpan * largest ? 1.0f / span : 0.0f;
    }
    for (int64_t cell = begin; cell < end; ++cell) mix_cell<false>(cell);
  }

 private:
  int64_t element_size() const {
    return p_.output == UpsampleOutput::kBinary ? 1 : p_.dtype == DType::kFloat32 ? 4 : 2;
  }

  void clear(int64_t y0, int64_t y1) {
    const int64_t size = element_size() * p_.out_width;
    unsigned char* out = static_cast<unsigned char*>(p_.out) + (map_ * p_.out_height + y0) * size;
    __builtin_memset(out, 0, static_cast<size_t>((y1 - y0) * size));
  }

  void load_rows(int64_t y) {
    moderate_ = true;
    for (int t = 0; t < plan_.y.taps; ++t) {
      const int64_t row = plan_.y.clamp(plan_.y.first[y] + t);
      const int64_t slot = row % plan_.y.taps;
      rows_[t] = ring_ + slot * plan_.padded_width;
      if (slot_row_[slot] != row) {
        slot_row_[slot] = row;
        slot_moderate_[slot] = unpack_rows(p_.dtype, p_.logits, source_ + row * p_.logits_stride[2],
                                           0, p_.logits_stride[3], 1, p_.width, row_, plan_.pitch);
        expand_row(rows_[t], slot_moderate_[slot]);
      }
      moderate_ = moderate_ && slot_moderate_[slot];
    }
    if (plan_.y.taps == 2 && moderate_) {
      for (int64_t x = 0; x < p_.out_width; x += kLanes) {
        store(difference_ + x, load(rows_[1] + x) - load(rows_[0] + x));
      }
    }
  }

  void expand_row(float* out, bool moderate) {
    with_axis_form(plan_.x, moderate, [&]<int Taps, bool Gathers, bool Moderate>() {
      for (int64_t x = 0; x < p_.out_width; x += kLanes) {
        store(out + x, PixelVector<Taps, Gathers>(plan_.x, x).template expand<Moderate>(row_));
      }
    });
  }

  template <bool Measure>
  void mix_cell(int64_t cell) {
    const int64_t y0 = plan_.y.cell[cell], y1 = plan_.y.cell[cell + 1];
    load_rows(y0);
    switch (choose_mix(plan_.y, moderate_)) {
      case Mix::kLerp: return mix_rows<Mix::kLerp, Measure>(y0, y1);
      case Mix::kSum2: return mix_rows<Mix::kSum2, Measure>(y0, y1);
      case Mix::kSum4: return mix_rows<Mix::kSum4, Measure>(y0, y1);
    }
  }

  template <Mix M, bool Measure>
  void mix_rows(int64_t y0, int64_t y1) {
    const float* part[kMixParts<M>];
    for (int t = 0; t < kMixParts<M>; ++t) part[t] = rows_[t];
    // A copied axis mixes the difference with weight 0; it stays all zeros.
    if constexpr (M == Mix::kLerp) part[1] = difference_;
    for (int64_t y = y0; y < y1; ++y) {
      RowWeights<M> weights;
      weights.set(plan_.y, y);
      if constexpr (Measure) {
        measure_row<M>(part, weights, y);
      } else if (p_.output == UpsampleOutput::kBinary) {
        binary_row<M>(part, weights, y);
      } else {
        switch (p_.dtype) {
          case DType::kFloat16: value_row<M, Float16>(part, weights, y); break;
          case DType::kBFloat16: value_row<M, BFloat16>(part, weights, y); break;
          default: value_row<M, Float32>(part, weights, y); break;
        }
      }
    }
  }

  template <Mix M>
  PW_INLINE static VecF mixed(const float* const (&rows)[kMixParts<M>],
                              const RowWeights<M>& weights, int64_t x) {
    VecF part[kMixParts<M>];
    for (int t = 0; t < kMixParts<M>; ++t) part[t] = load(rows[t] + x);
    return weights.mix(part);
  }

  const uint8_t* region_row(int64_t y) const {
    return p_.region == nullptr ? nullptr
                                : p_.region + image_ * p_.region_stride + y * p_.out_width;
  }

  template <Mix M>
  void binary_row(const float* const (&part)[kMixParts<M>], const RowWeights<M>& weights,
                  int64_t y) {
    constexpr int kVectors = kByteStep / kLanes;
    uint8_t* out = static_cast<uint8_t*>(p_.out) + (map_ * p_.out_height + y) * p_.out_width;
    const VecF threshold = splat(threshold_);
    int64_t x = 0;
    VecF value[kVectors];
    for (; x + kByteStep <= p_.out_width; x += kByteStep) {
      for (int i = 0; i < kVectors; ++i) value[i] = mixed<M>(part, weights, x + i * kLanes);
      store_greater(out + x, value, threshold);
    }
    if (x < p_.out_width) {
      uint8_t bytes[kByteStep];
      for (int i = 0; i < kVectors; ++i) value[i] = mixed<M>(part, weights, x + i * kLanes);
      store_greater(bytes, value, threshold);
      __builtin_memcpy(out + x, bytes, static_cast<size_t>(p_.out_width - x));
    }
    if (const uint8_t* inside = region_row(y); inside != nullptr) {
      for (int64_t i = 0; i < p_.out_width; ++i) out[i] = static_cast<uint8_t>(out[i] & inside[i]);
    }
  }

  PW_INLINE VecF finish(VecF v) const {
    if (p_.output == UpsampleOutput::kLogits) return v;
    if (p_.output == UpsampleOutput::kSigmoid) {
      return splat(1.0f) / (splat(1.0f) + exp2(v * splat(-p_.scale * kLog2e)));
    }
    return (v - splat(low_)) * splat(inverse_span_);
  }

  template <Mix M, typename Element>
  void value_row(const float* const (&part)[kMixParts<M>], const RowWeights<M>& weights,
                 int64_t y) {
    typedef typename Element::Storage T;
    T* out = static_cast<T*>(p_.out) + (map_ * p_.out_height + y) * p_.out_width;
    int64_t x = 0;
    if (p_.output == UpsampleOutput::kLogits) {
      for (; x + kLanes <= p_.out_width; x += kLanes)
        Element::store(out + x, mixed<M>(part, weights, x));
    } else {
      for (; x + kLanes <= p_.out_width; x += kLanes) {
        Element::store(out + x, finish(mixed<M>(part, weights, x)));
      }
    }
    if (x < p_.out_width) {
      store_tail<Element>(out + x, finish(mixed<M>(part, weights, x)),
                          static_cast<int>(p_.out_width - x));
    }
    if (const uint8_t* inside = region_row(y); inside != nullptr) {
      for (int64_t i = 0; i < p_.out_width; ++i) out[i] = inside[i] != 0 ? out[i] : T{};
    }
  }

  template <Mix M>
  void measure_row(const float* const (&part)[kMixParts<M>], const RowWeights<M>& weights,
                   int64_t y) {
    const uint8_t* inside = region_row(y);
    for (int64_t x = 0; x < p_.out_width; x += kLanes) {
      const VecF v = mixed<M>(part, weights, x);
      VecI counts =
          lane_numbers() <
          splat_int(static_cast<int32_t>(p_.out_width - x < kLanes ? p_.out_width - x : kLanes));
      if (inside != nullptr) {
        for (int i = 0; i < kLanes; ++i) {
          if (x + i < p_.out_width && inside[x + i] == 0) counts[i] = 0;
        }
      }
      lowest_ = select(counts & (v < lowest_), v, lowest_);
      highest_ = select(counts & (v > highest_), v, highest_);
    }
  }

  const MaskUpsampleParams& p_;
  const UpsamplePlan& plan_;
  float* row_;         // [pitch] one low-resolution row
  float* ring_;        // [taps][padded_width] expanded rows
  float* difference_;  // [padded_width] lower minus upper row
  float* rows_[4] = {};
  int64_t slot_row_[4] = {};
  bool slot_moderate_[4] = {};
  bool moderate_ = true;
  int64_t map_ = 0, image_ = 0, source_ = 0;
  float threshold_ = 0.0f, low_ = 0.0f, inverse_span_ = 0.0f;
  VecF lowest_, highest_;
};

}  // namespace

Status upsample_maps(const MaskUpsampleParams& p, const UpsamplePlan& plan, int threads) {
  const int64_t maps = p.batch * p.channels;
  const double work = static_cast<double>(maps * p.out_height) * static_cast<double>(p.out_width) *
                      (p.output == UpsampleOutput::kBinary ? 0.1 : 0.4);
  int useful = useful_threads(threads, maps * plan.y.cells, work);
  // Few maps: several threads share one, each a run of vertical cells. Min-max needs a whole map.
  int64_t bands = 1;
  if (p.output != UpsampleOutput::kMinMax && maps < 4 * useful) {
    bands = (4 * useful + maps - 1) / maps;
    if (bands > plan.y.cells) bands = plan.y.cells;
  }
  parallel_for(useful, maps * bands, [&](int64_t begin, int64_t end, int thread) {
    MapWorker worker(p, plan, thread);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i % bands;
      worker.run(i / bands, plan.y.cells * band / bands, plan.y.cells * (band + 1) / bands);
    }
  });
  return ok_status();
}

}  // namespace PW_LEVEL
}  // namespace patchword
