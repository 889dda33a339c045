// SPDX-License-Identifier: Apache-2.0
// Cooperative threads of the host SIMT engine: stacks, context switch, AddressSanitizer notes.
//
// On x86-64 the switch is a dozen instructions; ucontext, which makes a system call per switch,
// serves the other processors (and tests define PATCHWORD_SIMT_UCONTEXT to use it anywhere).
// Included by simt_host.cpp only.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define PW_ASAN 1
#else
#define PW_ASAN 0
#endif

#if defined(__x86_64__) && !defined(PATCHWORD_SIMT_UCONTEXT)
#define PW_ASM_SWITCH 1
#else
#include <ucontext.h>
#define PW_ASM_SWITCH 0
#endif

#if PW_ASM_SWITCH
// Saves the callee-saved registers on the stack, stores the stack pointer, loads another.
extern "C" void pw_simt_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.local pw_simt_switch
.type pw_simt_switch, @function
pw_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pw_simt_switch, .-pw_simt_switch
)");
#endif

namespace patchword::simt::host {

constexpr std::size_t kStackBytes = PW_ASAN ? 512 * 1024 : 128 * 1024;

// A suspended flow of control: a fiber, or the scheduler that resumes fibers.
struct Context {
#if PW_ASM_SWITCH
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

// Makes `fiber` begin at `entry`, which must call `enter` first and never return.
inline void prepare(Context& fiber, char* stack, void (*entry)()) {
  fiber.stack = stack;
  fiber.stack_bytes = kStackBytes;
  fiber.fake_stack = nullptr;
#if PW_ASM_SWITCH
  // Popped by the first switch: six registers, the entry point, and the end of the call chain.
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  std::fill(top - 8, top, nullptr);
  top[-2] = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = top - 8;
#else
  getcontext(&fiber.registers);
  fiber.registers.uc_stack.ss_sp = stack;
  fiber.registers.uc_stack.ss_size = kStackBytes;
  fiber.registers.uc_link = nullptr;
  makecontext(&fiber.registers, entry, 0);
#endif
}

// First statement of a fiber; learns where the scheduler's stack lies.
inline void enter([[maybe_unused]] Context& scheduler) {
#if PW_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
#endif
}

// Suspends `from` (for good when `ends`) and continues `to`.
inline void switch_context(Context& from, Context& to, [[maybe_unused]] bool ends = false) {
#if PW_ASAN
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
#if PW_ASM_SWITCH
  pw_simt_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.registers, &to.registers);
#endif
#if PW_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// Clears the red zones that the frames of an abandoned fiber leave in the shadow memory.
inline void forget_frames([[maybe_unused]] const Context& fiber) {
#if PW_ASAN
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
#endif
}

// Stacks are mapped once per operating-system thread, a guard page below each.
class StackPool {
 public:
  StackPool() = default;
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  ~StackPool() {
    for (char* stack : stacks_) munmap(stack - guard_, kStackBytes + guard_);
  }

  // The stack of fiber `index`, or null when memory is short.
  char* stack(unsigned index) {
    while (stacks_.size() <= index) {
      void* memory = mmap(nullptr, kStackBytes + guard_, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) return nullptr;
      mprotect(memory, guard_, PROT_NONE);
      stacks_.push_back(static_cast<char*>(memory) + guard_);
    }
    return stacks_[index];
  }

 private:
  const std::size_t guard_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::vector<char*> stacks_;
};

}  // namespace patchword::simt::host
