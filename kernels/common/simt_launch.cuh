// SPDX-License-Identifier: Apache-2.0
// The host side of the layer: starting a kernel, what became of it, and what the device offers.
//
// Include simt.cuh, not this file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <initializer_list>

#include "kernels/common/half.h"
#include "kernels/common/simt_words.cuh"
#include "kernels/common/types.h"

// simt::Status s = PW_LAUNCH((kernel<float, 4>), grid, block, dynamic_bytes, stream, args...);
#define PW_LAUNCH(kernel, grid, block, dynamic_bytes, ...) \
  ::patchword::simt::launch(#kernel, kernel, grid, block, dynamic_bytes, __VA_ARGS__)
// Needed once before a launch with more than 48 KB of shared memory.
#define PW_RAISE_DYNAMIC_SHARED(kernel, bytes) \
  ::patchword::simt::raise_dynamic_shared(#kernel, kernel, bytes)

namespace patchword::simt {

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

// Blocks that do `tasks`, `per_block` of them each.
inline unsigned blocks_for(std::int64_t tasks, std::int64_t per_block) {
  return static_cast<unsigned>(ceil_div(tasks, per_block));
}
// The limit of a grid's y and z.
inline constexpr std::int64_t kMostBlocksYZ = 65535;

// Whether packs of `pack` elements can be read as one access each: the address and every extent and
// stride in `steps`, counted in elements, are multiples of a pack.
inline bool packs_at(const void* base, std::int64_t element_bytes, std::int64_t pack,
                     std::initializer_list<std::int64_t> steps) {
  for (const std::int64_t step : steps) {
    if (step % pack != 0) return false;
  }
  return reinterpret_cast<std::uintptr_t>(base) %
             static_cast<std::uintptr_t>(pack * element_bytes) ==
         0;
}

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

// The tail of an entry point that works on stored floats: reports `run(Identity<T>{})` for the type
// that `dtype` names. `what` names the argument where it is another one.
template <class Run>
int report_for_dtype(DType dtype, const char* what, char* message, std::size_t length,
                     const Run& run) {
  switch (dtype) {
    case DType::kFloat32: return run(Identity<float>{}).report(message, length);
    case DType::kFloat16: return run(Identity<Half>{}).report(message, length);
    case DType::kBFloat16: return run(Identity<BFloat16>{}).report(message, length);
    default: break;
  }
  if (message != nullptr && length > 0) {
    std::snprintf(message, length, "%s must be float32, float16 or bfloat16", what);
  }
  return static_cast<int>(StatusCode::kUnsupported);
}

}  // namespace patchword::simt
