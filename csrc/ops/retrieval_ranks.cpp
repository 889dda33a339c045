// SPDX-License-Identifier: Apache-2.0
#include "kernels/retrieval_ranks/retrieval_ranks.h"

#include "csrc/common/runtime.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

RetrievalRanksParams make_params(uintptr_t queries, uintptr_t gallery, uintptr_t truth,
                                 uintptr_t ranks0, uintptr_t ranks1, uintptr_t workspace,
                                 int64_t rows, int64_t columns, int64_t dim, int64_t truths,
                                 const py::tuple& queries_stride, const py::tuple& gallery_stride,
                                 int dtype, int ties) {
  RetrievalRanksParams p{};
  p.queries = pointer<const void>(queries);
  p.gallery = pointer<const void>(gallery);
  p.truth = pointer<const int64_t>(truth);
  p.ranks0 = pointer<int64_t>(ranks0);
  p.ranks1 = pointer<int64_t>(ranks1);
  p.workspace = pointer<void>(workspace);
  p.dtype = static_cast<DType>(dtype);
  p.ties = static_cast<RankTies>(ties);
  p.rows = rows;
  p.columns = columns;
  p.dim = dim;
  p.truths = truths;
  for (int i = 0; i < 2; ++i) {
    p.queries_stride[i] = queries_stride[i].cast<int64_t>();
    p.gallery_stride[i] = gallery_stride[i].cast<int64_t>();
  }
  return p;
}

// Returns 0 when the work is done, else the bytes of workspace to come back with.
int64_t from_embeddings(int device, uintptr_t stream, int threads, uintptr_t queries,
                        uintptr_t gallery, uintptr_t truth, uintptr_t ranks0, uintptr_t ranks1,
                        uintptr_t workspace, int64_t workspace_bytes, int64_t rows, int64_t columns,
                        int64_t dim, int64_t truths, const py::tuple& queries_stride,
                        const py::tuple& gallery_stride, int dtype, int ties) {
  const RetrievalRanksParams p =
      make_params(queries, gallery, truth, ranks0, ranks1, workspace, rows, columns, dim, truths,
                  queries_stride, gallery_stride, dtype, ties);
  if (device == kCuda) {
    using Workspace = int64_t (*)(const RetrievalRanksParams*);
    const int64_t needed =
        reinterpret_cast<Workspace>(cuda_symbol("pw_cuda_retrieval_ranks_workspace"))(&p);
    if (needed > workspace_bytes) return needed;
    call_cuda("pw_cuda_retrieval_ranks", &p, stream);
    return 0;
  }
  const int64_t needed = retrieval_ranks_table().workspace(p, threads);
  if (needed > workspace_bytes) return needed;
  Status status;
  {
    MaybeUnlock unlock(0.01 * static_cast<double>(rows) * static_cast<double>(columns) *
                       static_cast<double>(dim));
    status = retrieval_ranks_table().from_embeddings(p, threads);
  }
  raise_unless_ok(status, "retrieval_ranks");
  return 0;
}

void from_scores(int device, uintptr_t stream, int threads, uintptr_t scores, uintptr_t truth,
                 uintptr_t ranks, int64_t rows, int64_t columns, int64_t truths, int64_t row_stride,
                 int dtype, int ties) {
  ScoreRanksParams p{};
  p.scores = pointer<const void>(scores);
  p.truth = pointer<const int64_t>(truth);
  p.ranks = pointer<int64_t>(ranks);
  p.dtype = static_cast<DType>(dtype);
  p.ties = static_cast<RankTies>(ties);
  p.rows = rows;
  p.columns = columns;
  p.truths = truths;
  p.row_stride = row_stride;
  if (device == kCuda) return call_cuda("pw_cuda_score_ranks", &p, stream);
  Status status;
  {
    MaybeUnlock unlock(0.3 * static_cast<double>(rows) * static_cast<double>(columns));
    status = retrieval_ranks_table().from_scores(p, threads);
  }
  raise_unless_ok(status, "score_ranks");
}

}  // namespace

void bind_retrieval_ranks(py::module_& module) {
  module.def("retrieval_ranks", &from_embeddings);
  module.def("score_ranks", &from_scores);
}

}  // namespace patchword::bindings
