// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/retrieval_ranks/retrieval_ranks.h"

namespace patchword {

PW_SELECT_TABLE(RetrievalRanksTable, kRetrievalRanks, retrieval_ranks_table)

}  // namespace patchword
