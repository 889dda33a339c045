// SPDX-License-Identifier: Apache-2.0
#include "kernels/correspondence/correspondence.h"

#include <pybind11/stl.h>

#include <optional>

#include "csrc/common/runtime.h"
#include "kernels/correspondence/match_cuda_plan.h"
#include "kernels/correspondence/mutual_tail.h"
#include "kernels/correspondence/return_trip.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

using Sizes = Integers<3>;         // P, N, M
using OutPointers = Addresses<3>;  // indices, scores, second; 0: not wanted

// Numbers of a tuple, right-aligned: what a tensor without a batch lacks stays as it was.
template <int kCount>
void read_tail(PyObject* tuple, int64_t (&target)[kCount]) {
  const Py_ssize_t given = PyTuple_Check(tuple) ? PyTuple_GET_SIZE(tuple) : 0;
  if (given > kCount || !read_numbers(tuple, target + kCount - given, given)) {
    throw py::value_error("correspondence: shapes and strides must be tuples of numbers");
  }
}

// One set as native.py describes it: address, shape and strides of the descriptors [P, N, D] or
// [N, D]; addresses of lengths, mask and biases, 0 for none; strides of the mask.
struct Side {
  MatchSide side{};
  int64_t shape[3] = {1, 0, 0};

  explicit Side(const py::tuple& parts) {
    PyObject* tuple = parts.ptr();
    uintptr_t address[3];
    if (PyTuple_GET_SIZE(tuple) < 7) throw py::value_error("correspondence: a side has 7 parts");
    const uintptr_t descriptors = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(tuple, 0));
    read_tail(PyTuple_GET_ITEM(tuple, 1), shape);
    read_tail(PyTuple_GET_ITEM(tuple, 2), side.stride);
    for (int i = 0; i < 3; ++i) {
      address[i] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(tuple, 3 + i));
    }
    read_tail(PyTuple_GET_ITEM(tuple, 6), side.valid_stride);
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    side.descriptors = pointer<const void>(descriptors);
    side.lengths = pointer<const int64_t>(address[0]);
    side.valid = pointer<const uint8_t>(address[1]);
    side.bias = pointer<const float>(address[2]);
    side.count = shape[1];
  }
};

MatchParams make_params(int dtype, int metric, float scale, const py::tuple& side0,
                        const py::tuple& side1) {
  const Side first(side0), second(side1);
  MatchParams p{};
  p.side0 = first.side;
  p.side1 = second.side;
  p.dtype = static_cast<DType>(dtype);
  p.metric = static_cast<MatchMetric>(metric);
  p.pairs = first.shape[0];
  p.dim = first.shape[2];
  p.scale = scale;
  p.k = 1;
  return p;
}

void set_outputs(MatchParams& p, const OutPointers& out0, const OutPointers& out1) {
  p.indices0 = pointer<int64_t>(out0[0]);
  p.scores0 = pointer<float>(out0[1]);
  p.second0 = pointer<float>(out0[2]);
  p.indices1 = pointer<int64_t>(out1[0]);
  p.scores1 = pointer<float>(out1[1]);
  p.second1 = pointer<float>(out1[2]);
}

double expected_ns(const MatchParams& p) {
  return static_cast<double>(p.pairs) * static_cast<double>(p.side0.count) *
         static_cast<double>(p.side1.count) * static_cast<double>(p.dim + 1) / 40.0;
}

// Whether the scratch memory suffices; then it is given to the call.
bool has_workspace(MatchParams& p, const Launch& on, bool sums, int64_t& needed) {
  if (on.device == kCuda) {
    const bool split = p.dtype == DType::kFloat32;
    needed = match_cuda_plan(p.pairs, p.side0.count, p.side1.count, p.dim, split, sums).bytes;
  } else {
    needed = match_table().workspace(p, on.threads);
  }
  p.workspace = pointer<void>(on.scratch);
  return needed <= on.scratch_bytes;
}

int64_t run_best(const Launch& on, MatchParams& p) {
  int64_t needed = 0;
  if (!has_workspace(p, on, false, needed)) return needed;
  if (on.device == kCuda) {
    call_cuda("pw_cuda_match_best", &p, on.stream);
    return 0;
  }
  run_on_cpu("match_best", expected_ns(p), [&] { return match_table().best(p, on.threads); });
  return 0;
}

int64_t best(const Launch& on, int dtype, int metric, float scale, const py::tuple& side0,
             const py::tuple& side1, const OutPointers& out0, const OutPointers& out1, int64_t k) {
  MatchParams p = make_params(dtype, metric, scale, side0, side1);
  set_outputs(p, out0, out1);
  p.k = k;
  return run_best(on, p);
}

int64_t logsumexp(const Launch& on, int dtype, int metric, float scale, const py::tuple& side0,
                  const py::tuple& side1, uintptr_t out0, uintptr_t out1) {
  MatchParams p = make_params(dtype, metric, scale, side0, side1);
  p.logsumexp0 = pointer<float>(out0);
  p.logsumexp1 = pointer<float>(out1);
  int64_t needed = 0;
  if (!has_workspace(p, on, true, needed)) return needed;
  if (on.device == kCuda) {
    call_cuda("pw_cuda_match_logsumexp", &p, on.stream);
    return 0;
  }
  run_on_cpu("match_logsumexp", expected_ns(p),
             [&] { return match_table().logsumexp(p, on.threads); });
  return 0;
}

MutualSide make_mutual_side(const OutPointers& pointers, int64_t count) {
  return {pointer<int64_t>(pointers[0]), pointer<float>(pointers[1]),
          pointer<const float>(pointers[2]), count};
}

// CPU only: matches in place of the best candidates of both sides.
void mutual_in_place(const Sizes& sizes, int metric, const OutPointers& side0,
                     const OutPointers& side1, std::optional<double> threshold,
                     std::optional<double> ratio, bool allow_single) {
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

// CPU only: the best candidates of both sides and what is mutual of them, in one call.
int64_t mutual(const Launch& on, int dtype, int metric, float scale, const py::tuple& side0,
               const py::tuple& side1, const OutPointers& out0, const OutPointers& out1,
               std::optional<double> threshold, std::optional<double> ratio, bool allow_single) {
  MatchParams p = make_params(dtype, metric, scale, side0, side1);
  set_outputs(p, out0, out1);
  if (const int64_t needed = run_best(on, p); needed != 0) return needed;
  const Sizes sizes{{p.pairs, p.side0.count, p.side1.count}};
  mutual_in_place(sizes, metric, out0, out1, threshold, ratio, allow_single);
  return 0;
}

// CPU only: the best candidates of both sides, and where set 0 comes back to through them. `trip`
// holds the addresses of the ends, the points and the distances; 0 for no points.
int64_t cycle(const Launch& on, int dtype, int metric, float scale, const py::tuple& side0,
              const py::tuple& side1, const OutPointers& out0, const OutPointers& out1,
              const Addresses<3>& trip, const py::tuple& point_stride) {
  MatchParams p = make_params(dtype, metric, scale, side0, side1);
  set_outputs(p, out0, out1);
  if (const int64_t needed = run_best(on, p); needed != 0) return needed;
  ReturnTripParams q{};
  q.there = p.indices0;
  q.back = p.indices1;
  q.pairs = p.pairs;
  q.count0 = p.side0.count;
  q.count1 = p.side1.count;
  q.ends = pointer<int64_t>(trip[0]);
  q.points = pointer<const float>(trip[1]);
  q.distance = pointer<float>(trip[2]);
  read_tail(point_stride.ptr(), q.point_stride);
  return_trip(q);
  return 0;
}

}  // namespace

void bind_correspondence(py::module_& module) {
  module.def("match_best", &best);
  module.def("match_logsumexp", &logsumexp);
  module.def("match_mutual", &mutual);
  module.def("match_cycle", &cycle);
  module.def("match_mutual_tail", &mutual_in_place);
}

}  // namespace patchword::bindings
