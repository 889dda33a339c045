// SPDX-License-Identifier: Apache-2.0
// What the threads of a block do together and with memory: barriers, shuffles, atomics, packs.
//
// Include simt.cuh, not this file.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/common/half.h"
#include "kernels/common/simt_words.cuh"

namespace patchword::simt {

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

inline int set_bits(unsigned word) { return __builtin_popcount(word); }
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

PW_DEVICE int set_bits(unsigned word) { return __popc(word); }

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

}  // namespace patchword::simt
