// SPDX-License-Identifier: Apache-2.0
// Runs a kernel written against simt.cuh on the CPU: blocks in turn, threads as fibers.
//
// A fiber runs until it waits (barrier, warp collective) or exits; the scheduler then resumes the
// next one in the order that PATCHWORD_SIMT_ORDER names. When a rule is broken the launch stops:
// its fibers are abandoned, not unwound, which is safe because kernels own nothing.
#if !defined(PATCHWORD_SIMT_HOST)
#define PATCHWORD_SIMT_HOST
#endif
#include "kernels/common/simt_host.h"

#include <cstdlib>
#include <mutex>
#include <string>

#include "kernels/common/simt_engine.h"
#include "kernels/common/simt_wgmma_engine.h"

namespace patchword::simt::host {

constinit thread_local Indices* current = nullptr;

namespace {

thread_local StackPool stack_pool;

#if PW_ASAN
__attribute__((no_sanitize("address")))
#endif
void fiber_main() {
  engine->enter_lane();
  engine->run_body();
  engine->exit_lane();
}

bool Engine::reject(const std::string& what) {
  message = format("kernel %s: ", config_.name) + what;
  return false;
}

bool Engine::check_config() {
  const dim3 &grid = config_.grid, &block = config_.block;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647u || grid.y > 65535 ||
      grid.z > 65535) {
    return reject("grid " + triple(grid) + " is outside 1 to (2147483647, 65535, 65535)");
  }
  if (block.x == 0 || block.y == 0 || block.z == 0 || block.x > kMaxThreads ||
      block.y > kMaxThreads || block.z > 64 ||
      std::size_t{block.x} * block.y * block.z > kMaxThreads) {
    return reject("block " + triple(block) + " must have 1 to 1024 threads, z at most 64");
  }
  std::size_t limit = kDefaultShared;
  {
    std::lock_guard<std::mutex> lock(raised_limits().mutex);
    const auto raised = raised_limits().bytes.find(config_.kernel);
    raised_ = raised != raised_limits().bytes.end();
    if (raised_) limit = std::max(limit, raised->second);
  }
  if (config_.dynamic_bytes > limit) {
    return reject(
        format("%zu bytes of dynamic shared memory exceed the limit of %zu; call "
               "PW_RAISE_DYNAMIC_SHARED first",
               config_.dynamic_bytes, limit));
  }
  if (!order_.parse(std::getenv("PATCHWORD_SIMT_ORDER"))) {
    return reject("PATCHWORD_SIMT_ORDER must be forward, reverse or random:<seed>");
  }
  const char* copies = std::getenv("PATCHWORD_SIMT_COPIES");
  early_copies = copies != nullptr && std::strcmp(copies, "early") == 0;
  if (copies != nullptr && !early_copies && std::strcmp(copies, "late") != 0) {
    return reject("PATCHWORD_SIMT_COPIES must be late or early");
  }
  return true;
}

bool Engine::run(const LaunchConfig& config, void (*body)(void*), void* arguments) {
  config_ = config;
  body_ = body;
  arguments_ = arguments;
  if (!check_config()) return false;
  const dim3 &grid = config.grid, &block = config.block;
  threads_ = block.x * block.y * block.z;
  if (stack_pool.stack(threads_ - 1) == nullptr) return reject("no memory for thread stacks");
  lanes_.resize(threads_);
  warps_.resize((threads_ + 31) / 32);
  memory_.add(nullptr, "dynamic shared memory", config.dynamic_bytes);
  for (std::size_t b : order_.first(std::size_t{grid.x} * grid.y * grid.z)) {
    run_block(dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                   static_cast<unsigned>(b / grid.x / grid.y)));
    if (!failed_) check_canaries();
    if (!failed_) check_warpgroups();
    if (failed_) return false;
  }
  return true;
}

void Engine::start_lane(unsigned linear, const dim3& index) {
  Lane& lane = lanes_[linear];
  const dim3& block = config_.block;
  lane.thread = dim3(linear % block.x, linear / block.x % block.y, linear / block.x / block.y);
  lane.block = index;
  lane.block_dim = block;
  lane.grid_dim = config_.grid;
  lane.state = State::kReady;
  lane.linear = linear;
  lane.copies.clear();
  lane.group = 0;
  lane.fences = 0;
  lane.wgmma = WgmmaLane{};
  prepare(lane.context, stack_pool.stack(linear), &fiber_main);
}

void Engine::resume(Lane& lane) {
  current = &lane;
  switch_context(scheduler_, lane.context);
  current = nullptr;
}

void Engine::wait() { switch_context(lane().context, scheduler_, lane().state == State::kExited); }

void Engine::check_exit() {
  const Lane& self = lane();
  if (self.wgmma.products.empty()) return;
  fail("it exits before the wgmma at " + where(self.wgmma.products.front().site) +
       " has been waited for");
}

void Engine::exit_lane() {
  check_exit();
  Lane& self = lane();
  self.state = State::kExited;
  warps_[self.linear / 32].gone |= 1u << self.linear % 32;
  ++progress;
  wait();
}

void Engine::fail(const std::string& what) {
  const Lane& self = lane();
  message = format("kernel %s, block ", config_.name) + triple(self.block) + ", thread " +
            triple(self.thread) + ": " + what;
  failed_ = true;
  for (;;) wait();  // the scheduler never resumes a lane of a failed launch
}

void Engine::run_block(const dim3& index) {
  memory_.poison();
  std::fill(warps_.begin(), warps_.end(), Warp{});
  products_.assign(threads_ / 128, {});
  if (threads_ % 32 != 0) warps_.back().gone = ~0u << threads_ % 32;
  std::fill(std::begin(named_), std::end(named_), NamedBarrier{});
  at_barrier_ = 0;
  for (unsigned t = 0; t < threads_; ++t) start_lane(t, index);

  std::vector<std::size_t> order = order_.first(threads_);
  int idle = 0;
  for (bool ran = true; ran && !failed_;) {
    ran = false;
    const std::size_t before = progress;
    for (std::size_t t : order) {
      if (lanes_[t].state != State::kReady) continue;
      ran = true;
      resume(lanes_[t]);
      if (failed_) break;
    }
    idle = progress == before ? idle + 1 : 0;
    if (ran && idle > kIdleRounds) break;
    order_.next(order);
  }
  if (!failed_) {
    const std::string trouble = diagnose();
    if (!trouble.empty()) {
      message = format("kernel %s, block ", config_.name) + triple(index) + ", " + trouble;
      failed_ = true;
    }
  }
  for (unsigned t = 0; failed_ && t < threads_; ++t) forget_frames(lanes_[t].context);
}

// Explains why no lane can run, or returns "" when all have exited.
std::string Engine::diagnose() const {
  const Lane* stuck = nullptr;
  for (const Lane& lane : lanes_) {
    if (lane.state == State::kReady) {
      return "thread " + triple(lane.thread) +
             ": livelock: threads wait in spin_pause for something that no thread will do";
    }
    if (lane.state == State::kExited) continue;
    if (stuck == nullptr || lane.state < stuck->state) stuck = &lane;
  }
  if (stuck == nullptr) return "";
  const std::string thread = describe(*stuck);
  if (stuck->state == State::kBlockBarrier) {
    for (const Lane& lane : lanes_) {
      if (lane.state != State::kBlockBarrier) {
        return thread + ": barrier divergence: " + describe(lane);
      }
    }
  }
  if (stuck->state == State::kNamedBarrier) {
    const NamedBarrier& barrier = named_[stuck->named];
    return thread +
           format(": deadlock: %d of %d threads arrived", barrier.arrived, barrier.threads);
  }
  for (unsigned l = 0; l < 32; ++l) {
    const std::size_t other = stuck->linear / 32 * 32 + l;
    if ((stuck->mask >> l & 1u) == 0 || other == stuck->linear) continue;
    if (other >= lanes_.size()) return thread + format(": lane %u does not exist", l);
    const Lane& lane = lanes_[other];
    if (lane.state != State::kCollective || lane.mask != stuck->mask) {
      return thread + format(": lane mismatch: its mask names lane %u, but ", l) + describe(lane);
    }
  }
  return thread + ": deadlock";
}

void Engine::check_canaries() {
  const auto* before = memory_.damaged(true);
  const auto* array = before != nullptr ? before : memory_.damaged(false);
  if (array == nullptr) return;
  message = format("kernel %s, block ", config_.name) + triple(lanes_[0].block) +
            format(", some thread: wrote %s the %zu bytes of %s",
                   before != nullptr ? "before" : "past", array->bytes, array->name);
  failed_ = true;
}

void* Engine::shared_array(const void* key, const char* name, std::size_t bytes) {
  if (void* known = memory_.find(key)) return known;
  static_bytes_ += (bytes + 15) / 16 * 16;
  if (static_bytes_ > kDefaultShared) {
    fail(format("static shared memory needs %zu bytes with array %s, more than %zu", static_bytes_,
                name, kDefaultShared));
  }
  const std::size_t total = static_bytes_ + config_.dynamic_bytes;
  const std::size_t limit = raised_ ? max_dynamic_shared() : kDefaultShared;
  if (total > limit) {
    fail(format("static and dynamic shared memory need %zu bytes, more than %zu", total, limit));
  }
  return memory_.add(key, name, bytes);
}

void Engine::block_barrier(const Site& site) {
  Lane& self = lane();
  if (at_barrier_ > 0 && !same_site(first_at_barrier_->site, site)) {
    fail("barrier divergence: it is in sync_block at " + where(site) + ", but " +
         describe(*first_at_barrier_));
  }
  ++progress;
  if (++at_barrier_ == threads_) {
    at_barrier_ = 0;
    for (Lane& lane : lanes_) lane.state = State::kReady;
    return;
  }
  if (at_barrier_ == 1) first_at_barrier_ = &self;
  self.state = State::kBlockBarrier;
  self.site = site;
  wait();
}

void Engine::named_barrier(int id, int threads, bool wait_here, const Site& site) {
  Lane& self = lane();
  const int block_threads = static_cast<int>((threads_ + 31) / 32 * 32);
  if (id < 1 || id > 15 || threads <= 0 || threads % 32 != 0 || threads > block_threads) {
    fail(format("named barrier %d of %d threads at ", id, threads) + where(site) +
         ": the id must be 1 to 15 and the count a multiple of 32 within the block");
  }
  NamedBarrier& barrier = named_[id];
  if (barrier.arrived > 0 && barrier.threads != threads) {
    fail(format("named barrier %d at ", id) + where(site) +
         format(": expects %d threads, but %d were named before", threads, barrier.threads));
  }
  barrier.threads = threads;
  ++progress;
  if (++barrier.arrived == threads) {
    barrier = NamedBarrier{};
    for (Lane& lane : lanes_) {
      if (lane.state == State::kNamedBarrier && lane.named == id) lane.state = State::kReady;
    }
    return;
  }
  if (!wait_here) return;
  self.state = State::kNamedBarrier;
  self.named = id;
  self.site = site;
  wait();
}

void Engine::collective(const char* operation, unsigned mask, void* slot, Combine combine,
                        const Site& site) {
  Lane& self = lane();
  const unsigned warp_index = self.linear / 32, me = self.linear % 32;
  Warp& warp = warps_[warp_index];
  const auto here = [&] { return format("%s (mask 0x%08x) at ", operation, mask) + where(site); };
  if ((mask >> me & 1u) == 0) {
    fail(here() + format(": the mask does not name the calling lane %u", me));
  }
  if ((mask & warp.gone) != 0) {
    const int other = __builtin_ctz(mask & warp.gone);
    fail(here() + format(": the mask names lane %d, which has exited or does not exist", other));
  }
  unsigned arrived = 1u << me;
  for (unsigned rest = mask & warp.waiting; rest != 0; rest &= rest - 1) {
    const auto l = static_cast<unsigned>(__builtin_ctz(rest));
    const Lane& other = lane_of(warp_index, l);
    if (other.combine == combine && other.mask == mask && same_site(other.site, site)) {
      arrived |= 1u << l;
    } else if ((other.mask >> me & 1u) != 0) {  // otherwise it may still come here afterwards
      fail("lane mismatch: it is in " + here() + ", but " + describe(other));
    }
  }
  self.slot = slot;
  ++progress;
  if (arrived != mask) {
    warp.waiting |= 1u << me;
    self.state = State::kCollective;
    self.operation = operation;
    self.mask = mask;
    self.combine = combine;
    self.site = site;
    wait();
    return;
  }
  void* slots[32] = {};
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const auto l = static_cast<unsigned>(__builtin_ctz(rest));
    slots[l] = lane_of(warp_index, l).slot;
    lane_of(warp_index, l).state = State::kReady;
  }
  warp.waiting &= ~mask;
  combine(slots, mask);
}

}  // namespace

const char* run_grid(const LaunchConfig& config, void (*body)(void*), void* arguments) {
  static thread_local std::string last_message;
  if (engine != nullptr) return "a kernel cannot launch a kernel";
  Engine own;
  engine = &own;
  const bool ok = own.run(config, body, arguments);
  engine = nullptr;
  if (ok) return nullptr;
  last_message = std::move(own.message);
  return last_message.c_str();
}

const char* raise_dynamic_shared(const void* kernel, std::size_t bytes) {
  if (bytes > max_dynamic_shared()) {
    return "PW_RAISE_DYNAMIC_SHARED: more shared memory than a block of this device may have";
  }
  std::lock_guard<std::mutex> lock(raised_limits().mutex);
  raised_limits().bytes[kernel] = bytes;
  return nullptr;
}

int multiprocessor_count() {
  return static_cast<int>(environment_number("PATCHWORD_SIMT_MULTIPROCESSORS", 4, 1, 1024));
}

std::size_t max_dynamic_shared() {
  return static_cast<std::size_t>(environment_number("PATCHWORD_SIMT_SHARED_KB", 227, 48, 227)) *
         1024;
}

void* shared_array(const void* key, const char* name, std::size_t bytes) {
  return engine->shared_array(key, name, bytes);
}
void* dynamic_shared() { return engine->dynamic_shared(); }

void check_shared(const void* pointer, std::size_t bytes, const char* what, const Site& site) {
  if (engine->memory().array_of(pointer, bytes) != nullptr) return;
  engine->fail(format("%s of %zu bytes at ", what, bytes) + where(site) +
               " lies outside the block's shared memory");
}

void check_aligned(const void* pointer, std::size_t alignment, const char* what, const Site& site) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0) return;
  engine->fail(format("%s at ", what) + where(site) +
               format(" is misaligned: the address must be a multiple of %zu", alignment));
}

void block_barrier(const Site& site) { engine->block_barrier(site); }
void named_barrier(int id, int threads, bool wait, const Site& site) {
  engine->named_barrier(id, threads, wait, site);
}
void yield(const Site&) { engine->wait(); }

void warp_collective(const char* operation, unsigned mask, void* slot, Combine combine,
                     const Site& site) {
  engine->collective(operation, mask, slot, combine, site);
}

void async_copy(void* to, const void* from, std::size_t bytes, std::size_t valid,
                const Site& site) {
  check_aligned(to, bytes, "cp_async destination", site);
  check_aligned(from, bytes, "cp_async source", site);
  check_shared(to, bytes, "cp_async destination", site);
  if (valid > bytes) engine->fail("cp_async at " + where(site) + " has more valid bytes than size");
  Lane& lane = engine->lane();
  const Copy copy{to, from, bytes, valid, lane.group, engine->early_copies};
  if (copy.performed) perform(copy);
  lane.copies.push_back(copy);
}

void async_commit() { ++engine->lane().group; }

void async_wait(std::size_t groups_left, bool with_uncommitted) {
  Lane& lane = engine->lane();
  const std::size_t end = lane.group + (with_uncommitted ? 1 : 0);
  std::size_t done = 0;
  for (; done < lane.copies.size() && lane.copies[done].group + groups_left < end; ++done) {
    const Copy& copy = lane.copies[done];
    if (!copy.performed) perform(copy);
    engine->memory().mark(copy.to, CopyMark{lane.linear, lane.fences});
  }
  lane.copies.erase(lane.copies.begin(), lane.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace patchword::simt::host
