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

constinit thread_local Indices* current = nullptr;

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

void Engine::exit_lane() {
  Lane& self = lane();
  if (!self.wgmma.products.empty()) {
    fail("it exits before the wgmma at " + where(self.wgmma.products.front().site) +
         " has been waited for");
  }
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

// ---------------------------------------------------------------- wgmma

// The warps of a warpgroup must have issued the same products.
void Engine::check_warpgroups() {
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    const std::size_t issued = w / 4 < products_.size() ? products_[w / 4].size() : 0;
    if (warps_[w].products == issued) continue;
    message = format("kernel %s, block ", config_.name) + triple(lanes_[0].block) +
              format(", warp %zu issued %zu wgmma, another warp of its warpgroup %zu", w,
                     warps_[w].products, issued);
    failed_ = true;
    return;
  }
}

// Called by the last lane of a warp that issues; a slot is the lane itself.
void Engine::issue_product(void* const* slots, unsigned) {
  const auto& first = *static_cast<const Lane*>(slots[0]);
  const WgmmaProduct& product = first.wgmma.products.back();
  const WgmmaSignature signature(product.operands);
  const unsigned warp = first.linear / 32;
  const std::string here = "wgmma at " + where(product.site);
  for (unsigned l = 1; l < 32; ++l) {
    const WgmmaProduct& other = static_cast<const Lane*>(slots[l])->wgmma.products.back();
    if (WgmmaSignature(other.operands) != signature) {
      fail(here + format(": lanes 0 and %u differ in descriptors or form", l));
    }
  }
  if (warp / 4 >= products_.size()) {
    fail(here + ": a warpgroup is four whole warps, the first with a number divisible by 4");
  }
  std::vector<WgmmaSignature>& issued = products_[warp / 4];
  const std::size_t index = warps_[warp].products++;
  if (index == issued.size()) issued.push_back(signature);
  if (issued[index] != signature) {
    fail(here + format(": warp %u differs from its warpgroup in descriptors or form", warp));
  }
  if (early_copies) multiply(warp, first.wgmma.products.size() - 1);
}

// A 16-bit element of an operand, which the asynchronous proxy must be able to see.
std::uint16_t Engine::read_operand(unsigned address, const Site& site) {
  const SharedMemory::Array* array = memory_.array_at(address, 2);
  if (array == nullptr) {
    fail("wgmma at " + where(site) +
         format(" reads address %u, outside the block's shared memory", address));
  }
  const std::size_t offset = address - array->address;
  if (!array->marks.empty()) {
    const CopyMark& mark = array->marks[offset / 16];
    if (mark.thread < threads_ && lanes_[mark.thread].fences == mark.fences) {
      fail("wgmma at " + where(site) + " reads what " + describe(lanes_[mark.thread]) +
           " copied without fence_async_proxy after the wait");
    }
  }
  std::uint16_t bits;
  std::memcpy(&bits, array->begin() + offset, 2);
  return bits;
}

// The products of a warp's 16 rows, for the product with number `index` of its lanes.
void Engine::multiply(unsigned warp, std::size_t index) {
  const WgmmaProduct& shape = lane_of(warp, 0).wgmma.products[index];
  const WgmmaOperands& o = shape.operands;
  const auto columns = static_cast<unsigned>(o.columns);
  const auto check = [&](const char* name, const WgmmaMatrix& matrix) {
    if (matrix.problem() == nullptr) return;
    fail("wgmma at " + where(shape.site) + format(": the descriptor of %s ", name) +
         matrix.problem());
  };
  double a[16][16];
  if (o.a == nullptr) {
    const WgmmaMatrix matrix(o.a_descriptor, false);
    check("A", matrix);
    for (unsigned row = 0; row < 16; ++row) {
      for (unsigned k = 0; k < 16; ++k) {
        a[row][k] = o.decode(read_operand(matrix.address(warp % 4 * 16 + row, k), shape.site));
      }
    }
  }
  const WgmmaMatrix matrix(o.b_descriptor, o.transposed_b);
  check("B", matrix);
  std::vector<double> b(columns * 16);
  for (unsigned n = 0; n < columns; ++n) {
    for (unsigned k = 0; k < 16; ++k) {
      b[n * 16 + k] = o.decode(read_operand(matrix.address(n, k), shape.site));
    }
  }
  for (unsigned l = 0; l < 32 && o.a != nullptr; ++l) {
    const WgmmaProduct& product = lane_of(warp, l).wgmma.products[index];
    for (unsigned i = 0; i < 8; ++i) {
      a[l / 4 + i / 2 % 2 * 8][2 * (l % 4) + i % 2 + i / 4 * 8] =
          o.decode(static_cast<std::uint16_t>(product.a[i / 2] >> 16 * (i % 2)));
    }
  }
  for (unsigned l = 0; l < 32; ++l) {
    std::vector<double>& sums = lane_of(warp, l).wgmma.products[index].sums;
    sums.resize(columns / 2);
    for (unsigned i = 0; i < columns / 2; ++i) {
      const unsigned row = l / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * (l % 4) + i % 2;
      double sum = 0;
      for (unsigned k = 0; k < 16; ++k) sum += a[row][k] * b[column * 16 + k];
      sums[i] = sum;
    }
  }
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

unsigned shared_address(const void* pointer, const Site& site) {
  const SharedMemory::Array* array = engine->memory().array_of(pointer, 0);
  if (array == nullptr) {
    engine->fail("shared_address at " + where(site) + " of what is no shared memory");
  }
  return array->address +
         static_cast<unsigned>(static_cast<const unsigned char*>(pointer) - array->begin());
}

void fence_async_proxy() { ++engine->lane().fences; }

void wgmma_issue(const WgmmaOperands& operands, const Site& site) {
  Lane& lane = engine->lane();
  if (!lane.wgmma.fenced) {
    engine->fail("wgmma at " + where(site) +
                 ": no wgmma_fence since the registers were free for other use");
  }
  lane.wgmma.products.push_back({operands, {}, lane.wgmma.group, site, {}});
  WgmmaProduct& product = lane.wgmma.products.back();
  if (operands.a != nullptr) std::memcpy(product.a, operands.a, sizeof(product.a));
  if (!lane.wgmma.claim(product)) {
    engine->fail("wgmma at " + where(site) + ": its accumulators were touched while in flight");
  }
  warp_collective(
      "wgmma", ~0u, &lane,
      [](void* const* slots, unsigned mask) { engine->issue_product(slots, mask); }, site);
}

void wgmma_fence(const Site& site) {
  vote("wgmma_fence", ~0u, false, site);
  engine->lane().wgmma.fenced = true;
}

void wgmma_commit(const Site& site) {
  vote("wgmma_commit", ~0u, false, site);
  ++engine->lane().wgmma.group;
}

void wgmma_wait(std::size_t groups_left, const Site& site) {
  Lane& lane = engine->lane();
  WgmmaLane& own = lane.wgmma;
  std::size_t done = 0;
  while (done < own.products.size() && own.products[done].group + groups_left < own.group) ++done;
  warp_collective(
      "wgmma_wait", ~0u, &done,
      [](void* const* slots, unsigned) {
        const unsigned warp = engine->lane().linear / 32;
        for (std::size_t i = 0; i < *static_cast<const std::size_t*>(slots[0]); ++i) {
          if (engine->lane_of(warp, 0).wgmma.products[i].sums.empty()) engine->multiply(warp, i);
        }
      },
      site);
  for (; done > 0; --done) {
    const std::string issued = where(own.products.front().site);
    if (!own.complete()) {
      engine->fail("the accumulators of the wgmma at " + issued +
                   " were touched before the wait at " + where(site));
    }
  }
  own.fenced = false;
}

}  // namespace patchword::simt::host
