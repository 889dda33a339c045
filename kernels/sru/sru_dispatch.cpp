// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/sru/sru.h"

namespace patchword {

PW_SELECT_TABLE(SruTable, kSru, sru_table)

}  // namespace patchword
