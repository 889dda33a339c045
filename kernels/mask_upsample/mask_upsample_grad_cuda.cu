// SPDX-License-Identifier: Apache-2.0
// Gradient of the upsampled maps on CUDA, in gather form: every cell sums its window of output
// pixels in a fixed order. No atomics.
#include "kernels/common/half.h"
#include "kernels/common/simt.cuh"
#include "kernels/mask_upsample/interpolation_taps.h"

namespace patchword {
namespace {

constexpr int kThreads = 256;
constexpr int kSumColumns = 2048;  // output columns summed vertically at a time: 8 KB

struct Axis {
  int64_t in, out;
  float scale;
  int taps;
  UpsampleMode mode;
  bool align_corners;

  PW_DEVICE AxisTaps at(int64_t o) const {
    return axis_taps(in, out, scale, o, mode, align_corners);
  }
  // First output whose last tap reaches cell i or lies beyond: taps move monotonously.
  PW_DEVICE int64_t begin(int64_t i) const {
    if (i == 0) return 0;
    return partition([&](int64_t o) { return at(o).first + taps - 1 >= i; });
  }
  // One after the last output whose first tap is at cell i or before.
  PW_DEVICE int64_t end(int64_t i) const {
    if (i == in - 1) return out;
    return partition([&](int64_t o) { return at(o).first > i; });
  }
  PW_DEVICE float weight(int64_t o, int64_t i) const {
    const AxisTaps t = at(o);
    float sum = 0.0f;
    PW_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (k < taps && clamp_cell(t.first + k, in) == i) sum += t.weight[k];
    }
    return sum;
  }

 private:
  template <class Test>
  PW_DEVICE int64_t partition(Test test) const {
    int64_t low = 0, high = out;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (test(middle))
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }
};

template <class T>
PW_DEVICE float value_at(const void* data, int64_t i) {
  return to_float(static_cast<const T*>(data)[i]);
}

// A block sums `cells` neighbouring cells of one low-resolution row: first
// vertically into shared memory, kSumColumns output columns at a time, then horizontally, a thread
// per cell. Every incoming value is read once per row it contributes to.
template <class T>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    gather_gradient(const MaskUpsampleGradParams p, int64_t cells, int64_t spans) {
  PW_SHARED(float, sums, kSumColumns);
  const bool align = p.align_corners != 0;
  const Axis rows{p.height,
                  p.out_height,
                  axis_scale(p.height, p.out_height, align),
                  axis_tap_count(p.height, p.out_height, p.mode),
                  p.mode,
                  align};
  const Axis columns{p.width,
                     p.out_width,
                     axis_scale(p.width, p.out_width, align),
                     axis_tap_count(p.width, p.out_width, p.mode),
                     p.mode,
                     align};
  const int64_t block = static_cast<int64_t>(blockIdx.x);
  const int64_t map_row = block / spans;  // b, c, y of the cells
  const int64_t map = map_row / p.height, row = map_row % p.height;
  const int64_t j0 = block % spans * cells;
  const int64_t j1 = simt::min<int64_t>(j0 + cells, p.width);
  const int64_t j = j0 + threadIdx.x;
  const int64_t y0 = rows.begin(row), y1 = rows.end(row);
  const int64_t x0 = columns.begin(j0), x1 = columns.end(j1 - 1);
  const bool owns = j < j1;
  const int64_t my_begin = owns ? columns.begin(j) : 0, my_end = owns ? columns.end(j) : 0;
  float total = 0.0f;
  for (int64_t chunk = x0; chunk < x1; chunk += kSumColumns) {
    const int64_t stop = simt::min<int64_t>(chunk + kSumColumns, x1);
    for (int64_t x = chunk + threadIdx.x; x < stop; x += kThreads) {
      float sum = 0.0f;
      for (int64_t y = y0; y < y1; ++y) {
        const int64_t at = (map * p.out_height + y) * p.out_width + x;
        sum = fmaf(rows.weight(y, row), value_at<T>(p.grad_out, at), sum);
      }
      sums[x - chunk] = sum;
    }
    simt::sync_block();
    for (int64_t x = simt::max<int64_t>(my_begin, chunk); x < simt::min<int64_t>(my_end, stop);
         ++x) {
      total = fmaf(columns.weight(x, j), sums[x - chunk], total);
    }
    simt::sync_block();
  }
  if (owns) {
    static_cast<T*>(p.grad_logits)[map_row * p.width + j] = from_float<T>(total);
  }
}

template <class T>
simt::Status run_as(const MaskUpsampleGradParams& p, void* stream) {
  // As many cells as have their windows within one vertical sum, and no more than threads.
  const int64_t stretch = simt::ceil_div<int64_t>(p.out_width, p.width);
  const int64_t cells =
      simt::min<int64_t>(simt::max<int64_t>(kSumColumns / stretch - 4, 1), kThreads);
  const int64_t spans = simt::ceil_div<int64_t>(p.width, cells);
  const int64_t blocks = p.batch * p.channels * p.height * spans;
  return PW_LAUNCH(gather_gradient<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                   stream, p, cells, spans);
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_mask_upsample_grad(const patchword::MaskUpsampleGradParams* p, void* stream,
                                         char* message, size_t message_len) {
  using namespace patchword;
  return simt::report_for_dtype(
      p->dtype, "mask_upsample: logits", message, message_len,
      [&](auto type) { return run_as<typename decltype(type)::type>(*p, stream); });
}
