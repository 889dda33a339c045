// SPDX-License-Identifier: Apache-2.0
// What every binding needs: status to exception, addresses to pointers, the CUDA library.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "csrc/common/arguments.h"
#include "kernels/common/types.h"

namespace patchword::bindings {

// Device tags, the same numbers as in patchword/_library.py.
enum Device : int { kCpu = 0, kCuda = 1 };

template <typename T>
inline T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Throws ValueError (invalid argument), NotImplementedError (unsupported) or RuntimeError.
void raise_unless_ok(const Status& status, const char* function);

// Address of a C function of the loaded CUDA library; throws NotImplementedError when it is absent.
void* cuda_symbol(const char* name);
// Calls `int name(const Params*, void* stream, char* message, size_t size)` and raises on failure.
void call_cuda(const char* name, const void* params, uintptr_t stream);

// Releases the interpreter lock when `expected_ns` of work makes that worth its cost (~40 ns).
class MaybeUnlock {
 public:
  explicit MaybeUnlock(double expected_ns) {
    if (expected_ns > 20000.0) state_ = PyEval_SaveThread();
  }
  ~MaybeUnlock() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  MaybeUnlock(const MaybeUnlock&) = delete;
  MaybeUnlock& operator=(const MaybeUnlock&) = delete;

 private:
  PyThreadState* state_ = nullptr;
};

// Runs `work`, a kernel of the CPU level in force, and raises what it answers.
template <typename Work>
void run_on_cpu(const char* function, double expected_ns, const Work& work) {
  Status status;
  {
    MaybeUnlock unlock(expected_ns);
    status = work();
  }
  raise_unless_ok(status, function);
}

void bind_runtime(pybind11::module_& module);

}  // namespace patchword::bindings
