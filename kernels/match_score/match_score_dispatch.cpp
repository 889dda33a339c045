// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/match_score/match_score.h"
#include "kernels/match_score/score_plan.h"

namespace patchword {

PW_SELECT_TABLE(MatchScoreTable, kMatchScore, match_score_table)

int64_t match_score_workspace(const MatchScoreParams& p, int threads) {
  return score_plan(p, threads).bytes;
}

}  // namespace patchword
