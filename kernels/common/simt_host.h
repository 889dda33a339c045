// SPDX-License-Identifier: Apache-2.0
// Host side of simt.cuh: the primitives a kernel sees when it runs on the CPU (see SIMT.md).
//
// Include simt.cuh, not this file. Each thread of a block is a fiber; the engine in simt_host.cpp
// runs one block at a time on the calling operating-system thread.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace patchword::simt {

using Site = std::source_location;

namespace host {

struct Indices {
  dim3 thread, block, block_dim, grid_dim;
};

// Indices of the running fiber. Fibers never move between operating-system threads.
extern constinit thread_local Indices* current;

struct LaunchConfig {
  const char* name;
  const void* kernel;
  dim3 grid, block;
  std::size_t dynamic_bytes;
};

// Runs `body(arguments)` once per thread of the grid; returns a message or null.
const char* run_grid(const LaunchConfig& config, void (*body)(void*), void* arguments);

// Raises the dynamic shared memory limit of a kernel; returns a message or null.
const char* raise_dynamic_shared(const void* kernel, std::size_t bytes);

int multiprocessor_count();
std::size_t max_dynamic_shared();

// What follows is called by the running kernel. A broken rule ends the launch with an error that
// names kernel, block, thread and call site; such a call does not return.

void* shared_array(const void* key, const char* name, std::size_t bytes);
void* dynamic_shared();

// Fails unless [pointer, pointer + bytes) lies inside one shared array of the running block.
void check_shared(const void* pointer, std::size_t bytes, const char* what, const Site& site);
void check_aligned(const void* pointer, std::size_t alignment, const char* what, const Site& site);

void block_barrier(const Site& site);
void named_barrier(int id, int threads, bool wait, const Site& site);
void yield(const Site& site);

// All lanes of `mask` meet here; the last one to arrive calls `combine` with every lane's slot.
using Combine = void (*)(void* const* slots, unsigned mask);
void warp_collective(const char* operation, unsigned mask, void* slot, Combine combine,
                     const Site& site);

void async_copy(void* to, const void* from, std::size_t bytes, std::size_t valid, const Site& site);
void async_commit();
void async_wait(std::size_t groups_left, bool with_uncommitted);

// A block's shared memory by its address there, as a descriptor holds it.
unsigned shared_address(const void* pointer, const Site& site);
void fence_async_proxy();

// What one lane hands to wgmma.mma_async (see wgmma.cuh): D [64, columns] = A B (+ D), A [64, 16].
struct WgmmaOperands {
  float* d;                // columns / 2 of this lane
  const std::uint32_t* a;  // four registers of this lane; null: a_descriptor, K-major
  std::uint64_t a_descriptor, b_descriptor;
  float (*decode)(std::uint16_t);
  int columns;
  bool transposed_b;  // B is MN-major
  bool accumulate;
};
void wgmma_issue(const WgmmaOperands& operands, const Site& site);
void wgmma_fence(const Site& site);
void wgmma_commit(const Site& site);
void wgmma_wait(std::size_t groups_left, const Site& site);

template <class T>
struct ShuffleSlot {
  T value, result;
  unsigned source;
};

template <class T>
inline T shuffle_from(const char* operation, unsigned mask, T value, unsigned source,
                      const Site& site) {
  ShuffleSlot<T> slot{value, value, source};
  warp_collective(
      operation, mask, &slot,
      [](void* const* slots, unsigned members) {
        for (unsigned lane = 0; lane < 32; ++lane) {
          if (!(members >> lane & 1u)) continue;
          auto* mine = static_cast<ShuffleSlot<T>*>(slots[lane]);
          if (members >> mine->source & 1u) {
            mine->result = static_cast<ShuffleSlot<T>*>(slots[mine->source])->value;
          } else {
            std::memset(&mine->result, 0xff, sizeof(T));  // undefined on a GPU: make it visible
          }
        }
      },
      site);
  return slot.result;
}

struct VoteSlot {
  bool predicate;
  unsigned ballot;
};

inline unsigned vote(const char* operation, unsigned mask, bool predicate, const Site& site) {
  VoteSlot slot{predicate, 0};
  warp_collective(
      operation, mask, &slot,
      [](void* const* slots, unsigned members) {
        unsigned ballot = 0;
        for (unsigned lane = 0; lane < 32; ++lane) {
          if ((members >> lane & 1u) && static_cast<VoteSlot*>(slots[lane])->predicate) {
            ballot |= 1u << lane;
          }
        }
        for (unsigned lane = 0; lane < 32; ++lane) {
          if (members >> lane & 1u) static_cast<VoteSlot*>(slots[lane])->ballot = ballot;
        }
      },
      site);
  return slot.ballot;
}

}  // namespace host
}  // namespace patchword::simt

#define threadIdx (::patchword::simt::host::current->thread)
#define blockIdx (::patchword::simt::host::current->block)
#define blockDim (::patchword::simt::host::current->block_dim)
#define gridDim (::patchword::simt::host::current->grid_dim)
