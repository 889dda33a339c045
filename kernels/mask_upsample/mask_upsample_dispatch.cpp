// SPDX-License-Identifier: Apache-2.0
// Argument checks, tap tables and workspace layout; then the CPU level in force.
#include "kernels/common/cpu_levels.h"
#include "kernels/mask_upsample/interpolation_taps.h"
#include "kernels/mask_upsample/mask_upsample_plan.h"

namespace patchword {

PW_SELECT_TABLE(MaskUpsampleTable, kMaskUpsample, mask_upsample_table)

namespace {

constexpr int64_t kAlign = 64;
int64_t aligned(int64_t bytes) { return round_up(bytes, kAlign); }
int64_t floats(int64_t n) { return aligned(n * static_cast<int64_t>(sizeof(float))); }

struct Sizes {
  int64_t in, out;
  int taps;
};

int64_t padded_out(int64_t out) { return round_up(out, kMaxLanes) + 2 * kMaxLanes; }

int64_t axis_bytes(const Sizes& s) {
  return floats(padded_out(s.out)) * (1 + s.taps) + floats(s.out + 1);
}

// Lays the tables of one axis out at `memory` and returns the byte after them; fills them unless
// memory is null.
unsigned char* build_axis(const Sizes& s, UpsampleMode mode, bool align_corners,
                          unsigned char* memory, AxisTable& axis) {
  const int64_t padded = padded_out(s.out);
  axis.in = s.in;
  axis.out = s.out;
  axis.taps = s.taps;
  axis.weight_stride = floats(padded) / static_cast<int64_t>(sizeof(float));
  axis.gathers = s.in > s.out;
  axis.negative = 0.0f;
  axis.cells = 0;
  if (memory == nullptr) return memory;
  int32_t* first = reinterpret_cast<int32_t*>(memory);
  float* weight = reinterpret_cast<float*>(memory + floats(padded));
  int32_t* cell = reinterpret_cast<int32_t*>(memory + floats(padded) * (1 + s.taps));
  const float scale = axis_scale(s.in, s.out, align_corners);
  for (int64_t o = 0; o < padded; ++o) {
    const int64_t coordinate = o < s.out ? o : s.out - 1;
    const AxisTaps taps = axis_taps(s.in, s.out, scale, coordinate, mode, align_corners);
    first[o] = taps.first;
    float negative = 0.0f;
    for (int t = 0; t < s.taps; ++t) {
      weight[t * axis.weight_stride + o] = taps.weight[t];
      if (taps.weight[t] < 0.0f) negative -= taps.weight[t];
    }
    if (negative > axis.negative) axis.negative = negative;
    if (o < s.out && (o == 0 || first[o] != first[o - 1])) {
      cell[axis.cells++] = static_cast<int32_t>(o);
    }
  }
  cell[axis.cells] = static_cast<int32_t>(s.out);
  axis.first = first;
  axis.weight = weight;
  axis.cell = cell;
  return memory + axis_bytes(s);
}

template <typename Params>
UpsamplePlan make_plan(const Params& p, unsigned char* memory) {
  UpsamplePlan plan{};
  const Sizes x{p.width, p.out_width, axis_tap_count(p.width, p.out_width, p.mode)};
  const Sizes y{p.height, p.out_height, axis_tap_count(p.height, p.out_height, p.mode)};
  unsigned char* after = build_axis(x, p.mode, p.align_corners != 0, memory, plan.x);
  after = build_axis(y, p.mode, p.align_corners != 0, after, plan.y);
  plan.prune = prunes_cells(p.height, p.width, p.out_height, p.out_width);
  plan.pitch = row_pitch(p.width);
  plan.padded_width = round_up(p.out_width, 4 * kMaxLanes) + kMaxLanes;
  plan.scratch = after;
  return plan;
}

template <typename Params>
int64_t table_bytes(const Params& p) {
  return axis_bytes({p.width, p.out_width, axis_tap_count(p.width, p.out_width, p.mode)}) +
         axis_bytes({p.height, p.out_height, axis_tap_count(p.height, p.out_height, p.mode)});
}

bool compares_classes(UpsampleOutput output) {
  return output >= UpsampleOutput::kLabels || output == UpsampleOutput::kSoftmax;
}

unsigned char* align_pointer(void* memory) {
  return reinterpret_cast<unsigned char*>(
      round_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory)), kAlign));
}

template <typename Params>
Status check_sizes(const Params& p) {
  constexpr int64_t kLargest = int64_t{1} << 30;  // float32 positions and int32 tables
  if (p.height <= 0 || p.width <= 0) return invalid("logits must have at least one cell");
  if (p.height > kLargest || p.width > kLargest || p.out_height > kLargest ||
      p.out_width > kLargest || p.channels > kLargest) {
    return unsupported("sizes must not exceed 2^30");
  }
  return ok_status();
}

}  // namespace

ClassScratch class_scratch(const MaskUpsampleParams& p, const UpsamplePlan& plan) {
  const int taps_y = plan.y.taps;
  ClassScratch s{};
  s.ring = floats(taps_y * p.channels * plan.pitch);
  s.ring_state = aligned(4 * 2 * static_cast<int64_t>(sizeof(int64_t)));
  s.high = plan.prune ? floats(p.channels * plan.pitch) : 0;
  s.bounds = plan.prune ? floats(5 * plan.pitch) : 0;
  s.lists = plan.prune ? floats(p.channels * plan.pitch) : 0;
  s.counts = plan.prune ? floats(plan.pitch) : 0;
  s.live = floats(p.channels);
  s.strip = floats(p.channels * (taps_y == 4 ? 4 : 2) * kStrip);
  s.values = p.output == UpsampleOutput::kSoftmax ? floats(p.channels * kMaxLanes) : 0;
  s.histogram = p.output == UpsampleOutput::kConfusion
                    ? aligned(p.channels * p.channels * static_cast<int64_t>(sizeof(int64_t)))
                    : 0;
  s.total = s.ring + s.ring_state + s.high + s.bounds + s.lists + s.counts + s.live + s.strip +
            s.values + s.histogram;
  return s;
}

MapScratch map_scratch(const UpsamplePlan& plan) {
  MapScratch s{};
  s.row = floats(plan.pitch);
  s.ring = floats(plan.y.taps * plan.padded_width);
  s.difference = floats(plan.padded_width);
  s.total = s.row + s.ring + s.difference;
  return s;
}

GradScratch grad_scratch(const UpsamplePlan& plan) {
  GradScratch s{};
  s.ring = floats(plan.y.taps * plan.padded_width);
  s.row = floats(plan.pitch);
  s.total = s.ring + s.row;
  return s;
}

int64_t mask_upsample_workspace(const MaskUpsampleParams& p, int threads) {
  const UpsamplePlan plan = make_plan(p, nullptr);
  const int64_t each =
      compares_classes(p.output) ? class_scratch(p, plan).total : map_scratch(plan).total;
  return kAlign + table_bytes(p) + each * threads;
}

int64_t mask_upsample_grad_workspace(const MaskUpsampleGradParams& p, int threads) {
  return kAlign + table_bytes(p) + grad_scratch(make_plan(p, nullptr)).total * threads;
}

Status mask_upsample_cpu(const MaskUpsampleParams& p, int threads) {
  if (const Status status = check_sizes(p); !status.ok()) return status;
  UpsamplePlan plan = make_plan(p, align_pointer(p.workspace));
  if (compares_classes(p.output)) {
    plan.scratch_stride = class_scratch(p, plan).total;
    return mask_upsample_table().classes(p, plan, threads);
  }
  plan.scratch_stride = map_scratch(plan).total;
  return mask_upsample_table().maps(p, plan, threads);
}

Status mask_upsample_grad_cpu(const MaskUpsampleGradParams& p, int threads) {
  if (const Status status = check_sizes(p); !status.ok()) return status;
  UpsamplePlan plan = make_plan(p, align_pointer(p.workspace));
  plan.scratch_stride = grad_scratch(plan).total;
  return mask_upsample_table().grad(p, plan, threads);
}

}  // namespace patchword
