// SPDX-License-Identifier: Apache-2.0
// Labels, confidence, softmax and confusion on the CPU: one task per image and vertical cell.
//
// A task unpacks the low-resolution rows it mixes (a ring, so that a thread reads each row once),
// finds the classes that can win in each cell where cells are large, expands a strip of pixels for
// those classes and mixes it for every output row of the cell. See README.md.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/threads.h"
#include "kernels/mask_upsample/cell_pruning.h"
#include "kernels/mask_upsample/label_store.h"
#include "kernels/mask_upsample/mask_upsample_classes.h"

namespace patchword {
namespace PW_LEVEL {

Status upsample_classes(const MaskUpsampleParams& p, const UpsamplePlan& plan, int threads);

namespace {

constexpr float kLog2e = 1.44269504088896341f;

class ClassWorker {
 public:
  ClassWorker(const MaskUpsampleParams& params, const UpsamplePlan& plan, int thread)
      : p_(params), plan_(plan) {
    const ClassScratch s = class_scratch(params, plan);
    unsigned char* at = plan.scratch + thread * plan.scratch_stride;
    auto take = [&](int64_t bytes) {
      unsigned char* part = at;
      at += bytes;
      return part;
    };
    ring_ = reinterpret_cast<float*>(take(s.ring));
    slots_ = reinterpret_cast<Slot*>(take(s.ring_state));
    prune_.high = reinterpret_cast<float*>(take(s.high));
    prune_.lowest = reinterpret_cast<float*>(take(s.bounds));
    prune_.magnitude = prune_.lowest + plan.pitch;
    prune_.column_min = prune_.magnitude + plan.pitch;
    prune_.column_max = prune_.column_min + plan.pitch;
    prune_.lists = reinterpret_cast<int32_t*>(take(s.lists));
    prune_.counts = reinterpret_cast<int32_t*>(take(s.counts));
    live_ = reinterpret_cast<int32_t*>(take(s.live));
    strip_ = reinterpret_cast<float*>(take(s.strip));
    values_ = reinterpret_cast<float*>(take(s.values));
    histogram_ = reinterpret_cast<int64_t*>(take(s.histogram));
    for (int t = 0; t < plan.y.taps; ++t) slots_[t].row = -1;
    margin_ =
        p_.output == UpsampleOutput::kConfidence
            ? (24.0f * 0.6931472f + __builtin_logf(static_cast<float>(p_.channels))) / p_.scale
            : 0.0f;
  }

  void clear_histogram() {
    __builtin_memset(histogram_, 0, static_cast<size_t>(p_.channels * p_.channels) * 8);
  }
  const int64_t* histogram() const { return histogram_; }

  void run(int64_t image, int64_t y_cell) {
    if (image != image_) start_image(image);
    const int64_t y0 = plan_.y.cell[y_cell], y1 = plan_.y.cell[y_cell + 1];
    load_rows(y0);
    const ClassList all{live_, live_count_};
    const bool prune =
        plan_.prune && moderate_ && live_count_ > 1 && p_.output != UpsampleOutput::kSoftmax;
    if (!prune) {
      for (int64_t x0 = 0; x0 < p_.out_width; x0 += kStrip) {
        block(all, x0, least(x0 + kStrip, p_.out_width), y0, y1);
      }
      return;
    }
    list_candidates(plan_, rows_, live_, live_count_, p_.channels, margin_, prune_);
    const bool fills = p_.output == UpsampleOutput::kLabels && p_.region == nullptr;
    for (int64_t cell = 0; cell < plan_.x.cells;) {
      const int64_t begin = plan_.x.cell[cell];
      const ClassList list = candidates(begin);
      int64_t end = plan_.x.cell[++cell];
      if (fills && list.count == 1) {
        for (; cell < plan_.x.cells; end = plan_.x.cell[++cell]) {
          const ClassList next = candidates(plan_.x.cell[cell]);
          if (next.count != 1 || next.classes[0] != list.classes[0]) break;
        }
        for (int64_t y = y0; y < y1; ++y) {
          fill_labels(p_.label_dtype, p_.out, pixel(y, begin), list.classes[0], end - begin);
        }
        continue;
      }
      for (int64_t x0 = begin; x0 < end; x0 += kStrip) {
        block(list, x0, least(x0 + kStrip, end), y0, y1);
      }
    }
  }

 private:
  struct Slot {
    int64_t row, moderate;
  };

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  int64_t pixel(int64_t y, int64_t x) const {
    return (image_ * p_.out_height + y) * p_.out_width + x;
  }
  ClassList candidates(int64_t x) const {
    const int64_t column = plan_.x.first[x] + kPadLeft;
    return {prune_.lists + column * p_.channels, prune_.counts[column]};
  }

  void start_image(int64_t image) {
    image_ = image;
    for (int t = 0; t < plan_.y.taps; ++t) slots_[t].row = -1;
    live_count_ = 0;
    const uint8_t* mask =
        p_.class_mask == nullptr ? nullptr : p_.class_mask + image * p_.class_mask_stride;
    for (int64_t c = 0; c < p_.channels; ++c) {
      if (mask == nullptr || mask[c] != 0) live_[live_count_++] = static_cast<int32_t>(c);
    }
  }

  void load_rows(int64_t y) {
    moderate_ = true;
    for (int t = 0; t < plan_.y.taps; ++t) {
      const int64_t row = plan_.y.clamp(plan_.y.first[y] + t);
      const int64_t slot = row % plan_.y.taps;
      float* cells = ring_ + slot * p_.channels * plan_.pitch;
      if (slots_[slot].row != row) {
        slots_[slot].row = row;
        slots_[slot].moderate = unpack_rows(
            p_.dtype, p_.logits, image_ * p_.logits_stride[0] + row * p_.logits_stride[2],
            p_.logits_stride[1], p_.logits_stride[3], p_.channels, p_.width, cells, plan_.pitch);
      }
      moderate_ = moderate_ && slots_[slot].moderate != 0;
      rows_[t] = cells;
    }
  }

  bool evaluates(int64_t x0, int64_t x1, int64_t y0, int64_t y1) const {
    if (p_.region == nullptr) return true;
    for (int64_t y = y0; y < y1; ++y) {
      const uint8_t* row = region_row(y);
      uint8_t found = 0;
      for (int64_t x = x0; x < x1; ++x) found |= row[x];
      if (found != 0) return true;
    }
    return false;
  }

  const uint8_t* region_row(int64_t y) const {
    return p_.region + image_ * p_.region_stride + y * p_.out_width;
  }

  // Pixels [x0, x1) x [y0, y1), at most kStrip wide, all of one vertical cell.
  void block(ClassList list, int64_t x0, int64_t x1, int64_t y0, int64_t y1) {
    if (!evaluates(x0, x1, y0, y1)) {
      skip(x0, x1, y0, y1);
      return;
    }
    const int vectors = static_cast<int>((x1 - x0 + kLanes - 1) / kLanes);
    expand_strip(plan_, rows_, moderate_, list, x0, vectors, strip_);
    switch (choose_mix(plan_.y, moderate_)) {
      case Mix::kLerp: return mix_block<Mix::kLerp>(list, x0, x1, y0, y1);
      case Mix::kSum2: return mix_block<Mix::kSum2>(list, x0, x1, y0, y1);
      case Mix::kSum4: return mix_block<Mix::kSum4>(list, x0, x1, y0, y1);
    }
  }

  template <Mix M>
  void mix_block(ClassList list, int64_t x0, int64_t x1, int64_t y0, int64_t y1) {
    if (p_.output == UpsampleOutput::kSoftmax) {
      for (int64_t y = y0; y < y1; ++y) softmax_row<M>(list, x0, x1, y);
      return;
    }
    int64_t y = y0;
    while (y < y1) {
      if (y1 - y > 2 && kRowBlock > 4 && y1 - y <= 4) {
        rows<M, 4>(list, x0, x1, y, y1);
        y += 4;
      } else if (y1 - y > 2) {
        rows<M, kRowBlock>(list, x0, x1, y, y1);
        y += kRowBlock;
      } else {
        rows<M, 2>(list, x0, x1, y, y1);
        y += 2;
      }
    }
  }

  template <Mix M, int Rows>
  void rows(ClassList list, int64_t x0, int64_t x1, int64_t y, int64_t y1) {
    if (!evaluates(x0, x1, y, least(y + Rows, y1))) {
      skip(x0, x1, y, least(y + Rows, y1));
      return;
    }
    RowWeights<M> weights[Rows];
    for (int r = 0; r < Rows; ++r) weights[r].set(plan_.y, least(y + r, y1 - 1));
    alignas(64) int32_t labels[Rows][kStrip];
    alignas(64) float confidence[Rows][kStrip];
    const int64_t n = x1 - x0;
    for (int64_t v = 0; v * kLanes < n; ++v) {
      VecF best[Rows];
      VecI index[Rows];
      best_class<M, Rows>(strip_ + v * kLanes, list, weights, best, index);
      for (int r = 0; r < Rows; ++r) store(labels[r] + v * kLanes, index[r]);
      if (p_.output == UpsampleOutput::kConfidence) {
        VecF sure[Rows];
        confidence_of<M, Rows>(strip_ + v * kLanes, list, weights, best, p_.scale * kLog2e, sure);
        for (int r = 0; r < Rows; ++r) store(confidence[r] + v * kLanes, sure[r]);
      }
    }
    for (int r = 0; r < Rows && y + r < y1; ++r) {
      if (p_.region != nullptr) {
        const uint8_t* inside = region_row(y + r) + x0;
        for (int64_t i = 0; i < n; ++i) {
          labels[r][i] = inside[i] != 0 ? labels[r][i] : -1;
          confidence[r][i] = inside[i] != 0 ? confidence[r][i] : 0.0f;
        }
      }
      const int64_t at = pixel(y + r, x0);
      if (p_.output == UpsampleOutput::kConfusion) {
        count_pairs(p_.label_dtype, p_.target, at, labels[r], n, p_.ignore_index, p_.channels,
                    histogram_);
        continue;
      }
      store_labels(p_.label_dtype, p_.out, at, labels[r], n, p_.ignore_index);
      if (p_.output == UpsampleOutput::kConfidence) {
        __builtin_memcpy(p_.confidence + at, confidence[r], static_cast<size_t>(n) * sizeof(float));
      }
    }
  }

  template <Mix M>
  void softmax_row(ClassList list, int64_t x0, int64_t x1, int64_t y) {
    RowWeights<M> weights;
    weights.set(plan_.y, y);
    const int64_t plane = p_.out_height * p_.out_width;
    for (int64_t x = x0; x < x1; x += kLanes) {
      const int64_t n = least(x1 - x, kLanes);
      softmax_of<M>(strip_ + (x - x0), list, weights, p_.scale * kLog2e, values_);
      if (p_.region != nullptr) {
        const uint8_t* inside = region_row(y) + x;
        for (int64_t k = 0; k < list.count; ++k) {
          for (int64_t i = 0; i < n; ++i) {
            if (inside[i] == 0) values_[k * kLanes + i] = 0.0f;
          }
        }
      }
      const int64_t at = image_ * p_.channels * plane + y * p_.out_width + x;
      int64_t k = 0;
      for (int64_t c = 0; c < p_.channels; ++c) {
        const bool listed = k < list.count && list.classes[k] == c;
        store_span(p_.dtype, p_.out, at + c * plane, listed ? values_ + k * kLanes : kZeros, n);
        if (listed) ++k;
      }
    }
  }

  // Pixels outside the region: the ignore value, confidence or probability 0, no count.
  void skip(int64_t x0, int64_t x1, int64_t y0, int64_t y1) {
    if (p_.output == UpsampleOutput::kConfusion) return;
    const int64_t plane = p_.out_height * p_.out_width;
    for (int64_t y = y0; y < y1; ++y) {
      if (p_.output == UpsampleOutput::kSoftmax) {
        const int64_t at = image_ * p_.channels * plane + y * p_.out_width + x0;
        for (int64_t c = 0; c < p_.channels; ++c) {
          store_span(p_.dtype, p_.out, at + c * plane, kZeros, x1 - x0);
        }
        continue;
      }
      fill_labels(p_.label_dtype, p_.out, pixel(y, x0), p_.ignore_index, x1 - x0);
      if (p_.output == UpsampleOutput::kConfidence) {
        __builtin_memset(p_.confidence + pixel(y, x0), 0,
                         static_cast<size_t>(x1 - x0) * sizeof(float));
      }
    }
  }

  static constexpr float kZeros[kStrip] = {};

  const MaskUpsampleParams& p_;
  const UpsamplePlan& plan_;
  float* ring_;  // [taps][channels][pitch]
  Slot* slots_;  // [taps]: which row a ring slot holds
  PruneBuffers prune_;
  int32_t* live_;       // [channels] classes that take part
  float* strip_;        // [channels][parts][kStrip]
  float* values_;       // [channels][kLanes], softmax only
  int64_t* histogram_;  // [channels][channels], confusion only
  const float* rows_[4] = {};
  int64_t image_ = -1, live_count_ = 0;
  bool moderate_ = true;
  float margin_;
};

constexpr float ClassWorker::kZeros[kStrip];

}  // namespace

Status upsample_classes(const MaskUpsampleParams& p, const UpsamplePlan& plan, int threads) {
  const bool confusion = p.output == UpsampleOutput::kConfusion;
  const int64_t cells = plan.y.cells, tasks = p.batch * cells;
  const double pixels =
      static_cast<double>(p.batch * p.out_height) * static_cast<double>(p.out_width);
  const double work =
      pixels * (1.0 + 0.1 * static_cast<double>(p.channels) * (plan.prune ? 0.3 : 1.0));
  const int useful = useful_threads(threads, tasks, work);
  parallel_for(useful, tasks, [&](int64_t begin, int64_t end, int thread) {
    ClassWorker worker(p, plan, thread);
    if (confusion) worker.clear_histogram();
    for (int64_t i = begin; i < end; ++i) worker.run(i / cells, i % cells);
  });
  if (!confusion) return ok_status();
  const int64_t bins = p.channels * p.channels;
  __builtin_memset(p.confusion, 0, static_cast<size_t>(bins) * sizeof(int64_t));
  for (int t = 0; t < useful && t < tasks; ++t) {
    const int64_t* counts = ClassWorker(p, plan, t).histogram();
    for (int64_t i = 0; i < bins; ++i) p.confusion[i] += counts[i];
  }
  return ok_status();
}

}  // namespace PW_LEVEL
}  // namespace patchword
