// SPDX-License-Identifier: Apache-2.0
// The function table of a CPU level, and the gradient of the upsampled maps.
//
// The gradient is the transposed mix in gather form: a thread owns whole maps, sums the rows of the
// incoming gradient into one full-width row per low-resolution row, and folds that row to cells
// when the last of its output rows has passed. No atomics, so the result never varies.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/threads.h"
#include "kernels/mask_upsample/axis_rows.h"

namespace patchword {
namespace PW_LEVEL {

Status upsample_classes(const MaskUpsampleParams& p, const UpsamplePlan& plan, int threads);
Status upsample_maps(const MaskUpsampleParams& p, const UpsamplePlan& plan, int threads);

namespace {

template <typename Element>
class GradWorker {
 public:
  typedef typename Element::Storage T;

  GradWorker(const MaskUpsampleGradParams& params, const UpsamplePlan& plan, int thread)
      : p_(params), plan_(plan) {
    unsigned char* at = plan.scratch + thread * plan.scratch_stride;
    ring_ = reinterpret_cast<float*>(at);
    cells_ = reinterpret_cast<float*>(at + grad_scratch(plan).ring);
  }

  void run(int64_t map) {
    map_ = map;
    for (int t = 0; t < plan_.y.taps; ++t) clear(t);
    int64_t done = 0;  // rows below this one are written
    for (int64_t y = 0; y < p_.out_height; ++y) {
      const int64_t lowest = plan_.y.clamp(plan_.y.first[y]);
      for (; done < lowest; ++done) finish_row(done);
      const T* grad = static_cast<const T*>(p_.grad_out) + (map * p_.out_height + y) * p_.out_width;
      for (int t = 0; t < plan_.y.taps; ++t) {
        const int64_t row = plan_.y.clamp(plan_.y.first[y] + t);
        add_row(grad, plan_.y.weights(t)[y], slot(row));
      }
    }
    for (; done < p_.height; ++done) finish_row(done);
  }

 private:
  float* slot(int64_t row) const { return ring_ + row % plan_.y.taps * plan_.padded_width; }

  void clear(int64_t row) {
    float* sums = slot(row);
    for (int64_t x = 0; x < plan_.padded_width; ++x) sums[x] = 0.0f;
  }

  void add_row(const T* grad, float weight, float* sums) {
    const VecF w = splat(weight);
    int64_t x = 0;
    for (; x + kLanes <= p_.out_width; x += kLanes) {
      store(sums + x, fma(w, Element::load(grad + x), load(sums + x)));
    }
    if (const int n = static_cast<int>(p_.out_width - x); n > 0) {
      store(sums + x, fma(w, load_tail<Element>(grad + x, n), load(sums + x)));
    }
  }

  void finish_row(int64_t row) {
    for (int64_t i = 0; i < p_.width; ++i) cells_[i] = 0.0f;
    const float* sums = slot(row);
    for (int64_t x = 0; x < p_.out_width; ++x) {
      for (int t = 0; t < plan_.x.taps; ++t) {
        cells_[plan_.x.clamp(plan_.x.first[x] + t)] += plan_.x.weights(t)[x] * sums[x];
      }
    }
    store_span<Element>(static_cast<T*>(p_.grad_logits) + (map_ * p_.height + row) * p_.width,
                        cells_, p_.width);
    clear(row);
  }

  const MaskUpsampleGradParams& p_;
  const UpsamplePlan& plan_;
  float* ring_;   // [taps][padded_width]
  float* cells_;  // [width]
  int64_t map_ = 0;
};

template <typename Element>
void grad_as(const MaskUpsampleGradParams& p, const UpsamplePlan& plan, int threads) {
  parallel_for(threads, p.batch * p.channels, [&](int64_t begin, int64_t end, int thread) {
    GradWorker<Element> worker(p, plan, thread);
    for (int64_t map = begin; map < end; ++map) worker.run(map);
  });
}

Status grad(const MaskUpsampleGradParams& p, const UpsamplePlan& plan, int threads) {
  const int64_t maps = p.batch * p.channels;
  const double work =
      static_cast<double>(maps * p.out_height) * static_cast<double>(p.out_width) * 0.5;
  const int useful = useful_threads(threads, maps, work);
  switch (p.dtype) {
    case DType::kFloat32: grad_as<Float32>(p, plan, useful); break;
    case DType::kFloat16: grad_as<Float16>(p, plan, useful); break;
    case DType::kBFloat16: grad_as<BFloat16>(p, plan, useful); break;
    default: return unsupported("grad_out must be float32, float16 or bfloat16");
  }
  return ok_status();
}

}  // namespace
}  // namespace PW_LEVEL

extern const MaskUpsampleTable PW_LEVEL_TABLE(kMaskUpsample);
const MaskUpsampleTable PW_LEVEL_TABLE(kMaskUpsample) = {&PW_LEVEL::upsample_classes,
                                                         &PW_LEVEL::upsample_maps, &PW_LEVEL::grad};

}  // namespace patchword
