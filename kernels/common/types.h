// SPDX-License-Identifier: Apache-2.0
// Element types, status and strides: the vocabulary of every kernel's parameter struct.
#pragma once

#include <cstddef>
#include <cstdint>

// A function of the CUDA library's C interface; everything else is hidden.
#define PW_EXPORT extern "C" __attribute__((visibility("default")))

namespace patchword {

// Version of the C interface between _C and the CUDA library.
constexpr int kAbiVersion = 1;

// Numbers are part of the contract with Python (patchword/_library.py).
enum class DType : int32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kBFloat16 = 2,
  kUInt8 = 3,
  kInt16 = 4,
  kInt32 = 5,
  kInt64 = 6,
  kBool = 7,
};

enum class StatusCode : int32_t {
  kOk = 0,
  kInvalidArgument = 1,  // the caller broke the contract of the parameter struct
  kUnsupported = 2,      // right, but not what this build or device can do
  kLaunchFailed = 3,     // the CUDA runtime refused
};

// `message` names the argument and points at static storage; it is null when ok.
struct Status {
  StatusCode code = StatusCode::kOk;
  const char* message = nullptr;

  bool ok() const { return code == StatusCode::kOk; }
};

inline Status ok_status() { return {}; }
inline Status invalid(const char* message) { return {StatusCode::kInvalidArgument, message}; }
// Filled by pw_cuda_device_info for each device.
struct CudaDeviceInfo {
  char name[128];
  int32_t capability_major, capability_minor;
  int32_t multiprocessors;
  int64_t shared_bytes_per_block;  // after raising the limit
  int64_t memory_bytes;
};

inline Status unsupported(const char* message) { return {StatusCode::kUnsupported, message}; }

}  // namespace patchword
