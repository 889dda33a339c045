// SPDX-License-Identifier: Apache-2.0
#include "kernels/correspondence/correspondence.h"

#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "csrc/common/runtime.h"
#include "kernels/correspondence/match_cuda_plan.h"
#include "kernels/correspondence/mutual_tail.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

using Sizes = std::array<int64_t, 4>;           // P, N, M, D
using Strides = std::array<int64_t, 3>;         // pair, row, column
using MaskStrides = std::array<int64_t, 2>;     // pair, row
using SidePointers = std::array<uintptr_t, 4>;  // descriptors, lengths, valid, bias; 0: absent
using OutPointers = std::array<uintptr_t, 3>;   // indices, scores, second; 0: not wanted

MatchSide make_side(const SidePointers& pointers, int64_t count, const Strides& stride,
                    const MaskStrides& valid_stride) {
  MatchSide side{};
  side.descriptors = pointer<const void>(pointers[0]);
  side.lengths = pointer<const int64_t>(pointers[1]);
  side.valid = pointer<const uint8_t>(pointers[2]);
  side.bias = pointer<const float>(pointers[3]);
  side.count = count;
  for (int i = 0; i < 3; ++i) side.stride[i] = stride[i];
  for (int i = 0; i < 2; ++i) side.valid_stride[i] = valid_stride[i];
  return side;
}

MatchParams make_params(const Sizes& sizes, int dtype, int metric, float scale,
                        const SidePointers& side0, const Strides& stride0,
                        const MaskStrides& valid_stride0, const SidePointers& side1,
                        const Strides& stride1, const MaskStrides& valid_stride1,
                        uintptr_t workspace) {
  MatchParams p{};
  p.side0 = make_side(side0, sizes[1], stride0, valid_stride0);
  p.side1 = make_side(side1, sizes[2], stride1, valid_stride1);
  p.dtype = static_cast<DType>(dtype);
  p.metric = static_cast<MatchMetric>(metric);
  p.pairs = sizes[0];
  p.dim = sizes[3];
  p.scale = scale;
  p.k = 1;
  p.workspace = pointer<void>(workspace);
  return p;
}

double expected_ns(const MatchParams& p) {
  return static_cast<double>(p.pairs) * static_cast<double>(p.side0.count) *
         static_cast<double>(p.side1.count) * static_cast<double>(p.dim + 1) / 40.0;
}

void best(int device, uintptr_t stream, int threads, const Sizes& sizes, int dtype, int metric,
          float scale, const SidePointers& side0, const Strides& stride0,
          const MaskStrides& valid_stride0, const SidePointers& side1, const Strides& stride1,
          const MaskStrides& valid_stride1, uintptr_t workspace, const OutPointers& out0,
          const OutPointers& out1, int64_t k) {
  MatchParams p = make_params(sizes, dtype, metric, scale, side0, stride0, valid_stride0, side1,
                              stride1, valid_stride1, workspace);
  p.indices0 = pointer<int64_t>(out0[0]);
  p.scores0 = pointer<float>(out0[1]);
  p.second0 = pointer<float>(out0[2]);
  p.indices1 = pointer<int64_t>(out1[0]);
  p.scores1 = pointer<float>(out1[1]);
  p.second1 = pointer<float>(out1[2]);
  p.k = k;
  if (device == kCuda) {
    call_cuda("pw_cuda_match_best", &p, stream);
    return;
  }
  Status status;
  {
    MaybeUnlock unlock(expected_ns(p));
    status = match_table().best(p, threads);
  }
  raise_unless_ok(status, "match_best");
}

void logsumexp(int device, uintptr_t stream, int threads, const Sizes& sizes, int dtype, int metric,
               float scale, const SidePointers& side0, const Strides& stride0,
               const MaskStrides& valid_stride0, const SidePointers& side1, const Strides& stride1,
               const MaskStrides& valid_stride1, uintptr_t workspace, uintptr_t out0,
               uintptr_t out1) {
  MatchParams p = make_params(sizes, dtype, metric, scale, side0, stride0, valid_stride0, side1,
                              stride1, valid_stride1, workspace);
  p.logsumexp0 = pointer<float>(out0);
  p.logsumexp1 = pointer<float>(out1);
  if (device == kCuda) {
    call_cuda("pw_cuda_match_logsumexp", &p, stream);
    return;
  }
  Status status;
  {
    MaybeUnlock unlock(expected_ns(p));
    status = match_table().logsumexp(p, threads);
  }
  raise_unless_ok(status, "match_logsumexp");
}

MutualSide make_mutual_side(const OutPointers& pointers, int64_t count) {
  return {pointer<int64_t>(pointers[0]), pointer<float>(pointers[1]),
          pointer<const float>(pointers[2]), count};
}

void mutual(const Sizes& sizes, int metric, const OutPointers& side0, const OutPointers& side1,
            std::optional<double> threshold, std::optional<double> ratio, bool allow_single) {
  MutualParams p{};
  p.side0 = make_mutual_side(side0, sizes[1]);
  p.side1 = make_mutual_side(side1, sizes[2]);
  p.pairs = sizes[0];
  p.metric = static_cast<MatchMetric>(metric);
  p.has_threshold = threshold.has_value();
  p.threshold = threshold.value_or(0.0);
  p.has_ratio = ratio.has_value();
  p.ratio = ratio.value_or(1.0);
  p.allow_single = allow_single;
  const double rows = static_cast<double>(sizes[1]) + static_cast<double>(sizes[2]);
  MaybeUnlock unlock(static_cast<double>(p.pairs) * rows * 2.0);
  mutual_tail(p);
}

int64_t workspace(int threads, const Sizes& sizes, int64_t k) {
  MatchParams p{};
  p.pairs = sizes[0];
  p.side0.count = sizes[1];
  p.side1.count = sizes[2];
  p.dim = sizes[3];
  p.k = k;
  return match_table().workspace(p, threads);
}

int64_t cuda_workspace(const Sizes& sizes, int dtype, bool sums) {
  const bool split = static_cast<DType>(dtype) == DType::kFloat32;
  return match_cuda_plan(sizes[0], sizes[1], sizes[2], sizes[3], split, sums).bytes;
}

}  // namespace

void bind_correspondence(py::module_& module) {
  module.def("match_best", &best);
  module.def("match_logsumexp", &logsumexp);
  module.def("match_mutual_tail", &mutual);
  module.def("match_workspace", &workspace);
  module.def("match_cuda_workspace", &cuda_workspace);
}

}  // namespace patchword::bindings
