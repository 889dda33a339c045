// SPDX-License-Identifier: Apache-2.0
// The engine that runs a launch of the host SIMT layer: its state, and what its parts call.
//
// Included by simt_host.cpp only, which holds the scheduler; simt_wgmma_engine.h holds the products
// of warpgroups.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/common/simt_fiber.h"
#include "kernels/common/simt_lane.h"
#include "kernels/common/simt_memory.h"
#include "kernels/common/simt_order.h"

namespace patchword::simt::host {
namespace {

// Shared memory that a block has without a raised limit.
constexpr std::size_t kDefaultShared = 48 * 1024;
constexpr unsigned kMaxThreads = 1024;
// Rounds in which every thread only called spin_pause, before that counts as a livelock.
constexpr int kIdleRounds = 100000;

struct NamedBarrier {
  int arrived = 0, threads = 0;
};

long environment_number(const char* name, long fallback, long low, long high) {
  const char* text = std::getenv(name);
  if (text == nullptr) return fallback;
  return std::clamp(std::strtol(text, nullptr, 10), low, high);
}

struct RaisedLimits {
  std::mutex mutex;
  std::unordered_map<const void*, std::size_t> bytes;
};
RaisedLimits& raised_limits() {
  static RaisedLimits limits;
  return limits;
}

// One launch on one operating-system thread.
class Engine {
 public:
  // Returns whether the launch ran to its end; `message` says why not.
  bool run(const LaunchConfig& config, void (*body)(void*), void* arguments);

  [[noreturn]] void fail(const std::string& what);
  void wait();  // switches from the running fiber to the scheduler
  // Its own frame, with its strings, must be gone when the fiber is left for good: their red zones
  // would stay in the shadow of a stack that the next launch uses.
  [[gnu::noinline]] void check_exit();
  void exit_lane();
  void run_body() { body_(arguments_); }
  void enter_lane() { enter(scheduler_); }

  Lane& lane() { return *static_cast<Lane*>(current); }
  Lane& lane_of(unsigned warp, unsigned lane) { return lanes_[32 * warp + lane]; }

  void* shared_array(const void* key, const char* name, std::size_t bytes);
  void* dynamic_shared() { return memory_.find(nullptr); }
  SharedMemory& memory() { return memory_; }
  void block_barrier(const Site& site);
  void named_barrier(int id, int threads, bool wait_here, const Site& site);
  void collective(const char* operation, unsigned mask, void* slot, Combine combine,
                  const Site& site);
  void issue_product(void* const* slots, unsigned mask);
  void multiply(unsigned warp, std::size_t index);

  std::string message;
  std::size_t progress = 0;
  bool early_copies = false;

 private:
  bool reject(const std::string& what);
  bool check_config();
  void run_block(const dim3& index);
  void start_lane(unsigned linear, const dim3& index);
  void resume(Lane& lane);
  std::string diagnose() const;
  void check_canaries();
  void check_warpgroups();
  std::uint16_t read_operand(unsigned address, const Site& site);

  LaunchConfig config_{};
  void (*body_)(void*) = nullptr;
  void* arguments_ = nullptr;
  bool failed_ = false, raised_ = false;
  unsigned threads_ = 0;
  unsigned at_barrier_ = 0;
  const Lane* first_at_barrier_ = nullptr;
  std::size_t static_bytes_ = 0;
  Order order_;
  std::vector<Lane> lanes_;
  std::vector<Warp> warps_;
  std::vector<std::vector<WgmmaSignature>> products_;  // of each warpgroup, in order of issue
  SharedMemory memory_;
  NamedBarrier named_[16];
  Context scheduler_;
};

thread_local Engine* engine = nullptr;

}  // namespace
}  // namespace patchword::simt::host
