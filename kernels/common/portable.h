// SPDX-License-Identifier: Apache-2.0
// PW_PORTABLE: functions shared by the CPU levels and the CUDA kernels.
//
// Internal linkage on purpose: the same header is compiled under different -m flags, and a shared
// inline symbol could let the linker pick the AVX-512 copy for a machine that has none.
#pragma once

#if defined(__CUDACC__)
#define PW_PORTABLE static __host__ __device__ __forceinline__
#else
#define PW_PORTABLE static inline __attribute__((always_inline, unused))
#endif
