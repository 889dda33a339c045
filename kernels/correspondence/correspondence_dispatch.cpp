// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/correspondence/correspondence.h"

namespace patchword {

PW_SELECT_TABLE(MatchTable, kMatch, match_table)

}  // namespace patchword
