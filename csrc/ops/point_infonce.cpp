// SPDX-License-Identifier: Apache-2.0
#include "kernels/point_infonce/point_infonce.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

// features, query_images, query_points, key_images, key_points
using Inputs = Addresses<5>;
// batch, channels, height, width, queries, keys
using Sizes = Integers<6>;
// of features (4), query_images (1), query_points (2), key_images (2), key_points (3)
using Strides = Integers<12>;
// dtype, normalize
using Options = Integers<2>;
// scale and shift of x, scale and shift of y, temperature
using Scales = Reals<5>;

PointInfonceParams make_params(const Inputs& inputs, const Sizes& sizes, const Strides& strides,
                               const Options& options, const Scales& scales) {
  PointInfonceParams p{};
  p.features = pointer<const void>(inputs[0]);
  p.query_images = pointer<const int64_t>(inputs[1]);
  p.query_points = pointer<const float>(inputs[2]);
  p.key_images = pointer<const int64_t>(inputs[3]);
  p.key_points = pointer<const float>(inputs[4]);
  p.batch = sizes[0];
  p.channels = sizes[1];
  p.height = sizes[2];
  p.width = sizes[3];
  p.queries = sizes[4];
  p.keys = sizes[5];
  for (int i = 0; i < 4; ++i) p.features_stride[i] = strides[i];
  p.query_images_stride = strides[4];
  for (int i = 0; i < 2; ++i) p.query_points_stride[i] = strides[5 + i];
  for (int i = 0; i < 2; ++i) p.key_images_stride[i] = strides[7 + i];
  for (int i = 0; i < 3; ++i) p.key_points_stride[i] = strides[9 + i];
  p.dtype = static_cast<DType>(options[0]);
  p.normalize = static_cast<int32_t>(options[1]);
  p.scale_x = scales[0];
  p.shift_x = scales[1];
  p.scale_y = scales[2];
  p.shift_y = scales[3];
  p.sharpness = static_cast<float>(1.0 / scales[4]);
  return p;
}

// Runs `work` on the CPU; IndexError, which Python words, where an image is not in the batch.
template <typename Work>
void run_on_images(const PointInfonceParams& p, const Work& work) {
  bool images_exist = true;
  const double expected_ns =
      static_cast<double>(p.queries * (1 + p.keys)) * static_cast<double>(p.channels);
  run_on_cpu("point_infonce", expected_ns, [&] {
    const Status status = work();
    images_exist = status.code != StatusCode::kInvalidArgument;
    return images_exist ? status : ok_status();
  });
  if (!images_exist) throw py::index_error("point_infonce: an image is not in the batch");
}

int64_t forward(const Launch& on, const Inputs& inputs, const Sizes& sizes, const Strides& strides,
                const Options& options, const Scales& scales, uintptr_t losses, uintptr_t dots,
                uintptr_t norms) {
  PointInfonceParams p = make_params(inputs, sizes, strides, options, scales);
  p.losses = pointer<float>(losses);
  p.dots = pointer<float>(dots);
  p.norms = pointer<float>(norms);
  p.workspace = pointer<void>(on.scratch);
  if (on.device == kCuda) {
    call_cuda("pw_cuda_point_infonce", &p, on.stream);
    return 0;
  }
  const int64_t needed = point_infonce_workspace(p, on.threads, false);
  if (needed > on.scratch_bytes) return needed;
  run_on_images(p, [&] { return point_infonce_table().forward(p, on.threads); });
  return 0;
}

// gradients: of the losses; then to be written: features, query_points, key_points, 0 where not
// wanted. `cuda`: weights, pulls, vectors, order and starts.
int64_t backward(const Launch& on, const Inputs& inputs, const Sizes& sizes, const Strides& strides,
                 const Options& options, const Scales& scales, uintptr_t dots, uintptr_t norms,
                 const Addresses<4>& gradients, const Integers<4>& grad_stride,
                 const Addresses<5>& cuda) {
  PointInfonceBackwardParams q{};
  q.forward = make_params(inputs, sizes, strides, options, scales);
  q.forward.dots = pointer<float>(dots);
  q.forward.norms = pointer<float>(norms);
  q.forward.workspace = pointer<void>(on.scratch);
  q.grad = pointer<const float>(gradients[0]);
  q.grad_features = pointer<void>(gradients[1]);
  q.grad_query_points = pointer<float>(gradients[2]);
  q.grad_key_points = pointer<float>(gradients[3]);
  grad_stride.copy_to(q.grad_stride);
  q.weights = pointer<float>(cuda[0]);
  q.pulls = pointer<float>(cuda[1]);
  q.vectors = pointer<float>(cuda[2]);
  q.order = pointer<const int64_t>(cuda[3]);
  q.starts = pointer<const int64_t>(cuda[4]);
  if (on.device == kCuda) {
    call_cuda("pw_cuda_point_infonce_backward", &q, on.stream);
    return 0;
  }
  const int64_t needed = point_infonce_workspace(q.forward, on.threads, true);
  if (needed > on.scratch_bytes) return needed;
  run_on_images(q.forward, [&] { return point_infonce_table().backward(q, on.threads); });
  return 0;
}

// CUDA only: the cell that each point belongs to, for the sort before the backward.
int64_t cells(const Launch& on, const Inputs& inputs, const Sizes& sizes, const Strides& strides,
              const Options& options, const Scales& scales, uintptr_t cells_out) {
  PointInfonceCellsParams q{};
  q.forward = make_params(inputs, sizes, strides, options, scales);
  q.cells = pointer<int64_t>(cells_out);
  call_cuda("pw_cuda_point_infonce_cells", &q, on.stream);
  return 0;
}

}  // namespace

void bind_point_infonce(py::module_& module) {
  module.def("point_infonce_forward", &forward);
  module.def("point_infonce_backward", &backward);
  module.def("point_infonce_cells", &cells);
}

}  // namespace patchword::bindings
