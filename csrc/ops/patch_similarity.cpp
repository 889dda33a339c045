// SPDX-License-Identifier: Apache-2.0
#include "kernels/patch_similarity/patch_similarity.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

// patches, queries, packed, scale, bias, class_mask, group_order, group_offsets
using Inputs = Addresses<8>;
// logits, softmax, sigmoid, topk_values, topk_indices, argmax, confidence, logsumexp, minimum,
// maximum
using Outputs = Addresses<10>;
// dtype, query dtype, cosine, shared queries, mean of groups, channels last, top_k, background
using Options = Integers<8>;
using Numbers = Reals<4>;     // scale, bias, background, eps
using Sizes = Integers<5>;    // B, N, D, C, G
using Strides = Integers<7>;  // patches b n d, queries b c d, mask b

PatchSimilarityParams make_params(const Inputs& inputs, const Options& options,
                                  const Numbers& numbers, const Sizes& sizes,
                                  const Strides& strides) {
  PatchSimilarityParams p{};
  p.patches = pointer<const void>(inputs[0]);
  p.queries = pointer<const void>(inputs[1]);
  p.packed = pointer<const float>(inputs[2]);
  p.scale = pointer<const float>(inputs[3]);
  p.bias = pointer<const float>(inputs[4]);
  p.class_mask = pointer<const uint8_t>(inputs[5]);
  p.group_order = pointer<const int64_t>(inputs[6]);
  p.group_offsets = pointer<const int64_t>(inputs[7]);
  p.dtype = static_cast<DType>(options[0]);
  p.query_dtype = static_cast<DType>(options[1]);
  p.cosine = static_cast<int32_t>(options[2]);
  p.shared_queries = static_cast<int32_t>(options[3]);
  p.group_mean = static_cast<int32_t>(options[4]);
  p.channels_last = static_cast<int32_t>(options[5]);
  p.top_k = options[6];
  p.has_background = static_cast<int32_t>(options[7]);
  p.scale_value = static_cast<float>(numbers[0]);
  p.bias_value = static_cast<float>(numbers[1]);
  p.background = static_cast<float>(numbers[2]);
  p.eps = static_cast<float>(numbers[3]);
  p.batch = sizes[0];
  p.num_patches = sizes[1];
  p.dim = sizes[2];
  p.num_queries = sizes[3];
  p.num_classes = sizes[4];
  for (int i = 0; i < 3; ++i) p.patches_stride[i] = strides[i];
  for (int i = 0; i < 3; ++i) p.queries_stride[i] = strides[3 + i];
  p.mask_stride = strides[6];
  return p;
}

void set_outputs(PatchSimilarityParams& p, const Outputs& outputs) {
  p.logits = pointer<void>(outputs[0]);
  p.softmax = pointer<void>(outputs[1]);
  p.sigmoid = pointer<void>(outputs[2]);
  p.topk_values = pointer<float>(outputs[3]);
  p.topk_indices = pointer<int64_t>(outputs[4]);
  p.argmax = pointer<int64_t>(outputs[5]);
  p.confidence = pointer<float>(outputs[6]);
  p.logsumexp = pointer<float>(outputs[7]);
  p.minimum = pointer<float>(outputs[8]);
  p.maximum = pointer<float>(outputs[9]);
}

int64_t forward(const Launch& on, const Inputs& inputs, const Outputs& outputs,
                const Options& options, const Numbers& numbers, const Sizes& sizes,
                const Strides& strides) {
  PatchSimilarityParams p = make_params(inputs, options, numbers, sizes, strides);
  set_outputs(p, outputs);
  p.workspace = pointer<void>(on.scratch);
  if (on.device == kCuda) {
    const int64_t prompts = p.batch * p.num_patches * p.num_queries;
    const int64_t needed = p.group_offsets ? prompts * static_cast<int64_t>(sizeof(float)) : 0;
    if (needed > on.scratch_bytes) return needed;
    call_cuda("pw_cuda_patch_similarity", &p, on.stream);
    return 0;
  }
  const int64_t needed = patch_similarity_table().workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  const double products = static_cast<double>(p.batch * p.num_patches) *
                          static_cast<double>(p.dim) * static_cast<double>(p.num_queries);
  run_on_cpu("patch_similarity", 0.02 * products,
             [&] { return patch_similarity_table().forward(p, on.threads); });
  return 0;
}

int64_t packed_size(const Options& options, const Sizes& sizes, const Strides& strides) {
  return patch_similarity_table().packed_size(make_params({}, options, {}, sizes, strides));
}

void pack(int threads, const Inputs& inputs, uintptr_t packed, const Options& options,
          const Numbers& numbers, const Sizes& sizes, const Strides& strides) {
  const PatchSimilarityParams p = make_params(inputs, options, numbers, sizes, strides);
  run_on_cpu("pack_queries", 0.3 * static_cast<double>(p.num_queries * p.dim),
             [&] { return patch_similarity_table().pack(p, pointer<float>(packed), threads); });
}

}  // namespace

void bind_patch_similarity(py::module_& module) {
  module.def("patch_similarity_forward", &forward);
  module.def("patch_similarity_packed_size", &packed_size);
  module.def("patch_similarity_pack", &pack);
}

}  // namespace patchword::bindings
