// SPDX-License-Identifier: Apache-2.0
// Exact mutual bests of cosines, found with 16-bit products: for levels where those are faster.
#pragma once

#include "kernels/correspondence/match_pack.h"

namespace patchword {
namespace PW_LEVEL {

// vpmaddwd does twice the multiply-adds of an FMA; without VNNI, AVX-512 processors commonly lack
// the ports to add its results at that rate. The emulated level is there to be tested.
#if defined(PW_LEVEL_AVX2) || defined(PW_LEVEL_AVX512_BF16) || defined(PW_LEVEL_AVX512_EMULATED)
constexpr bool kScreening = true;
#else
constexpr bool kScreening = false;
#endif

// Whether `screened_best` may be asked: plain best of both sides, cosines, depth worth it.
bool screening_applies(const MatchParams& params);
int64_t screened_workspace(const MatchParams& params, int threads);
// Writes all outputs of one pair and returns true, or gives up and returns false when too many
// scores are too close to decide by their approximations.
bool screened_best(const MatchParams& params, int64_t pair, int threads, char* workspace);

}  // namespace PW_LEVEL
}  // namespace patchword
