// SPDX-License-Identifier: Apache-2.0
#include "kernels/retrieval_ranks/retrieval_ranks.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

// `sizes`: rows, columns, dim, truths. ranks1 is 0 where one direction is asked for.
int64_t from_embeddings(const Launch& on, uintptr_t queries, uintptr_t gallery, uintptr_t truth,
                        uintptr_t ranks0, uintptr_t ranks1, const Integers<4>& sizes,
                        const Integers<2>& queries_stride, const Integers<2>& gallery_stride,
                        int dtype, int ties) {
  RetrievalRanksParams p{};
  p.queries = pointer<const void>(queries);
  p.gallery = pointer<const void>(gallery);
  p.truth = pointer<const int64_t>(truth);
  p.ranks0 = pointer<int64_t>(ranks0);
  p.ranks1 = pointer<int64_t>(ranks1);
  p.workspace = pointer<void>(on.scratch);
  p.dtype = static_cast<DType>(dtype);
  p.ties = static_cast<RankTies>(ties);
  p.rows = sizes[0];
  p.columns = sizes[1];
  p.dim = sizes[2];
  p.truths = sizes[3];
  queries_stride.copy_to(p.queries_stride);
  gallery_stride.copy_to(p.gallery_stride);
  if (on.device == kCuda) {
    using Workspace = int64_t (*)(const RetrievalRanksParams*);
    const int64_t needed =
        reinterpret_cast<Workspace>(cuda_symbol("pw_cuda_retrieval_ranks_workspace"))(&p);
    if (needed > on.scratch_bytes) return needed;
    call_cuda("pw_cuda_retrieval_ranks", &p, on.stream);
    return 0;
  }
  const int64_t needed = retrieval_ranks_table().workspace(p, on.threads);
  if (needed > on.scratch_bytes) return needed;
  run_on_cpu("retrieval_ranks",
             0.01 * static_cast<double>(p.rows) * static_cast<double>(p.columns) *
                 static_cast<double>(p.dim),
             [&] { return retrieval_ranks_table().from_embeddings(p, on.threads); });
  return 0;
}

// `sizes`: rows, columns, truths.
int64_t from_scores(const Launch& on, uintptr_t scores, uintptr_t truth, uintptr_t ranks,
                    const Integers<3>& sizes, int64_t row_stride, int dtype, int ties) {
  ScoreRanksParams p{};
  p.scores = pointer<const void>(scores);
  p.truth = pointer<const int64_t>(truth);
  p.ranks = pointer<int64_t>(ranks);
  p.dtype = static_cast<DType>(dtype);
  p.ties = static_cast<RankTies>(ties);
  p.rows = sizes[0];
  p.columns = sizes[1];
  p.truths = sizes[2];
  p.row_stride = row_stride;
  if (on.device == kCuda) {
    call_cuda("pw_cuda_score_ranks", &p, on.stream);
    return 0;
  }
  run_on_cpu("score_ranks", 0.3 * static_cast<double>(p.rows) * static_cast<double>(p.columns),
             [&] { return retrieval_ranks_table().from_scores(p, on.threads); });
  return 0;
}

}  // namespace

void bind_retrieval_ranks(py::module_& module) {
  module.def("retrieval_ranks", &from_embeddings);
  module.def("score_ranks", &from_scores);
}

}  // namespace patchword::bindings
