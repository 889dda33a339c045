// SPDX-License-Identifier: Apache-2.0
// The thin layer every CUDA kernel is written against: CUDA under nvcc, the CPU under g++.
//
// SIMT.md is the guide. Compiled by nvcc each name below is the CUDA feature itself. Compiled with
// -x c++ -std=c++20 -DPATCHWORD_SIMT_HOST the same source runs on the CPU with every rule checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "kernels/common/half.h"
#include "kernels/common/types.h"

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

// simt::Status s = PW_LAUNCH((kernel<float, 4>), grid, block, dynamic_bytes, stream, args...);
#define PW_LAUNCH(kernel, grid, block, dynamic_bytes, ...) \
  ::patchword::simt::launch(#kernel, kernel, grid, block, dynamic_bytes, __VA_ARGS__)
// Needed once before a launch with more than 48 KB of shared memory.
#define PW_RAISE_DYNAMIC_SHARED(kernel, bytes) \
  ::patchword::simt::raise_dynamic_shared(#kernel, kernel, bytes)

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

// ---------------------------------------------------------------- launching (host side)

// Outcome of a launch. `message` lives until the next failure on the same thread.
struct Status {
  int code = 0;  // 0 or StatusCode::kLaunchFailed
  const char* message = "";

  bool ok() const { return code == 0; }

  // Copies the message into a caller's buffer and returns the code, which the binding turns into
  // an exception: the tail of an entry point.
  int report(char* buffer, std::size_t length) const {
    if (buffer != nullptr && length > 0) std::snprintf(buffer, length, "%s", message);
    return code;
  }
};

inline constexpr int kLaunchFailed = static_cast<int>(StatusCode::kLaunchFailed);

#if defined(PATCHWORD_SIMT_HOST)
inline Status make_status(const char* message) {
  return message == nullptr ? Status{} : Status{kLaunchFailed, message};
}
#else
inline Status make_status(const char* name, cudaError_t error) {
  if (error == cudaSuccess) return Status{};
  static thread_local char text[512];
  std::snprintf(text, sizeof(text), "kernel %s: %s (CUDA error %d)", name,
                cudaGetErrorString(error), static_cast<int>(error));
  return Status{kLaunchFailed, text};
}
#endif

template <class... P>
Status launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block,
              std::size_t dynamic_bytes, void* stream, Exactly<P>... arguments) {
#if defined(PATCHWORD_SIMT_HOST)
  static_cast<void>(stream);
  auto call = [&] { kernel(arguments...); };
  using Call = decltype(call);
  const host::LaunchConfig config{name, reinterpret_cast<const void*>(kernel), grid, block,
                                  dynamic_bytes};
  return make_status(
      host::run_grid(config, [](void* self) { (*static_cast<Call*>(self))(); }, &call));
#else
  // The null keeps the array non-empty for a kernel without parameters.
  void* pointers[] = {static_cast<void*>(&arguments)..., nullptr};
  const cudaError_t error =
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, dynamic_bytes,
                       static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) cudaGetLastError();  // do not leave it for the next caller to find
  return make_status(name, error);
#endif
}

template <class... P>
Status raise_dynamic_shared(const char* name, void (*kernel)(P...), std::size_t bytes) {
#if defined(PATCHWORD_SIMT_HOST)
  static_cast<void>(name);
  return make_status(host::raise_dynamic_shared(reinterpret_cast<const void*>(kernel), bytes));
#else
  const cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) cudaGetLastError();  // as in launch
  return make_status(name, error);
#endif
}

#if !defined(PATCHWORD_SIMT_HOST)
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}
#endif

// Multiprocessors of the current device: the grid of a persistent kernel is a small multiple.
inline int multiprocessor_count() {
#if defined(PATCHWORD_SIMT_HOST)
  return host::multiprocessor_count();
#else
  return device_attribute(cudaDevAttrMultiProcessorCount);
#endif
}

// Most shared memory a block may have after PW_RAISE_DYNAMIC_SHARED, in bytes.
inline std::size_t max_dynamic_shared() {
#if defined(PATCHWORD_SIMT_HOST)
  return host::max_dynamic_shared();
#else
  return static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
#endif
}

// 10 * major + minor of the current device; the host engine plays an 8.0.
inline int compute_capability() {
#if defined(PATCHWORD_SIMT_HOST)
  return 80;
#else
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) +
         device_attribute(cudaDevAttrComputeCapabilityMinor);
#endif
}

// ---------------------------------------------------------------- indices and plain helpers

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

// ---------------------------------------------------------------- primitives

#if defined(PATCHWORD_SIMT_HOST)

inline void sync_block(Site site = Site::current()) { host::block_barrier(site); }
inline void sync_named(int id, int threads PW_SITE_PARAM) {
  host::named_barrier(id, threads, true, site);
}
inline void arrive_named(int id, int threads PW_SITE_PARAM) {
  host::named_barrier(id, threads, false, site);
}
inline void sync_warp(unsigned mask = kFullMask PW_SITE_PARAM) {
  host::vote("sync_warp", mask, false, site);
}
inline void spin_pause(Site site = Site::current()) { host::yield(site); }
inline void thread_fence() {}

template <class T>
inline T shuffle(T value, unsigned source, unsigned mask = kFullMask,
                 unsigned width = 32 PW_SITE_PARAM) {
  const unsigned base = lane_id() & ~(width - 1);
  return host::shuffle_from("shuffle", mask, value, base + (source & (width - 1)), site);
}
template <class T>
inline T shuffle_up(T value, unsigned delta, unsigned mask = kFullMask,
                    unsigned width = 32 PW_SITE_PARAM) {
  const unsigned lane = lane_id(), in_group = lane & (width - 1);
  return host::shuffle_from("shuffle_up", mask, value, in_group >= delta ? lane - delta : lane,
                            site);
}
template <class T>
inline T shuffle_down(T value, unsigned delta, unsigned mask = kFullMask,
                      unsigned width = 32 PW_SITE_PARAM) {
  const unsigned lane = lane_id(), in_group = lane & (width - 1);
  return host::shuffle_from("shuffle_down", mask, value,
                            in_group + delta < width ? lane + delta : lane, site);
}
template <class T>
inline T shuffle_xor(T value, unsigned lane_mask, unsigned mask = kFullMask,
                     unsigned width = 32 PW_SITE_PARAM) {
  const unsigned lane = lane_id(), source = lane ^ lane_mask;
  return host::shuffle_from("shuffle_xor", mask, value,
                            source <= (lane | (width - 1)) ? source : lane, site);
}
inline unsigned ballot(bool predicate, unsigned mask = kFullMask PW_SITE_PARAM) {
  return host::vote("ballot", mask, predicate, site);
}
inline bool any(bool predicate, unsigned mask = kFullMask PW_SITE_PARAM) {
  return host::vote("any", mask, predicate, site) != 0;
}
inline bool all(bool predicate, unsigned mask = kFullMask PW_SITE_PARAM) {
  return host::vote("all", mask, predicate, site) == mask;
}

// One fiber runs at a time, so a plain read and write is atomic.
template <class T>
inline T atomic_exchange(T* address, Exactly<T> value) {
  const T old = *address;
  *address = value;
  return old;
}
template <class T>
inline T atomic_add(T* address, Exactly<T> value) {
  return atomic_exchange(address, static_cast<T>(*address + value));
}
template <class T>
inline T atomic_max(T* address, Exactly<T> value) {
  return atomic_exchange(address, max(*address, value));
}
template <class T>
inline T atomic_min(T* address, Exactly<T> value) {
  return atomic_exchange(address, min(*address, value));
}
template <class T>
inline T atomic_or(T* address, Exactly<T> value) {
  return atomic_exchange(address, static_cast<T>(*address | value));
}
template <class T>
inline T atomic_compare_exchange(T* address, Exactly<T> expected, Exactly<T> desired) {
  return atomic_exchange(address, *address == expected ? desired : *address);
}

template <class T>
inline T load_read_only(const T* address) {
  return *address;
}
template <int N, class T>
inline Pack<T, N> load_pack(const T* address PW_SITE_PARAM) {
  host::check_aligned(address, sizeof(Pack<T, N>), "load_pack", site);
  Pack<T, N> pack;
  std::memcpy(&pack, address, sizeof(pack));
  return pack;
}
template <class T, int N>
inline void store_pack(T* address, const Pack<T, N>& pack PW_SITE_PARAM) {
  host::check_aligned(address, sizeof(pack), "store_pack", site);
  std::memcpy(address, &pack, sizeof(pack));
}

inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_log2(float x) { return std::log2(x); }
inline float max_number(float a, float b) { return std::fmax(a, b); }
inline float fast_reciprocal(float x) { return 1.0f / x; }
inline float reciprocal_sqrt(float x) { return 1.0f / std::sqrt(x); }

#else  // nvcc

PW_DEVICE void sync_block() { __syncthreads(); }
// Barriers 1 to 15 over `threads` threads (a multiple of 32), all lanes of a warp together.
PW_DEVICE void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
PW_DEVICE void arrive_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
PW_DEVICE void sync_warp(unsigned mask = kFullMask) { __syncwarp(mask); }
// Put this in every loop that waits for another thread or block.
PW_DEVICE void spin_pause() { __nanosleep(20); }
PW_DEVICE void thread_fence() { __threadfence(); }

// The unsigned type of the same size, which the hardware instructions take.
template <class T>
using Word = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;

template <class T>
PW_DEVICE T shuffle(T value, unsigned source, unsigned mask = kFullMask, unsigned width = 32) {
  return bit_cast<T>(__shfl_sync(mask, bit_cast<Word<T> >(value), source, width));
}
template <class T>
PW_DEVICE T shuffle_up(T value, unsigned delta, unsigned mask = kFullMask, unsigned width = 32) {
  return bit_cast<T>(__shfl_up_sync(mask, bit_cast<Word<T> >(value), delta, width));
}
template <class T>
PW_DEVICE T shuffle_down(T value, unsigned delta, unsigned mask = kFullMask, unsigned width = 32) {
  return bit_cast<T>(__shfl_down_sync(mask, bit_cast<Word<T> >(value), delta, width));
}
template <class T>
PW_DEVICE T shuffle_xor(T value, unsigned lane_mask, unsigned mask = kFullMask,
                        unsigned width = 32) {
  return bit_cast<T>(__shfl_xor_sync(mask, bit_cast<Word<T> >(value), lane_mask, width));
}
PW_DEVICE unsigned ballot(bool predicate, unsigned mask = kFullMask) {
  return __ballot_sync(mask, predicate);
}
PW_DEVICE bool any(bool predicate, unsigned mask = kFullMask) {
  return __any_sync(mask, predicate) != 0;
}
PW_DEVICE bool all(bool predicate, unsigned mask = kFullMask) {
  return __all_sync(mask, predicate) != 0;
}

// CUDA's atomics name `long long`; 64-bit integers may be `long`.
template <class T>
using AtomicWord =
    std::conditional_t<std::is_integral<T>::value && sizeof(T) == 8,
                       std::conditional_t<std::is_signed<T>::value, long long, unsigned long long>,
                       T>;

template <class T>
PW_DEVICE T atomic_add(T* address, Exactly<T> value) {
  using U = std::conditional_t<std::is_same<AtomicWord<T>, long long>::value, unsigned long long,
                               AtomicWord<T> >;  // two's complement: the sum has the same bits
  return static_cast<T>(atomicAdd(reinterpret_cast<U*>(address), static_cast<U>(value)));
}
template <class T>
PW_DEVICE T atomic_max(T* address, Exactly<T> value) {
  using U = AtomicWord<T>;
  return static_cast<T>(atomicMax(reinterpret_cast<U*>(address), static_cast<U>(value)));
}
template <class T>
PW_DEVICE T atomic_min(T* address, Exactly<T> value) {
  using U = AtomicWord<T>;
  return static_cast<T>(atomicMin(reinterpret_cast<U*>(address), static_cast<U>(value)));
}
template <class T>
PW_DEVICE T atomic_or(T* address, Exactly<T> value) {
  return bit_cast<T>(
      atomicOr(reinterpret_cast<Word<T>*>(address), bit_cast<Word<T> >(static_cast<T>(value))));
}
template <class T>
PW_DEVICE T atomic_exchange(T* address, Exactly<T> value) {
  return bit_cast<T>(
      atomicExch(reinterpret_cast<Word<T>*>(address), bit_cast<Word<T> >(static_cast<T>(value))));
}
template <class T>
PW_DEVICE T atomic_compare_exchange(T* address, Exactly<T> expected, Exactly<T> desired) {
  return bit_cast<T>(atomicCAS(reinterpret_cast<Word<T>*>(address),
                               bit_cast<Word<T> >(static_cast<T>(expected)),
                               bit_cast<Word<T> >(static_cast<T>(desired))));
}

// Through the read-only cache; the memory must not change while the kernel runs.
template <class T>
PW_DEVICE T load_read_only(const T* address) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16,
                "load_read_only moves 2, 4, 8 or 16 bytes");
  using Raw = std::conditional_t<
      sizeof(T) == 16, uint4,
      std::conditional_t<sizeof(T) == 8, uint2,
                         std::conditional_t<sizeof(T) == 4, unsigned, unsigned short> > >;
  return bit_cast<T>(__ldg(reinterpret_cast<const Raw*>(address)));
}
// One access of N values; the address must be aligned to their total size.
template <int N, class T>
PW_DEVICE Pack<T, N> load_pack(const T* address) {
  return *reinterpret_cast<const Pack<T, N>*>(address);
}
template <class T, int N>
PW_DEVICE void store_pack(T* address, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(address) = pack;
}

// Approximate hardware functions, 2 ulp or so; denormals flush to zero.
PW_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The larger one; a NaN only when both are. One instruction, which `max` is not.
PW_DEVICE float max_number(float a, float b) { return fmaxf(a, b); }
PW_DEVICE float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PW_DEVICE float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PW_DEVICE float reciprocal_sqrt(float x) { return rsqrtf(x); }

#endif

PW_DEVICE float fast_exp(float x) { return fast_exp2(x * 1.4426950408889634f); }

// ---------------------------------------------------------------- reductions

struct Sum {
  template <class T>
  PW_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  PW_DEVICE T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Min {
  template <class T>
  PW_DEVICE T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// Reduction over groups of `width` neighbouring lanes; every lane gets its group's result.
template <class T, class Op>
PW_DEVICE T warp_reduce(T value, Op op, unsigned width = 32 PW_SITE_PARAM) {
  for (unsigned step = width / 2; step > 0; step /= 2) {
    value = op(value, shuffle_xor(value, step, kFullMask, 32 PW_SITE_ARG));
  }
  return value;
}

// Reduction over the block (a multiple of 32 threads); every thread gets the result. `scratch` is
// shared memory for one value per warp and may be reused at once.
template <class T, class Op>
PW_DEVICE T block_reduce(T value, Op op, T* scratch PW_SITE_PARAM) {
  value = warp_reduce(value, op, 32 PW_SITE_ARG);
  const unsigned warps = blockDim.x * blockDim.y * blockDim.z / 32u;
  if (lane_id() == 0) scratch[warp_id()] = value;
  sync_block(PW_SITE_ONLY);
  value = scratch[0];
  for (unsigned warp = 1; warp < warps; ++warp) value = op(value, scratch[warp]);
  sync_block(PW_SITE_ONLY);
  return value;
}

}  // namespace patchword::simt
