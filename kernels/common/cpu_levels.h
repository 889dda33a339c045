// SPDX-License-Identifier: Apache-2.0
// Run-time choice of the CPU level (instruction set) and the macros that build function tables.
//
// A room's <op>_cpu.cpp is compiled once per level inside `namespace patchword::PW_LEVEL` and
// defines `extern const <Table> PW_LEVEL_TABLE(<name>)`. Its <op>_dispatch.cpp is compiled once at
// the baseline and picks a table with PW_SELECT_TABLE.
#pragma once

#include <cstdint>

namespace patchword {

enum class CpuLevel : int32_t { kGeneric = 0, kAvx2, kAvx512, kAvx512Bf16, kAvx512Emulated };

const char* cpu_level_name(CpuLevel level);
// The level in force: the forced one, else the best that this processor and this build have.
CpuLevel cpu_level();
// Best level of this processor and build, ignoring a forced one.
CpuLevel best_cpu_level();
// Returns null, or the reason why this level cannot run here. An empty name or "auto" unforces.
const char* force_cpu_level(const char* name);

}  // namespace patchword

#define PW_CONCAT_(a, b) a##_##b
#define PW_CONCAT(a, b) PW_CONCAT_(a, b)
#define PW_LEVEL_TABLE(name) PW_CONCAT(name, PW_LEVEL)

#ifdef PATCHWORD_HAVE_AVX2
#define PW_CASE_AVX2(name) \
  case ::patchword::CpuLevel::kAvx2: return name##_avx2;
#else
#define PW_CASE_AVX2(name)
#endif
#ifdef PATCHWORD_HAVE_AVX512
#define PW_CASE_AVX512(name)                                 \
  case ::patchword::CpuLevel::kAvx512: return name##_avx512; \
  case ::patchword::CpuLevel::kAvx512Bf16: return name##_avx512_bf16;
#else
#define PW_CASE_AVX512(name)
#endif
#ifdef PATCHWORD_HAVE_AVX512_EMULATED
#define PW_CASE_EMULATED(name) \
  case ::patchword::CpuLevel::kAvx512Emulated: return name##_avx512_emulated;
#else
#define PW_CASE_EMULATED(name)
#endif

// Defines `const Table& function()` returning the table of the level in force.
#define PW_SELECT_TABLE(Table, name, function)                                       \
  extern const Table name##_generic, name##_avx2, name##_avx512, name##_avx512_bf16, \
      name##_avx512_emulated;                                                        \
  const Table& function() {                                                          \
    switch (::patchword::cpu_level()) {                                              \
      PW_CASE_AVX2(name)                                                             \
      PW_CASE_AVX512(name) PW_CASE_EMULATED(name) default : return name##_generic;   \
    }                                                                                \
  }
