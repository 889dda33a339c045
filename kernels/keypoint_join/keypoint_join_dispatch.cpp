// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"
#include "kernels/keypoint_join/keypoint_join.h"

namespace patchword {

PW_SELECT_TABLE(KeypointJoinTable, kKeypointJoin, keypoint_join_table)

}  // namespace patchword
