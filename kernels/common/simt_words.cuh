// SPDX-License-Identifier: Apache-2.0
// What a kernel is written with before it calls anything: qualifiers, shared arrays, indices,
// packs.
//
// Include simt.cuh, not this file.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(PATCHWORD_SIMT_HOST)
#include "kernels/common/simt_host.h"
#define PW_KERNEL static
#define PW_DEVICE inline
#define PW_HOST_DEVICE inline
#define PW_LAUNCH_BOUNDS(...)
#define PW_UNROLL
// The engine reports source lines: a helper that calls barriers or collectives takes its caller's
// as a last parameter (PW_SITE_PARAM, or PW_SITE_FIRST when alone) and hands it on (PW_SITE_ARG, or
// PW_SITE_ONLY when alone).
#define PW_SITE_FIRST ::patchword::simt::Site site = ::patchword::simt::Site::current()
#define PW_SITE_PARAM , ::patchword::simt::Site site = ::patchword::simt::Site::current()
#define PW_SITE_ARG , site
#define PW_SITE_ONLY site
#elif defined(__CUDACC__)
#include <cuda_runtime.h>
#define PW_KERNEL static __global__
#define PW_DEVICE __device__ __forceinline__
#define PW_HOST_DEVICE __host__ __device__ __forceinline__
#define PW_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
#define PW_UNROLL _Pragma("unroll")
#define PW_SITE_FIRST
#define PW_SITE_PARAM
#define PW_SITE_ARG
#define PW_SITE_ONLY
#else
#error "compile with nvcc, or with a C++20 compiler and -x c++ -DPATCHWORD_SIMT_HOST"
#endif

// 1 only where wgmma and bulk tensor copies exist; every use needs an mma.sync path beside it.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PW_SM90A_PATH 1
#else
#define PW_SM90A_PATH 0
#endif

// PW_SHARED(float, tile, 256): a static shared array; on the host `tile` is a pointer, so its size
// is not sizeof(tile). PW_DYNAMIC_SHARED(unsigned char, arena): the launch's dynamic bytes.
// Both are 16-byte aligned and uninitialised.
#if defined(PATCHWORD_SIMT_HOST)
#define PW_SHARED(type, name, count)                                           \
  type* const name = static_cast<type*>(::patchword::simt::host::shared_array( \
      []() -> const void* {                                                    \
        static char key;                                                       \
        return &key;                                                           \
      }(),                                                                     \
      #name, sizeof(type) * (count)))
#define PW_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::patchword::simt::host::dynamic_shared())
#else
#define PW_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define PW_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char pw_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(pw_dynamic_shared)
#endif

namespace patchword::simt {

inline constexpr unsigned kFullMask = 0xffffffffu;
inline constexpr int kWarpSize = 32;

template <class T>
struct Identity {
  using type = T;
};
// Keeps a parameter out of template argument deduction.
template <class T>
using Exactly = typename Identity<T>::type;

PW_DEVICE unsigned linear_thread() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
PW_DEVICE unsigned lane_id() { return linear_thread() % 32u; }
PW_DEVICE unsigned warp_id() { return linear_thread() / 32u; }

template <class T>
PW_HOST_DEVICE constexpr T ceil_div(T a, Exactly<T> b) {
  return (a + b - 1) / b;
}
template <class T>
PW_HOST_DEVICE constexpr T min(T a, Exactly<T> b) {
  return b < a ? b : a;
}
template <class T>
PW_HOST_DEVICE constexpr T max(T a, Exactly<T> b) {
  return a < b ? b : a;
}

// N values that move as one access; sizeof is 4, 8 or 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
  PW_HOST_DEVICE T& operator[](int i) { return v[i]; }
  PW_HOST_DEVICE const T& operator[](int i) const { return v[i]; }
};

}  // namespace patchword::simt
