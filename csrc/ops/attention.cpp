// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include <cstdlib>
#include <string_view>

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

// Whole numbers of a tuple, one after another, as Python lists them (native.py).
class Reader {
 public:
  Reader(const py::handle& values, Py_ssize_t count) : tuple_(values.ptr()) {
    if (!PyTuple_Check(tuple_) || PyTuple_GET_SIZE(tuple_) != count) {
      throw py::value_error("attention: wrong number of arguments of a stream");
    }
  }
  int64_t number() { return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple_, at_++)); }
  template <typename T>
  T* pointer() {
    return reinterpret_cast<T*>(PyLong_AsSize_t(PyTuple_GET_ITEM(tuple_, at_++)));
  }
  void strides(int64_t (&target)[3]) {
    for (int64_t& stride : target) stride = number();
  }

 private:
  PyObject* tuple_;
  Py_ssize_t at_ = 0;
};

AttentionStream read_stream(const py::handle& values, double scale) {
  Reader reader(values, 27);
  AttentionStream s{};
  s.q = reader.pointer<const void>();
  s.k = reader.pointer<const void>();
  s.v = reader.pointer<const void>();
  s.out = reader.pointer<void>();
  s.lse = reader.pointer<float>();
  s.query_offsets = reader.pointer<const int64_t>();
  s.key_offsets = reader.pointer<const int64_t>();
  s.key_lengths = reader.pointer<const int64_t>();
  s.key_mask = reader.pointer<const uint8_t>();
  s.num_queries = reader.number();
  s.num_keys = reader.number();
  s.mask_stride = reader.number();
  reader.strides(s.q_stride);
  reader.strides(s.k_stride);
  reader.strides(s.v_stride);
  reader.strides(s.out_stride);
  reader.strides(s.lse_stride);
  s.scale = static_cast<float>(scale);
  return s;
}

AttentionGradStream read_grad_stream(const py::handle& values) {
  Reader reader(values, 17);
  AttentionGradStream s{};
  s.grad_out = reader.pointer<const void>();
  s.grad_lse = reader.pointer<const float>();
  s.grad_q = reader.pointer<void>();
  s.grad_k = reader.pointer<void>();
  s.grad_v = reader.pointer<void>();
  reader.strides(s.grad_out_stride);
  reader.strides(s.grad_q_stride);
  reader.strides(s.grad_k_stride);
  reader.strides(s.grad_v_stride);
  return s;
}

AttentionParams make_params(uintptr_t workspace, int64_t workspace_bytes, int dtype, int64_t batch,
                            int64_t heads, int64_t dim, const py::tuple& streams,
                            const py::tuple& scales) {
  AttentionParams p{};
  p.workspace = pointer<void>(workspace);
  p.workspace_bytes = workspace_bytes;
  p.dtype = static_cast<DType>(dtype);
  p.batch = batch;
  p.heads = heads;
  p.dim = dim;
  p.num_streams = static_cast<int32_t>(PyTuple_GET_SIZE(streams.ptr()));
  if (p.num_streams > kAttentionMaxStreams || PyTuple_GET_SIZE(scales.ptr()) != p.num_streams) {
    throw py::value_error("attention: wrong number of streams");
  }
  for (int i = 0; i < p.num_streams; ++i) {
    p.streams[i] = read_stream(PyTuple_GET_ITEM(streams.ptr(), i),
                               PyFloat_AsDouble(PyTuple_GET_ITEM(scales.ptr(), i)));
  }
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return p;
}

double expected_ns(const AttentionParams& p) {
  double rows = 0.0;
  for (int i = 0; i < p.num_streams; ++i) {
    rows += static_cast<double>(p.streams[i].num_queries + p.streams[i].num_keys);
  }
  return rows * static_cast<double>(p.heads * p.dim);
}

// Bytes of device memory that a CUDA entry point wants.
template <typename Params>
int64_t cuda_workspace(const char* name, const Params& params) {
  return reinterpret_cast<int64_t (*)(const Params*)>(cuda_symbol(name))(&params);
}

// The wgmma kernel runs for who asks for it until a GPU has measured it: 1 where it can, must
// always.
const char* cuda_forward_entry(const AttentionParams& p) {
  const char* setting = std::getenv("PATCHWORD_ATTENTION_WGMMA");
  const std::string_view asked = setting == nullptr ? "0" : setting;
  using Takes = int (*)(const AttentionParams*);
  const bool chosen =
      asked == "must" ||
      (asked == "1" && reinterpret_cast<Takes>(cuda_symbol("pw_cuda_attention_wgmma_takes"))(&p));
  return chosen ? "pw_cuda_attention_wgmma" : "pw_cuda_attention";
}

// Returns 0 when the work is done, else the bytes of workspace to come back with.
int64_t forward(int device, uintptr_t stream, int threads, uintptr_t workspace,
                int64_t workspace_bytes, int dtype, int64_t batch, int64_t heads, int64_t dim,
                const py::tuple& streams, const py::tuple& scales) {
  const AttentionParams p =
      make_params(workspace, workspace_bytes, dtype, batch, heads, dim, streams, scales);
  const int64_t needed = device == kCuda ? cuda_workspace("pw_cuda_attention_workspace", p)
                                         : attention_table().forward_workspace(p, threads);
  if (needed > workspace_bytes) return needed;
  if (device == kCuda) {
    call_cuda(cuda_forward_entry(p), &p, stream);
    return 0;
  }
  Status status;
  {
    MaybeUnlock unlock(expected_ns(p));
    status = attention_table().forward(p, threads);
  }
  raise_unless_ok(status, "attention");
  return 0;
}

// As forward, with the gradients of each stream.
int64_t backward(int device, uintptr_t stream, int threads, uintptr_t workspace,
                 int64_t workspace_bytes, int dtype, int64_t batch, int64_t heads, int64_t dim,
                 const py::tuple& streams, const py::tuple& scales, const py::tuple& gradients) {
  AttentionBackwardParams q{};
  q.forward = make_params(workspace, workspace_bytes, dtype, batch, heads, dim, streams, scales);
  if (PyTuple_GET_SIZE(gradients.ptr()) != q.forward.num_streams) {
    throw py::value_error("attention: wrong number of gradients");
  }
  for (int i = 0; i < q.forward.num_streams; ++i) {
    q.streams[i] = read_grad_stream(PyTuple_GET_ITEM(gradients.ptr(), i));
  }
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  const int64_t needed = device == kCuda ? cuda_workspace("pw_cuda_attention_backward_workspace", q)
                                         : attention_table().backward_workspace(q, threads);
  if (needed > workspace_bytes) return needed;
  if (device == kCuda) {
    call_cuda("pw_cuda_attention_backward", &q, stream);
    return 0;
  }
  Status status;
  {
    MaybeUnlock unlock(expected_ns(q.forward));
    status = attention_table().backward(q, threads);
  }
  raise_unless_ok(status, "attention");
  return 0;
}

}  // namespace

void bind_attention(py::module_& module) {
  module.def("attention_forward", &forward);
  module.def("attention_backward", &backward);
}

}  // namespace patchword::bindings
