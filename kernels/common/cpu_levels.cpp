// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_levels.h"

#include <atomic>
#include <cstring>

namespace patchword {
namespace {

constexpr int kUnforced = -1;
std::atomic<int> forced{kUnforced};

bool built(CpuLevel level) {
  switch (level) {
    case CpuLevel::kGeneric: return true;
    case CpuLevel::kAvx2:
#ifdef PATCHWORD_HAVE_AVX2
      return true;
#else
      return false;
#endif
    case CpuLevel::kAvx512:
    case CpuLevel::kAvx512Bf16:
#ifdef PATCHWORD_HAVE_AVX512
      return true;
#else
      return false;
#endif
    case CpuLevel::kAvx512Emulated:
#ifdef PATCHWORD_HAVE_AVX512_EMULATED
      return true;
#else
      return false;
#endif
  }
  return false;
}

bool processor_has(CpuLevel level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  switch (level) {
    case CpuLevel::kGeneric: return true;
    case CpuLevel::kAvx2:
    case CpuLevel::kAvx512Emulated: return avx2;
    case CpuLevel::kAvx512: return avx512;
    case CpuLevel::kAvx512Bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  }
  return false;
#else
  return level == CpuLevel::kGeneric;
#endif
}

}  // namespace

const char* cpu_level_name(CpuLevel level) {
  switch (level) {
    case CpuLevel::kAvx2: return "avx2";
    case CpuLevel::kAvx512: return "avx512";
    case CpuLevel::kAvx512Bf16: return "avx512_bf16";
    case CpuLevel::kAvx512Emulated: return "avx512_emulated";
    default: return "generic";
  }
}

CpuLevel best_cpu_level() {
  static const CpuLevel best = [] {
    for (CpuLevel level : {CpuLevel::kAvx512Bf16, CpuLevel::kAvx512, CpuLevel::kAvx2}) {
      if (built(level) && processor_has(level)) return level;
    }
    return CpuLevel::kGeneric;
  }();
  return best;
}

CpuLevel cpu_level() {
  const int level = forced.load(std::memory_order_relaxed);
  return level == kUnforced ? best_cpu_level() : static_cast<CpuLevel>(level);
}

const char* force_cpu_level(const char* name) {
  if (name[0] == '\0' || std::strcmp(name, "auto") == 0) {
    forced = kUnforced;
    return nullptr;
  }
  for (CpuLevel level : {CpuLevel::kGeneric, CpuLevel::kAvx2, CpuLevel::kAvx512,
                         CpuLevel::kAvx512Bf16, CpuLevel::kAvx512Emulated}) {
    if (std::strcmp(name, cpu_level_name(level)) != 0) continue;
    if (!built(level)) return "it is not part of this build";
    if (!processor_has(level)) return "this processor does not have it";
    forced = static_cast<int>(level);
    return nullptr;
  }
  return "the levels are auto, generic, avx2, avx512, avx512_bf16 and avx512_emulated";
}

}  // namespace patchword
