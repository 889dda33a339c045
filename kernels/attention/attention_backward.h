// SPDX-License-Identifier: Apache-2.0
// The backward half of a level's function table. For level units only.
#pragma once

#include "kernels/attention/attention.h"

namespace patchword {
namespace PW_LEVEL {

Status attention_backward(const AttentionBackwardParams& q, int threads);
int64_t attention_backward_workspace(const AttentionBackwardParams& q, int threads);

}  // namespace PW_LEVEL
}  // namespace patchword
