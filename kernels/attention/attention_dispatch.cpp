// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"
#include "kernels/common/cpu_levels.h"

namespace patchword {

PW_SELECT_TABLE(AttentionTable, kAttention, attention_table)

}  // namespace patchword
